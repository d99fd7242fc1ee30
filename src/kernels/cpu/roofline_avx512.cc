#if defined(__x86_64__)
#include <immintrin.h>

#include "kernels/cpu/roofline_loops.h"

namespace exo::kernels::cpu {
namespace {
constexpr int kChains = 16;
}  // namespace

double fp32_loop_avx512(int64_t n) {
  __m512 acc[kChains];
  const __m512 a = _mm512_set1_ps(0.5f), b = _mm512_set1_ps(1.0f);
  for (__m512& v : acc) v = b;
  for (int64_t i = 0; i < n; ++i) {
#pragma GCC unroll 16
    for (__m512& v : acc) {
      v = _mm512_fmadd_ps(v, a, b);
      asm volatile("" : "+v"(v));
    }
  }
  return kChains * 16 * 2;
}

double vnni_loop_avx512(int64_t n) {
  __m512i acc[kChains];
  const __m512i a = _mm512_set1_epi8(3);
  for (__m512i& v : acc) v = a;
  for (int64_t i = 0; i < n; ++i) {
#pragma GCC unroll 16
    for (__m512i& v : acc) {
      v = _mm512_dpbusd_epi32(v, a, a);
      asm volatile("" : "+v"(v));
    }
  }
  return kChains * 64 * 2;
}

}  // namespace exo::kernels::cpu
#endif
