/// silu(gate) * up of 16 columns in registers, with the bits of VectorKernels::silu_mul, whose
/// arithmetic this is (vector_math-inl.h). Include only from files compiled for AVX-512 (see
/// matmul_layout.h about linkage).
#pragma once

#include <immintrin.h>

namespace exo::kernels::cpu {
namespace {  // NOLINT: internal linkage on purpose

inline __m512 silu_mul_16(__m512 gate, __m512 up) {
  const __m512 x = _mm512_xor_ps(gate, _mm512_set1_ps(-0.0f));
  // In this order a NaN comes through.
  const __m512 clamped =
      _mm512_min_ps(_mm512_set1_ps(89.0f), _mm512_max_ps(_mm512_set1_ps(-104.0f), x));
  const __m512 n = _mm512_cvtepi32_ps(
      _mm512_cvtps_epi32(_mm512_mul_ps(clamped, _mm512_set1_ps(1.44269504088896341f))));
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), clamped);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 p = _mm512_set1_ps(1.9875691500e-4f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
  p = _mm512_add_ps(_mm512_fmadd_ps(p, _mm512_mul_ps(r, r), r), _mm512_set1_ps(1.0f));
  const __m512 denominator = _mm512_add_ps(_mm512_set1_ps(1.0f), _mm512_scalef_ps(p, n));
  return _mm512_mul_ps(_mm512_div_ps(gate, denominator), up);
}

}  // namespace
}  // namespace exo::kernels::cpu
