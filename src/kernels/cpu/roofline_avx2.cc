#if defined(__x86_64__)
#include <immintrin.h>

#include "kernels/cpu/roofline_loops.h"

namespace exo::kernels::cpu {
namespace {
constexpr int kChains = 12;
}  // namespace

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
