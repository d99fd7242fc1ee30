/// e4m3 to bf16, exact for every code (subnormals, zeros of both signs, NaN): by tables with VBMI,
/// or usual codes by shifts. Include only from files compiled for AVX-512 VBMI (see matmul_layout.h
/// about linkage).
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace exo::kernels::cpu {
namespace {  // NOLINT: internal linkage on purpose

/// The bf16 bits of e4m3 code 0..127 times 2^power.
constexpr uint16_t bf16_of_e4m3(int code, int power) {
  const int exponent = code >> 3, mantissa = code & 7;
  if (code == 127) return 0x7FC0;
  if (exponent > 0) return static_cast<uint16_t>((exponent + 120 + power) << 7 | mantissa << 4);
  if (mantissa == 0) return 0;
  const int top = mantissa >= 4 ? 2 : mantissa >= 2 ? 1 : 0;  // mantissa * 2^-9
  return static_cast<uint16_t>((top + 118 + power) << 7 | (mantissa << (7 - top) & 127));
}

struct alignas(64) Fp8Tables {
  uint8_t low[128], high[128];
};
constexpr Fp8Tables make_fp8_tables(int power) {
  Fp8Tables t{};
  for (int i = 0; i < 128; ++i) {
    t.low[i] = static_cast<uint8_t>(bf16_of_e4m3(i, power));
    t.high[i] = static_cast<uint8_t>(bf16_of_e4m3(i, power) >> 8);
  }
  return t;
}
constexpr Fp8Tables kFp8Tables = make_fp8_tables(0);

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

/// By shifts codes come out times 2^kShiftedFp8Power: bf16 whose upper three bits of exponent are
/// the same for all.
constexpr int kShiftedFp8Power = -8;
constexpr Fp8Tables kShiftedFp8Tables = make_fp8_tables(kShiftedFp8Power);

/// Whether Fp8Widener's tables are needed for a line: for a NaN, a zero or a subnormal code, some
/// 1 of 9,000 where the largest weight of a block is 448.
inline __attribute__((always_inline)) bool is_unusual_fp8(__m512i line) {
  // Twice each code and 2 more, without the sign: 0 for NaNs, 2 to 16 for the others.
  const __m512i next = _mm512_add_epi8(line, _mm512_set1_epi8(1));
  return _mm512_cmple_epu8_mask(_mm512_add_epi8(next, next), _mm512_set1_epi8(16)) != 0;
}

/// A line without such codes to those of its bf16 tiles, as Fp8Widener with kShiftedFp8Tables does:
/// in six instructions spread over both vector ports, where that takes eight, seven of them on one.
inline __attribute__((always_inline)) void shift_fp8(__m512i line, __m512i* first,
                                                     __m512i* second) {
  constexpr int kAndOr = 0xEA;  // (a & b) | c
  const __m512i zero = _mm512_setzero_si512();
  const __m512i kept = _mm512_set1_epi16(static_cast<int16_t>(0x87F0));
  const __m512i set = _mm512_set1_epi16((120 + kShiftedFp8Power) << 7);
  const __m512i low = _mm512_srai_epi16(_mm512_unpacklo_epi8(zero, line), 4);
  const __m512i high = _mm512_srai_epi16(_mm512_unpackhi_epi8(zero, line), 4);
  *first = _mm512_ternarylogic_epi32(low, kept, set, kAndOr);
  *second = _mm512_ternarylogic_epi32(high, kept, set, kAndOr);
}

}  // namespace
}  // namespace exo::kernels::cpu
