/// int4 tiles to int8 tiles, m * (q - 8), or that + 128 as unsigned bytes. Include only from files
/// compiled for AVX-512 BW (see matmul_layout.h about linkage).
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

template <bool kUnsigned>
inline Multiplier multiplier(const uint8_t* m) {
  alignas(64) static constexpr uint8_t kSpread[16] = {0, 0, 0, 0, 4,  4,  4,  4,
                                                      8, 8, 8, 8, 12, 12, 12, 12};
  const __m512i value = _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(m)));
  const __m512i negative = _mm512_srai_epi32(value, 31), size = _mm512_abs_epi32(value);
  const __m512i offset =
      _mm512_sub_epi32(_mm512_slli_epi32(size, 3), _mm512_and_si512(size, negative));
  const __m512i spread =
      _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(kSpread)));
  return {_mm512_and_si512(negative, _mm512_set1_epi8(15)),
          _mm512_or_si512(size, _mm512_slli_epi32(size, 16)),
          _mm512_xor_si512(_mm512_shuffle_epi8(offset, spread),
                           _mm512_set1_epi8(kUnsigned ? -128 : 0))};
}

// Lines 8 * half .. of a tile on their way to the same lines of two int8 tiles.
template <bool kUnsigned>
class Int4Half {
 public:
  inline __attribute__((always_inline)) Int4Half(const uint8_t* tile, int half, uint8_t* to)
      : low_(multiplier<kUnsigned>(tile + 16 * half)),
        high_(multiplier<kUnsigned>(tile + 32 + 16 * half)),
        from_(tile + (1 + 8 * half) * kLine),
        to_(to + 8 * half * kLine) {
    // The high nibbles stay where they are: (16 * q * size << 12) >> 16 is q * size.
    high_.flip = _mm512_slli_epi16(high_.flip, 4);
    high_.size = _mm512_slli_epi16(high_.size, 12);
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
