/// bf16 pairs of vectors: for files compiled for AVX-512 with BF16 alone (see matmul_layout.h about
/// linkage).
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace exo::kernels::cpu {
namespace {  // NOLINT: internal linkage on purpose

// Two vectors as 16 pairs of bf16: lane i is (low[i], high[i]).
inline __m512i bf16_pairs(__m512 low, __m512 high) {
  const __m512i both = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24,
                                         8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(order, both);
}

// 32 floats in order as one line of bf16.
inline __m512i bf16_line(__m512 first, __m512 second) {
  return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second, first));
}

// 32 bf16 values at p.
inline __m512bh pairs_at(const std::byte* p) {
  return reinterpret_cast<__m512bh>(_mm512_loadu_si512(p));
}
// Two bf16 values of a row in every lane.
inline __m512bh pair_at(const std::byte* p) {
  int32_t v;
  __builtin_memcpy(&v, p, 4);
  return reinterpret_cast<__m512bh>(_mm512_set1_epi32(v));
}

}  // namespace
}  // namespace exo::kernels::cpu
