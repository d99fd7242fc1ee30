#!/usr/bin/env bash
# Runs every libFuzzer target of build/fuzz for some seconds each, from the seeds in tests/fuzz/<target>
# where there are any. What a run learns stays in build/fuzz/corpus; a crash is kept in build/fuzz.
#
#   scripts/fuzz.sh [SECONDS]
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-30}
failed=()
n_targets=0
for target in build/fuzz/fuzz/*; do
  [[ -x $target ]] || continue
  name=$(basename "$target")
  corpus=build/fuzz/corpus/$name
  mkdir -p "$corpus"
  seeds=()
  [[ -d tests/fuzz/$name ]] && seeds=("tests/fuzz/$name")
  echo "fuzz: $name, $seconds s"
  if ! "$target" -max_total_time="$seconds" -rss_limit_mb=4096 -timeout=20 -max_len=65536 -verbosity=0 \
    -print_final_stats=1 -artifact_prefix="build/fuzz/$name-" "$corpus" "${seeds[@]}" \
    >"build/fuzz/$name.log" 2>&1; then
    failed+=("$name")
    cat "build/fuzz/$name.log"
  fi
  grep -E 'executed_units|new_units_added' "build/fuzz/$name.log" || true
  n_targets=$((n_targets + 1))
done
if ((n_targets == 0)); then
  echo "fuzz: no targets in build/fuzz/fuzz" >&2
  exit 1
fi
echo "fuzz: $((n_targets - ${#failed[@]})) of $n_targets targets passed${failed:+; failed: ${failed[*]}}"
((${#failed[@]} == 0))
