#!/usr/bin/env bash
# `make run`: the shipped model's answer to a prompt, or a small random one's until it is there.
#
#   scripts/run_model.sh PROMPT
set -euo pipefail
cd "$(dirname "$0")/.."
exo=build/release/exo
if [[ -e models/tiny/model.safetensors ]]; then
  exec "$exo" run tiny --prompt "$1"
fi
model=build/random-checkpoint
if [[ ! -e $model/config.json ]]; then
  echo "exo.cpp: no models/tiny here: writing a small checkpoint of random weights (its text is noise)" >&2
  "$exo" random-checkpoint "$model"
fi
exec "$exo" run "$model" --prompt "$1" --max-generate-tokens 32
