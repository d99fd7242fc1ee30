/// int4 tiles to int8 tiles, m * (q - 8), or that + 128 as unsigned bytes. Include only from files
/// compiled for AVX-512 VBMI (see matmul_layout.h about linkage).
#pragma once

#include <immintrin.h>

#include "kernels/cpu/matmul_layout.h"

namespace exo::kernels::cpu {
namespace {  // NOLINT: internal linkage on purpose

// Of 16 outputs and one group: how (q ^ flip) * size - offset gives m * (q - 8) in bytes without a
// carry from one byte to the next. A negative m counts q from the other end: -(q - 8) = (15 - q) -
// 7.
struct Multiplier {
  __m512i flip, size, offset;
};

// Bytes 16 * group .. of a line, each four times.
struct alignas(64) SpreadGroup {
  uint8_t index[4][64];
};
constexpr SpreadGroup make_spread_group() {
  SpreadGroup s{};
  for (int g = 0; g < 4; ++g) {
    for (int i = 0; i < 64; ++i) s.index[g][i] = static_cast<uint8_t>(16 * g + i / 4);
  }
  return s;
}
constexpr SpreadGroup kSpreadGroup = make_spread_group();

// Those of groups `half`, whose codes are low nibbles, and half + 2: high nibbles, which stay where
// they are: (16 * q * size << 12) >> 16 is q * size.
template <bool kUnsigned>
inline __attribute__((always_inline)) void multipliers(const uint8_t* tile, int half,
                                                       Multiplier* low, Multiplier* high) {
  const __m512i m = _mm512_loadu_si512(tile), size = _mm512_abs_epi8(m);
  const __mmask64 negative = _mm512_movepi8_mask(m);
  const __m512i eight = _mm512_slli_epi16(size, 3);  // size <= 15
  const __m512i less = _mm512_mask_sub_epi8(eight, negative, eight, size);
  const __m512i offset = kUnsigned ? _mm512_xor_si512(less, _mm512_set1_epi8(-128)) : less;
  const __m512i flip = _mm512_movm_epi8(negative);
  const __m512i low_index = _mm512_load_si512(kSpreadGroup.index[half]);
  const __m512i high_index = _mm512_load_si512(kSpreadGroup.index[half + 2]);
  constexpr __mmask64 kEven = 0x5555555555555555, kOdd = 0xAAAAAAAAAAAAAAAA;
  *low = {_mm512_and_si512(_mm512_permutexvar_epi8(low_index, flip), _mm512_set1_epi8(15)),
          _mm512_maskz_permutexvar_epi8(kEven, low_index, size),
          _mm512_permutexvar_epi8(low_index, offset)};
  *high = {_mm512_and_si512(_mm512_permutexvar_epi8(high_index, flip), _mm512_set1_epi8(-16)),
           _mm512_maskz_permutexvar_epi8(kOdd, high_index, _mm512_slli_epi16(size, 4)),
           _mm512_permutexvar_epi8(high_index, offset)};
}

// Lines 8 * half .. of a tile on their way to the same lines of two int8 tiles.
template <bool kUnsigned>
class Int4Half {
 public:
  inline __attribute__((always_inline)) Int4Half(const uint8_t* tile, int half, uint8_t* to)
      : from_(tile + (1 + 8 * half) * kLine), to_(to + 8 * half * kLine) {
    multipliers<kUnsigned>(tile, half, &low_, &high_);
  }
  // Of its eight lines, those from `begin` to `end`.
  inline __attribute__((always_inline)) void lines(int begin, int end) const {
    constexpr int kAndXor = 0x78;  // (a & b) ^ c in the order (c, a, b)
    const __m512i nibble = _mm512_set1_epi8(15), high_nibble = _mm512_set1_epi8(-16);
#pragma GCC unroll 8
    for (int line = begin; line < end; ++line) {
      const __m512i q = _mm512_loadu_si512(from_ + line * kLine);
      const __m512i a = _mm512_ternarylogic_epi32(low_.flip, q, nibble, kAndXor);
      const __m512i b = _mm512_ternarylogic_epi32(high_.flip, q, high_nibble, kAndXor);
      _mm512_store_si512(to_ + line * kLine,
                         _mm512_sub_epi8(_mm512_mullo_epi16(a, low_.size), low_.offset));
      _mm512_store_si512(to_ + kTile + line * kLine,
                         _mm512_sub_epi8(_mm512_mulhi_epu16(b, high_.size), high_.offset));
    }
  }

 private:
  Multiplier low_, high_;
  const uint8_t* from_;
  uint8_t* to_;
};

}  // namespace
}  // namespace exo::kernels::cpu
