#!/usr/bin/env bash
# Builds exo for AArch64 and tries it under qemu-user: the products' tests on NEON, and the shipped model's answer. By hand:
# it needs root and the network for Debian's cross compiler and arm64 packages. One thread only: qemu-user 7.2 hung at any
# program's second thread where this was written.
#
#   packaging/test_on_arm.sh [BUILD_FOLDER=build/arm]
set -euo pipefail
cd "$(dirname "$0")/.."
build=$(realpath -m "${1:-build/arm}")

dpkg --add-architecture arm64
apt-get update -qq
apt-get install -qq -y --no-install-recommends g++-aarch64-linux-gnu qemu-user ninja-build \
  lib{hwy,fmt,spdlog,gtest,gmock,hwloc,xxhash,pcre2,edit}-dev:arm64 >/dev/null

cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_TOOLCHAIN_FILE=cmake/aarch64.cmake >/dev/null
cmake --build "$build" --target exo kernels_cpu_test ops_test tensor_test

export QEMU_LD_PREFIX=/usr/aarch64-linux-gnu EXO_SHARED=$PWD/../shared EXO_HOME=$build/home
for tests in tensor_test ops_test; do qemu-aarch64 "$build/test/$tests" --gtest_brief=1; done
qemu-aarch64 "$build/test/kernels_cpu_test" --gtest_brief=1 \
  --gtest_filter='Isa*:FindMatmul*:Pairs/Matmul.Equals*:Pairs/Matmul.NotA*:Pairs/Matmul.Accumulate*:*MatmulX86*:MatmulFp8*:WideColumns.*'
qemu-aarch64 "$build/exo" run models/tiny --greedy --threads 1 --prompt "What is 47 + 38?" | tee "$build/answer"
grep -q 85 "$build/answer"
echo "test_on_arm: all passed"
