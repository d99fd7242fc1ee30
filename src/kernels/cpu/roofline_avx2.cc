#if defined(__x86_64__)
#include <immintrin.h>

#include "kernels/cpu/roofline_loops.h"

namespace exo::kernels::cpu {
namespace {
constexpr int kChains = 12;
}  // namespace

uint64_t read_avx2(const std::byte* data, int64_t n_bytes) {
  constexpr int kStreams = 8;
  constexpr int64_t kAhead = 1024;
  const int64_t stream_bytes = n_bytes / kStreams;
  __m256i acc[kStreams] = {};
  for (int64_t i = 0; i < stream_bytes; i += 64) {
#pragma GCC unroll 8
    for (int s = 0; s < kStreams; ++s) {
      const std::byte* p = data + s * stream_bytes + i;
      _mm_prefetch(reinterpret_cast<const char*>(p + kAhead), _MM_HINT_T0);
      const auto* lines = reinterpret_cast<const __m256i*>(p);
      acc[s] = _mm256_or_si256(acc[s], _mm256_loadu_si256(lines));
      acc[s] = _mm256_or_si256(acc[s], _mm256_loadu_si256(lines + 1));
    }
  }
  uint64_t all = 0;
  for (const __m256i& v : acc) {
    alignas(64) uint64_t words[4];
    _mm256_store_si256(reinterpret_cast<__m256i*>(words), v);
    for (uint64_t word : words) all |= word;
  }
  return all;
}

double fp32_loop_avx2(int64_t n) {
  __m256 acc[kChains];
  const __m256 a = _mm256_set1_ps(0.5f), b = _mm256_set1_ps(1.0f);
  for (__m256& v : acc) v = b;
  for (int64_t i = 0; i < n; ++i) {
#pragma GCC unroll 12
    for (__m256& v : acc) {
      v = _mm256_fmadd_ps(v, a, b);
      asm volatile("" : "+x"(v));
    }
  }
  return kChains * 8 * 2;
}

double int8_loop_avx2(int64_t n) {
  __m256i acc[kChains];
  const __m256i a = _mm256_set1_epi16(3);
  for (__m256i& v : acc) v = a;
  for (int64_t i = 0; i < n; ++i) {
#pragma GCC unroll 12
    for (__m256i& v : acc) {
      v = _mm256_add_epi32(v, _mm256_madd_epi16(a, a));
      asm volatile("" : "+x"(v));
    }
  }
  return kChains * 16 * 2;
}

}  // namespace exo::kernels::cpu
#endif
