#!/usr/bin/env bash
# Checks style and meaning of the C++ code, changing nothing: exits 1 with what to mend.
#
#   scripts/lint.sh format [--fix]   clang-format 14 over every C++ file (--fix rewrites them)
#   scripts/lint.sh tidy [FILE...]   clang-tidy 14 over the program's sources, a room's joined, or
#                                    over the files given; wants a configured build/release
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
    export tree=build/release
    files=("$@")
    if ((!$#)); then
      # A room's sources as one: what they include is read once, in a third of the time.
      tree=build/lint
      cmake --preset lint >/dev/null
      mapfile -t files < <(sed -nE 's/^ *"file": "(.*)",?$/\1/p' "$tree/compile_commands.json")
    elif [[ ! -e $tree/compile_commands.json ]]; then
      echo "clang-tidy: no $tree/compile_commands.json: run \`make build\` first" >&2
      exit 2
    fi
    # One process a file, all processors busy; the findings of one file are printed together.
    check() {
      local findings
      local options=(--quiet -p "$tree" --extra-arg=-Wno-unknown-warning-option)
      [[ $1 == *.cxx ]] && options+=(--checks=-bugprone-suspicious-include)
      findings=$(clang-tidy-14 "${options[@]}" "$1" 2>&1) && return 0
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
