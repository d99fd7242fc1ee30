/// What the kernel benchmarks share: matrices of arbitrary codes at real sizes, made in a moment,
/// a context with all usable processors, and the figures: bytes of weights and operations a second.
#pragma once

#include <benchmark/benchmark.h>

#include <cstring>
#include <string>
#include <vector>

#include "base/os.h"
#include "kernels/cpu/isa.h"
#include "ops/ops.h"
#include "tensor/buffer.h"

namespace exo::bench {

/// A packed matrix with valid codes that mean nothing.
struct Matrix {
  PackedMatrix matrix;
  Buffer tiles;
  std::vector<float> scales;
  std::vector<int32_t> sums;

  Matrix(WeightFormat format, int64_t n_out, int64_t n_in, bool gate_up = false) {
    matrix = {.format = format, .gate_up = gate_up, .n_out = n_out, .n_in = n_in, .k_block = 128};
    tiles = *Buffer::allocate(matrix.weight_bytes());
    uint32_t state = 1;
    for (int64_t i = 0; i < matrix.weight_bytes(); ++i) {
      state = state * 1664525 + 1013904223;
      // Small in every format: bits 0x30 .. 0x37 are 2^-31 as f32, 0.5 to 1 as e4m3.
      tiles.data()[i] = static_cast<std::byte>(0x30 | (state >> 24 & 7));
    }
    if (format == WeightFormat::int4) {
      for (int64_t i = 0; i < matrix.weight_bytes(); i += tile_bytes(format))
        std::memset(tiles.data() + i, 3, 64);
    }
    const int64_t n_blocks = matrix.n_panels() * std::max<int64_t>(16, matrix.n_k_blocks());
    scales.assign(static_cast<size_t>(n_blocks), 0.01f);
    sums.assign(static_cast<size_t>(matrix.n_panels() * 16), 0);
    matrix.tiles = tiles.data();
    matrix.row_scales = matrix.block_scales = scales.data();
    matrix.row_sums = sums.data();
  }
};

struct Context {
  explicit Context(kernels::cpu::Isa isa)
      : pool(usable_cpus()),
        memory(*Buffer::allocate(int64_t{1} << 30)),
        arena(memory.data(), memory.size_bytes()) {
    ctx.table = &kernels::cpu::table(isa);
    ctx.pool = &pool;
    ctx.arena = &arena;
  }
  ThreadPool pool;
  Buffer memory;
  Arena arena;
  ops::OpContext ctx;
};

inline std::vector<float> some_floats(int64_t n) {
  std::vector<float> v(static_cast<size_t>(n));
  uint32_t state = 7;
  for (float& x : v) {
    state = state * 1664525 + 1013904223;
    x = static_cast<float>(state >> 8) / static_cast<float>(1 << 24) - 0.5f;
  }
  return v;
}

/// Adds the counters GB/s (weights or cache read once) and GFLOP/s to a finished benchmark.
inline void report(::benchmark::State& state, double bytes, double operations) {
  const auto n = static_cast<double>(state.iterations());
  state.counters["GB/s"] = ::benchmark::Counter(bytes * n / 1e9, ::benchmark::Counter::kIsRate);
  state.counters["GFLOP/s"] =
      ::benchmark::Counter(operations * n / 1e9, ::benchmark::Counter::kIsRate);
}

struct Pair {
  DType activation;
  WeightFormat format;
};
inline constexpr Pair kPairs[] = {
    {DType::f32, WeightFormat::f32},   {DType::f32, WeightFormat::bf16},
    {DType::bf16, WeightFormat::bf16}, {DType::bf16, WeightFormat::fp8},
    {DType::i8, WeightFormat::int8},   {DType::i8, WeightFormat::int4}};

inline std::string name_of(const char* op, kernels::cpu::Isa isa, const Pair& p) {
  return std::string(op) + "/" + std::string(to_string(isa)) + "/" +
         std::string(to_string(p.activation)) + "x" + std::string(to_string(p.format));
}

/// Registers f(state, isa, pair) for every instruction set of this machine but the reference.
template <typename F>
void register_all(const char* op, std::vector<int64_t> args, F f) {
  for (kernels::cpu::Isa isa : kernels::cpu::supported_isas()) {
    if (isa == kernels::cpu::Isa::reference) continue;
    for (const Pair& p : kPairs) {
      auto* b = ::benchmark::RegisterBenchmark(
          name_of(op, isa, p).c_str(), [f, isa, p](::benchmark::State& s) { f(s, isa, p); });
      b->UseRealTime();
      for (int64_t a : args) b->Arg(a);
    }
  }
}

}  // namespace exo::bench
