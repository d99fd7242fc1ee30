// ops::linear over a list of matrices far larger than the caches, as a forward runs it: GB/s of
// weights and TOPS, each as a share of the limit measured at the start of this program. Names:
// <isa>/<format>/<rows>/<threads>. At few rows the memory binds, at many the matrix unit. With
// /outliers behind it, 0.1% of the columns are 100 times as large and kept as wide integers
// (ops/wide_columns.h).
//   matmul_bench --benchmark_filter='amx/int4/.*/2'
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>
#include <memory>
#include <random>

#include "base/os.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/roofline.h"
#include "ops/ops.h"
#include "ops/testing/packed.h"

namespace exo::kernels::cpu {
namespace {

constexpr int64_t kOut = 1408, kIn = 2048, kOutlierColumns = 2;
constexpr int64_t kWeightBytes = int64_t{192} << 20;  // the list's size: no cache holds it

// A list of matrices of random bytes in one block of memory.
struct Matrices {
  Buffer tiles;
  std::vector<float> scales;
  std::vector<int32_t> sums;
  std::vector<PackedMatrix> list;
};

Matrices make_matrices(WeightFormat format) {
  Matrices m;
  PackedMatrix w{.format = format, .n_out = kOut, .n_in = kIn, .k_block = 128};
  const int64_t n = std::max<int64_t>(1, kWeightBytes / w.weight_bytes());
  m.tiles = *Buffer::allocate(n * w.weight_bytes());
  std::mt19937_64 rng(1);
  // No NaN and no denormal in any format: bytes 0x30..0x3F are small bf16 and fp8 numbers.
  for (int64_t i = 0; i < n * w.weight_bytes(); i += 8) {
    const uint64_t word = (rng() & 0x8F8F8F8F8F8F8F8F) | 0x3030303030303030;
    std::memcpy(m.tiles.data() + i, &word, 8);
  }
  m.scales.assign(static_cast<size_t>(w.n_panels() * std::max<int64_t>(16, w.n_k_blocks())), 0.01f);
  m.sums.assign(static_cast<size_t>(w.n_panels() * 16), 0);
  for (int64_t i = 0; i < n; ++i) {
    w.tiles = m.tiles.data() + i * w.weight_bytes();
    w.row_scales = w.block_scales = m.scales.data();
    w.row_sums = m.sums.data();
    m.list.push_back(w);
  }
  return m;
}

MachineLimits limits_of(Isa isa, int n_threads) {
  static std::map<std::pair<Isa, int>, MachineLimits> known;
  auto it = known.find({isa, n_threads});
  if (it == known.end()) {
    ThreadPool pool(n_threads);
    Buffer memory;
    const MachineLimits l = *measure_limits(pool, isa, memory);
    std::fprintf(stderr,
                 "limits %s, %d threads: %.1f GB/s, int8 %.2f TOPS, bf16 %.2f TFLOPS, fp32 %.0f "
                 "GFLOPS\n",
                 std::string(to_string(isa)).c_str(), n_threads, l.read_gb_per_s, l.int8_tops,
                 l.bf16_tflops, l.fp32_gflops);
    it = known.emplace(std::pair{isa, n_threads}, l).first;
  }
  return it->second;
}

void linear_bench(benchmark::State& state, Isa isa, WeightFormat format, int64_t n_rows,
                  int n_threads, bool outliers) {
  static std::map<WeightFormat, Matrices> cache;
  if (!cache.contains(format)) {
    cache.clear();
    cache.emplace(format, make_matrices(format));
  }
  const Matrices& m = cache.at(format);
  const MachineLimits limits = limits_of(isa, n_threads);
  ops::testing::TestContext t(table(isa), n_threads);
  const DType activation = ops::activation_dtype(format, false);
  auto x = ops::testing::random_floats(n_rows * kIn, 2);
  for (int64_t i = 77; outliers && i < n_rows * kIn; i += kIn / kOutlierColumns)
    x[static_cast<size_t>(i)] = std::copysign(100.0f, x[static_cast<size_t>(i)]);
  std::vector<float> out(static_cast<size_t>(n_rows * kOut));
  const PackedRows packed = *ops::pack(make_view(x.data(), {n_rows, kIn}), activation, t.ctx);
  size_t next = 0;
  for (auto _ : state) {
    const PackedMatrix& w = m.list[next++ % m.list.size()];
    const Status s =
        ops::linear({.x = packed, .w = &w, .out = make_view(out.data(), {n_rows, kOut})}, t.ctx);
    if (!s.ok()) state.SkipWithError(s.message().c_str());
  }
  const double runs = static_cast<double>(state.iterations());
  const double bytes = static_cast<double>(m.list[0].weight_bytes());
  const double ops = 2.0 * static_cast<double>(kOut * kIn * n_rows);
  const double peak = activation != DType::i8        ? limits.bf16_tflops
                      : format == WeightFormat::int4 ? limits.int4_tops
                                                     : limits.int8_tops;
  const double limit_s = std::max(bytes / (limits.read_gb_per_s * 1e9), ops / (peak * 1e12));
  using C = benchmark::Counter;
  state.counters["GB/s"] = C(runs * bytes * 1e-9, C::kIsRate);
  state.counters["TOPS"] = C(runs * ops * 1e-12, C::kIsRate);
  state.counters["%read"] = C(runs * bytes * 1e-7 / limits.read_gb_per_s, C::kIsRate);
  state.counters["%peak"] = C(runs * ops * 1e-10 / peak, C::kIsRate);
  state.counters["%roof"] = C(runs * limit_s * 100, C::kIsRate);
}

void register_all() {
  const int n_cpus = usable_cpus();
  for (Isa isa : supported_isas()) {
    if (isa == Isa::reference) continue;
    for (WeightFormat f :
         {WeightFormat::int4, WeightFormat::int8, WeightFormat::bf16, WeightFormat::fp8}) {
      for (int64_t rows : {1, 2, 4, 8, 16, 32, 48, 64, 128, 192, 512}) {
        for (int threads = 1; threads <= n_cpus; threads = threads < n_cpus ? n_cpus : n_cpus + 1) {
          const std::string name = std::string(to_string(isa)) + "/" + std::string(to_string(f)) +
                                   "/" + std::to_string(rows) + "/" + std::to_string(threads);
          const bool integers = f == WeightFormat::int4 || f == WeightFormat::int8;
          for (const bool outliers : {false, true}) {
            if (outliers && !integers) continue;
            benchmark::RegisterBenchmark((name + (outliers ? "/outliers" : "")).c_str(),
                                         linear_bench, isa, f, rows, threads, outliers)
                ->UseRealTime()
                ->Unit(benchmark::kMicrosecond);
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace exo::kernels::cpu

int main(int argc, char** argv) {
  exo::kernels::cpu::register_all();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
