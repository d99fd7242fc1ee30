/// e4m3 to bf16 with VBMI, exact for every code (subnormals, zeros of both signs, NaN). Include
/// only from files compiled for AVX-512 VBMI (see matmul_layout.h about linkage).
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace exo::kernels::cpu {
namespace {  // NOLINT: internal linkage on purpose

/// The bf16 bits of e4m3 code 0..127.
constexpr uint16_t bf16_of_e4m3(int code) {
  const int exponent = code >> 3, mantissa = code & 7;
  if (code == 127) return 0x7FC0;
  if (exponent > 0) return static_cast<uint16_t>((exponent + 120) << 7 | mantissa << 4);
  if (mantissa == 0) return 0;
  const int top = mantissa >= 4 ? 2 : mantissa >= 2 ? 1 : 0;  // mantissa * 2^-9
  return static_cast<uint16_t>((top + 118) << 7 | (mantissa << (7 - top) & 127));
}

struct alignas(64) Fp8Tables {
  uint8_t low[128], high[128];
};
constexpr Fp8Tables make_fp8_tables() {
  Fp8Tables t{};
  for (int i = 0; i < 128; ++i) {
    t.low[i] = static_cast<uint8_t>(bf16_of_e4m3(i));
    t.high[i] = static_cast<uint8_t>(bf16_of_e4m3(i) >> 8);
  }
  return t;
}
constexpr Fp8Tables kFp8Tables = make_fp8_tables();

/// The tables in registers.
struct Fp8Widener {
  __m512i low0, low1, high0, high1;

  explicit Fp8Widener(const Fp8Tables& t = kFp8Tables)
      : low0(_mm512_load_si512(t.low)),
        low1(_mm512_load_si512(t.low + 64)),
        high0(_mm512_load_si512(t.high)),
        high1(_mm512_load_si512(t.high + 64)) {}

  /// A line of an fp8 tile to a line of its first and of its second bf16 tile.
  inline __attribute__((always_inline)) void widen(__m512i line, __m512i* first,
                                                   __m512i* second) const {
    const __mmask64 upper = _mm512_test_epi8_mask(line, _mm512_set1_epi8(0x40));
    const __m512i low =
        _mm512_mask_permutexvar_epi8(_mm512_permutexvar_epi8(line, low0), upper, line, low1);
    const __m512i high =
        _mm512_mask_permutexvar_epi8(_mm512_permutexvar_epi8(line, high0), upper, line, high1);
    constexpr int kOrAnd = 0xF8;  // a | (b & c)
    const __m512i signed_high =
        _mm512_ternarylogic_epi32(high, line, _mm512_set1_epi8(-128), kOrAnd);
    *first = _mm512_unpacklo_epi8(low, signed_high);
    *second = _mm512_unpackhi_epi8(low, signed_high);
  }
};

}  // namespace
}  // namespace exo::kernels::cpu
