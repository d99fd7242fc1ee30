#if defined(__x86_64__)
#include <immintrin.h>

#include "kernels/cpu/roofline_loops.h"

namespace exo::kernels::cpu {
namespace {
constexpr int kChains = 16;
}  // namespace

uint64_t read_avx512(const std::byte* data, int64_t n_bytes) {
  constexpr int kStreams = 8;
  constexpr int64_t kAhead = 1024;
  const int64_t stream_bytes = n_bytes / kStreams;
  __m512i acc[kStreams] = {};
  for (int64_t i = 0; i < stream_bytes; i += 64) {
#pragma GCC unroll 8
    for (int s = 0; s < kStreams; ++s) {
      const std::byte* p = data + s * stream_bytes + i;
      _mm_prefetch(reinterpret_cast<const char*>(p + kAhead), _MM_HINT_T0);
      acc[s] = _mm512_or_si512(acc[s], _mm512_loadu_si512(p));
    }
  }
  uint64_t all = 0;
  for (const __m512i& v : acc) {
    alignas(64) uint64_t words[8];
    _mm512_store_si512(words, v);
    for (uint64_t word : words) all |= word;
  }
  return all;
}

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
