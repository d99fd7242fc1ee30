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

#if defined(__AVX512BF16__)
/// Tables of the codes' values times `scale`, rounded to bf16.
[[maybe_unused]] inline Fp8Tables scaled_fp8_tables(float scale) {
  alignas(64) static constexpr auto kBits = [] {
    struct {
      uint16_t v[128];
    } bits{};
    for (int i = 0; i < 128; ++i) bits.v[i] = bf16_of_e4m3(i);
    return bits;
  }();
  // Bytes 0, 2, 4 .. of two vectors.
  alignas(64) static constexpr auto kEven = [] {
    struct {
      uint8_t v[64];
    } even{};
    for (int i = 0; i < 64; ++i) even.v[i] = static_cast<uint8_t>(2 * i);
    return even;
  }();
  const __m512i even = _mm512_load_si512(kEven.v), odd = _mm512_or_si512(even, _mm512_set1_epi8(1));
  const auto scaled = [&](const uint16_t* bits) {  // 16 values
    const __m512i wide =
        _mm512_cvtepu16_epi32(_mm256_load_si256(reinterpret_cast<const __m256i*>(bits)));
    return _mm512_mul_ps(_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16)), _mm512_set1_ps(scale));
  };
  const auto rounded = [&](const uint16_t* bits) {  // 32 values
    return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(scaled(bits + 16), scaled(bits)));
  };
  Fp8Tables t;
  for (int i = 0; i < 128; i += 64) {
    const __m512i first = rounded(kBits.v + i), second = rounded(kBits.v + i + 32);
    _mm512_store_si512(t.low + i, _mm512_permutex2var_epi8(first, even, second));
    _mm512_store_si512(t.high + i, _mm512_permutex2var_epi8(first, odd, second));
  }
  return t;
}
#endif

}  // namespace
}  // namespace exo::kernels::cpu
