#!/usr/bin/env bash
# Installs the Debian 12 packages that exo.cpp needs, if any are missing: the one list of them.
#
#   scripts/install_deps.sh [GROUP...]      groups: build (default), test, lint, fuzz, package
#
# Silent, and without root, when nothing is missing. Elsewhere than on Debian and its children it
# names the packages and goes on: CMake then says what it doesn't find.
set -euo pipefail

declare -A packages=(
  [build]="build-essential cmake ninja-build ccache libfmt-dev libspdlog-dev
           nlohmann-json3-dev libcli11-dev libhwy-dev libpcre2-dev libxxhash-dev libedit-dev libhwloc-dev"
  [test]="libgtest-dev libgmock-dev libbenchmark-dev python3 groff-base"
  [lint]="clang-format-14 clang-tidy-14 python3"
  [fuzz]="clang-14 libclang-rt-14-dev"
  [package]="dpkg-dev file gzip"
)

wanted=()
for group in "${@:-build}"; do
  if [[ -z ${packages[$group]+set} ]]; then
    echo "install_deps.sh: no group '$group'; there are: ${!packages[*]}" >&2
    exit 2
  fi
  read -r -d '' -a names <<<"${packages[$group]}" || true
  wanted+=("${names[@]}")
done

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
  {
    echo "exo.cpp: this is no Debian system, so packages can't be installed by this script."
    echo "Install what these Debian 12 packages hold, if it isn't here yet: ${wanted[*]}"
  } >&2
  exit 0
fi

missing=()
for name in "${wanted[@]}"; do
  state=$(dpkg-query -W -f='${db:Status-Status}\n' "$name" 2>/dev/null | head -n 1 || true)
  [[ $state == installed ]] || missing+=("$name")
done
((${#missing[@]})) || exit 0

echo "exo.cpp: installing missing packages: ${missing[*]}" >&2
root=()
if ((EUID != 0)); then
  if ! command -v sudo >/dev/null; then
    echo "exo.cpp: needs root for that. Run as root: apt-get install ${missing[*]}" >&2
    exit 1
  fi
  root=(sudo)
fi
# A package list may be old or absent; three tries, because a mirror may not answer at once.
for try in 1 2 3; do
  if "${root[@]}" apt-get update -qq &&
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive \
      apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2; then
    exit 0
  fi
  echo "exo.cpp: apt-get failed (try $try of 3)" >&2
  sleep $((try * 3))
done
echo "exo.cpp: could not install: ${missing[*]}" >&2
exit 1
