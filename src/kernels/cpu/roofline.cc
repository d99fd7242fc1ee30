#include "kernels/cpu/roofline.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <random>

#include "base/os.h"
#include "kernels/cpu/roofline_loops.h"
#include "tensor/buffer.h"
#include "tensor/dtype.h"

#if defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace exo::kernels::cpu {
namespace {

constexpr int64_t kReadTaskBytes = 8 << 20;
// At least so much is read, and twice the last-level cache (of which a virtual machine may have any
// part), but no more than a quarter of the free memory: what a cache holds is no measure for
// weights that it doesn't.
constexpr int64_t kLeastReadBytes = int64_t{256} << 20;
constexpr int64_t kMostReadBytes = int64_t{2} << 30;
constexpr int kRepeats = 8;
constexpr int kReadRepeats = 6;  // of each kind of streams
// Long enough for the clock to settle at what the units allow.
constexpr double kLoopSeconds = 0.01;

double seconds_of(auto&& f) {
  const auto begin = std::chrono::steady_clock::now();
  f();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// 16 sums at once: compilers make vectors of any width of it.
uint64_t read_words(const std::byte* data, int64_t n_bytes, Streams) {
  uint64_t sums[16] = {};
  for (int64_t i = 0; i < n_bytes; i += static_cast<int64_t>(sizeof(sums))) {
    uint64_t words[16];
    std::memcpy(words, data + i, sizeof(words));
    for (int j = 0; j < 16; ++j) sums[j] |= words[j];
  }
  uint64_t all = 0;
  for (uint64_t s : sums) all |= s;
  return all;
}

using ReadLoop = uint64_t (*)(const std::byte* data, int64_t n_bytes, Streams streams);

ReadLoop read_loop([[maybe_unused]] Isa isa) {
#if defined(__x86_64__)
  if (has_avx512(isa)) return read_avx512;
  if (isa == Isa::avx2 || isa == Isa::avxvnni) return read_avx2;
#endif
  return read_words;
}

Status allocate_memory(ThreadPool& pool, Buffer& memory) {
  const auto cache = static_cast<int64_t>(last_level_cache_bytes());
  const auto free = static_cast<int64_t>(available_memory_bytes());
  const int64_t n_bytes =
      std::clamp(std::min({2 * cache, free / 4, kMostReadBytes}), kLeastReadBytes, kMostReadBytes);
  EXO_ASSIGN_OR_RETURN(memory, Buffer::allocate(n_bytes / kReadTaskBytes * kReadTaskBytes));
  // Written once: pages never written could all be one page of zeros.
  pool.parallel_for(memory.size_bytes() / kReadTaskBytes, [&](int64_t task, int) {
    std::memset(memory.data() + task * kReadTaskBytes, 1, kReadTaskBytes);
  });
  return ok_status();
}

double read_gb_per_s(ThreadPool& pool, ReadLoop read, const Buffer& memory) {
  const int64_t n_tasks = memory.size_bytes() / kReadTaskBytes;
  double best = 1e9;
  for (int i = 0; i < kReadRepeats; ++i) {
    for (Streams streams : kAllStreams) {
      best = std::min(best, seconds_of([&] {
                        pool.parallel_for(n_tasks, [&](int64_t task, int) {
                          const uint64_t sum =
                              read(memory.data() + task * kReadTaskBytes, kReadTaskBytes, streams);
                          asm volatile("" : : "r"(sum));
                        });
                      }));
    }
  }
  return static_cast<double>(n_tasks * kReadTaskBytes) / best * 1e-9;
}

LoopOperands random_operands() {
  LoopOperands operands;
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  for (int i = 0; i < 2; ++i) {
    // The largest of a row is 127.
    for (int8_t& v : operands.i8[i])
      v = static_cast<int8_t>(std::clamp(std::round(normal(random) * 40), -127.0f, 127.0f));
    for (uint16_t& v : operands.bf16[i]) v = to_bf16(normal(random)).bits;
    for (float& v : operands.f32[i]) v = normal(random);
  }
  return operands;
}

// Operations a second of all threads in `loop`, the best of the repeats.
double loop_ops_per_s(ThreadPool& pool, OpsLoop loop) {
  static const LoopOperands operands = random_operands();
  int64_t n = 1000;
  double round_ops = 0;
  while (seconds_of([&] { round_ops = loop(n, operands); }) < kLoopSeconds / 4) n *= 2;
  n *= 2;
  double best = 0;
  const int threads = pool.n_threads();
  for (int i = 0; i < kRepeats; ++i) {
    const double s =
        seconds_of([&] { pool.parallel_for(threads, [&](int64_t, int) { loop(n, operands); }); });
    best = std::max(best, static_cast<double>(n) * threads * round_ops / s);
  }
  return best;
}

#if defined(__aarch64__)
double fp32_loop_neon(int64_t n, const LoopOperands& operands) {
  constexpr int kChains = 16;
  float32x4_t acc[kChains];
  const float32x4_t a = vld1q_f32(operands.f32[0]), b = vld1q_f32(operands.f32[1]);
  for (auto& v : acc) v = vdupq_n_f32(0);
  for (int64_t i = 0; i < n; ++i) {
    for (auto& v : acc) {
      v = vfmaq_f32(v, a, b);
      asm volatile("" : "+w"(v));
    }
  }
  return kChains * 4 * 2;
}
#endif

}  // namespace

Result<MachineLimits> measure_limits(ThreadPool& pool, Isa isa, Buffer& memory) {
  MachineLimits limits;
  if (memory.size_bytes() == 0) EXO_RETURN_IF_ERROR(allocate_memory(pool, memory));
  limits.read_gb_per_s = read_gb_per_s(pool, read_loop(isa), memory);
#if defined(__x86_64__)
  if (isa == Isa::amx) {
    limits.amx_int8_tops = loop_ops_per_s(pool, int8_loop_amx) * 1e-12;
    limits.amx_bf16_tflops = loop_ops_per_s(pool, bf16_loop_amx) * 1e-12;
    limits.int8_tops = limits.amx_int8_tops;
    limits.bf16_tflops = limits.amx_bf16_tflops;
  }
  if (isa == Isa::avx512bf16)
    limits.bf16_tflops = loop_ops_per_s(pool, bf16_loop_avx512bf16) * 1e-12;
  if (has_avx512(isa)) {
    limits.vnni_tops = loop_ops_per_s(pool, vnni_loop_avx512) * 1e-12;
    limits.fp32_gflops = loop_ops_per_s(pool, fp32_loop_avx512) * 1e-9;
    if (isa != Isa::amx) limits.int8_tops = limits.vnni_tops;
  }
  if (isa == Isa::avx2 || isa == Isa::avxvnni) {
    limits.fp32_gflops = loop_ops_per_s(pool, fp32_loop_avx2) * 1e-9;
    const auto loop = isa == Isa::avx2 ? int8_loop_avx2 : int8_loop_avxvnni;
    limits.int8_tops = loop_ops_per_s(pool, loop) * 1e-12;
    if (isa == Isa::avx2) limits.int4_tops = loop_ops_per_s(pool, int4_loop_avx2) * 1e-12;
  }
#elif defined(__aarch64__)
  if (isa == Isa::neon) limits.fp32_gflops = loop_ops_per_s(pool, fp32_loop_neon) * 1e-9;
#endif
  if (limits.int4_tops == 0) limits.int4_tops = limits.int8_tops;
  // Without units for bf16, its products run at the rate of fp32's.
  if (!has_bf16(isa)) limits.bf16_tflops = limits.fp32_gflops * 1e-3;
  return limits;
}

}  // namespace exo::kernels::cpu
