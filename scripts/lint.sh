#!/usr/bin/env bash
# Checks style and meaning of the C++ code, changing nothing: exits 1 with what to mend.
#
#   scripts/lint.sh format [--fix]   clang-format 14 over every C++ file (--fix rewrites them)
#   scripts/lint.sh tidy [FILE...]   clang-tidy 14 over src/ (tests and fuzz targets apart), or over
#                                    the files given; wants a configured build/release
set -euo pipefail
cd "$(dirname "$0")/.."

case ${1:-} in
  format)
    mapfile -t files < <(git ls-files --cached --others --exclude-standard -- \
      '*.cc' '*.h' '*.cu' '*.cuh' | while read -r f; do [[ -e $f ]] && echo "$f"; done)
    if [[ ${2:-} == --fix ]]; then
      clang-format-14 -i "${files[@]}"
    elif ! clang-format-14 --dry-run -Werror --ferror-limit=3 "${files[@]}"; then
      echo "clang-format: run \`make format\`" >&2
      exit 1
    fi
    echo "clang-format: ${#files[@]} files"
    ;;
  tidy)
    shift
    if [[ ! -e build/release/compile_commands.json ]]; then
      echo "clang-tidy: no build/release/compile_commands.json: run \`make build\` first" >&2
      exit 2
    fi
    if (($#)); then
      files=("$@")
    else
      mapfile -t files < <(git ls-files --cached --others --exclude-standard -- 'src/*.cc' |
        grep -vE '_(test|fuzz)\.cc$')
    fi
    # One process a file, all processors busy; the findings of one file are printed together.
    check() {
      local findings
      findings=$(clang-tidy-14 --quiet -p build/release --extra-arg=-Wno-unknown-warning-option "$1" 2>&1) && return 0
      printf '%s\n' "clang-tidy: $1" "$(grep -v ' warnings generated' <<<"$findings")"
      return 1
    }
    export -f check
    printf '%s\0' "${files[@]}" | xargs -0 -n 1 -P "$(nproc)" bash -c 'check "$0"'
    echo "clang-tidy: ${#files[@]} files"
    ;;
  *)
    sed -n '2,7p' "$0" >&2
    exit 2
    ;;
esac
