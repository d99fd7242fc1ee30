/// i8 activations times int8 and int4 weights with AVX-VNNI (256 bits: Alder Lake on, Zen 5): exact
/// int32 sums, the same bits as every other way. As in matmul_i8_avx512.cc the weights are the
/// unsigned side of vpdpbusd; a line of a tile is two vectors, of 8 outputs each.
#if defined(__x86_64__)
#include <immintrin.h>

#include "kernels/cpu/matmul_blocks.h"
#include "kernels/cpu/matmul_layout.h"
#include "kernels/cpu/matmul_vector_avx2.h"
#include "kernels/cpu/matmul_x86.h"

namespace exo::kernels::cpu {
namespace {

// Weights are streamed from memory while few rows are computed: a line is asked for this many bytes
// before its use.
constexpr int64_t kPrefetch = 2048;
constexpr int64_t kManyRows = 5;  // from here on weights are unpacked for all rows

inline __m256i load8(const uint8_t* p) {  // 8 bytes, the rest zero
  return _mm256_castsi128_si256(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}
struct Vector256 : Avx2Vector {
  static constexpr int kRows = 6;
  static Int add_128(Int v) { return _mm256_xor_si256(v, _mm256_set1_epi8(-128)); }
  static inline __attribute__((always_inline)) Int dot_bytes(Int sum, Int weights, Int x) {
    return _mm256_dpbusd_avx_epi32(sum, weights, x);
  }
};

// -- few rows: each weight byte read once ---------------------------------------------------------

// R rows with one panel of int8.
template <int R>
inline void int8_panel(const uint8_t* x, int64_t step, const uint8_t* w, int64_t n_tiles,
                       const int32_t* starts, uint8_t* sums) {
  // Few sums need several chains of additions to hide their latency.
  constexpr int kChains = R == 1 ? 4 : R == 2 ? 2 : 1;
  const __m256i flip = _mm256_set1_epi8(-128);
  __m256i acc[kChains][R][2];
  for (int c = 0; c < kChains; ++c) {
    for (int r = 0; r < R; ++r)
      acc[c][r][0] = acc[c][r][1] = c == 0 ? _mm256_set1_epi32(starts[r]) : Vector256::zero();
  }
  for (int64_t t = 0; t < n_tiles; ++t, w += kTile, x += step) {
#pragma GCC unroll 4
    for (int line = 0; line < 16; ++line) {
      const uint8_t* at = w + line * kLine;
      _mm_prefetch(reinterpret_cast<const char*>(at + kPrefetch), _MM_HINT_T0);
      const __m256i a = _mm256_xor_si256(load(at), flip);
      const __m256i b = _mm256_xor_si256(load(at + 32), flip);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        __m256i* to = acc[line % kChains][r];
        const __m256i v = broadcast4(x + r * kLine + line * 4);
        to[0] = _mm256_dpbusd_avx_epi32(to[0], a, v);
        to[1] = _mm256_dpbusd_avx_epi32(to[1], b, v);
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int i = 0; i < 2; ++i) {
      for (int c = 1; c < kChains; ++c) acc[0][r][i] = _mm256_add_epi32(acc[0][r][i], acc[c][r][i]);
      Vector256::store(sums + r * kLine + i * 32, acc[0][r][i]);
    }
  }
}

// R rows with one panel of int4. offsets: -8 * the group's activation sum, [R][n_groups].
template <int R>
inline void int4_panel(const uint8_t* x, int64_t step, const uint8_t* w, int64_t n_tiles,
                       const int32_t* offsets, int64_t n_groups, uint8_t* sums) {
  const __m256i low = _mm256_set1_epi8(15);
  __m256i total[R][2];
  for (int r = 0; r < R; ++r) total[r][0] = total[r][1] = Vector256::zero();
  for (int64_t t = 0; t < n_tiles; ++t, w += kInt4Tile, x += 2 * step, offsets += 4) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
#pragma GCC unroll 2
      for (int side = 0; side < 2; ++side) {  // outputs 0..7, 8..15
        __m256i a[R], b[R];
        for (int r = 0; r < R; ++r) {
          a[r] = _mm256_set1_epi32(offsets[r * n_groups + half]);
          b[r] = _mm256_set1_epi32(offsets[r * n_groups + half + 2]);
        }
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) {
          const int line = half * 8 + i;
          const uint8_t* at = w + (line + 1) * kLine + side * 32;
          if (side == 0) _mm_prefetch(reinterpret_cast<const char*>(at + kPrefetch), _MM_HINT_T0);
          const __m256i q = load(at);
          const __m256i qa = _mm256_and_si256(q, low);
          const __m256i qb = _mm256_and_si256(_mm256_srli_epi16(q, 4), low);
#pragma GCC unroll 4
          for (int r = 0; r < R; ++r) {
            a[r] = _mm256_dpbusd_avx_epi32(a[r], qa, broadcast4(x + r * kLine + line * 4));
            b[r] = _mm256_dpbusd_avx_epi32(b[r], qb, broadcast4(x + step + r * kLine + line * 4));
          }
        }
        // A group's sum of q * x has at most 32 * 8 * 127 = 32512, a word: both groups times their
        // multipliers (m[half], m[half + 2]) are one multiply-add of words.
        const __m128i pairs =
            _mm_unpacklo_epi8(_mm256_castsi256_si128(load8(w + half * 16 + side * 8)),
                              _mm256_castsi256_si128(load8(w + (half + 2) * 16 + side * 8)));
        const __m256i m = _mm256_cvtepi8_epi16(pairs);
        for (int r = 0; r < R; ++r) {
          const __m256i both = _mm256_blend_epi16(a[r], _mm256_slli_epi32(b[r], 16), 0xAA);
          total[r][side] = _mm256_dpwssd_avx_epi32(total[r][side], both, m);
        }
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int i = 0; i < 2; ++i) Vector256::store(sums + r * kLine + i * 32, total[r][i]);
  }
}

// R rows of one row tile with all panels of the task.
template <int R, bool kInt4>
void few_rows(const MatmulTask& task) {
  const PackedMatrix& w = *task.w;
  const RowTile tile = row_tile(*task.x, task.row_begin);
  const int64_t n_tiles = ceil_of(w.n_in, kInt4 ? 128 : 64), n_groups = n_tiles * 4;
  // int4: a correction for each group (n_in up to 524,288 / R columns fit the scratch); int8: one.
  auto* offsets = reinterpret_cast<int32_t*>(task.scratch);
  for (int r = 0; r < R; ++r) {
    const int32_t* group_sums = group_sums_of(*task.x, task.row_begin + r);
    for (int64_t g = 0; kInt4 && g < n_groups; ++g) offsets[r * n_groups + g] = -8 * group_sums[g];
    if (!kInt4) offsets[r] = -128 * row_sum_of(*task.x, task.row_begin + r);
  }
  alignas(64) uint8_t sums[R * kLine];
  for (int64_t p = 0; p < task.n_panels; ++p) {
    const int64_t panel = task.panel_begin + p;
    const uint8_t* from = tiles_of(w) + panel * n_tiles * (kInt4 ? kInt4Tile : kTile);
    if constexpr (kInt4) {
      int4_panel<R>(tile.data, tile.step, from, n_tiles, offsets, n_groups, sums);
    } else {
      int8_panel<R>(tile.data, tile.step, from, n_tiles, offsets, sums);
    }
    const Vector256::Writer writer(w, panel, true);
    for (int r = 0; r < R; ++r)
      writer.write(sums + r * kLine, task.x->scales[task.row_begin + r], task.accumulate,
                   task.out + r * task.out_stride + p * kPanelRows);
  }
}

template <bool kInt4>
void few_rows(const MatmulTask& task) {
  static constexpr void (*kFew[kManyRows - 1])(const MatmulTask&) = {
      few_rows<1, kInt4>, few_rows<2, kInt4>, few_rows<3, kInt4>, few_rows<4, kInt4>};
  kFew[task.n_rows - 1](task);
}

// -- many rows ------------------------------------------------------------------------------------

using Int8 = Int8Format<Vector256>;

// Of 8 outputs and one group: how (q ^ flip) * size - offset gives m * (q - 8) + 128 in bytes, as
// in unpack_int4_avx512.h.
struct Multiplier {
  __m256i flip, size, offset;

  explicit Multiplier(const uint8_t* m) {
    alignas(16) static constexpr uint8_t kSpread[16] = {0, 0, 0, 0, 4,  4,  4,  4,
                                                        8, 8, 8, 8, 12, 12, 12, 12};
    const __m256i value = _mm256_cvtepi8_epi32(_mm256_castsi256_si128(load8(m)));
    const __m256i negative = _mm256_srai_epi32(value, 31), s = _mm256_abs_epi32(value);
    const __m256i o = _mm256_sub_epi32(_mm256_slli_epi32(s, 3), _mm256_and_si256(s, negative));
    const __m256i spread =
        _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(kSpread)));
    flip = _mm256_and_si256(negative, _mm256_set1_epi8(15));
    size = _mm256_or_si256(s, _mm256_slli_epi32(s, 16));
    offset = _mm256_xor_si256(_mm256_shuffle_epi8(o, spread), _mm256_set1_epi8(-128));
  }
};

struct Int4 : Int4Format<Vector256> {
  static void unpack(const uint8_t* tile, uint8_t* to) {
    const __m256i nibble = _mm256_set1_epi8(15), high_nibble = _mm256_set1_epi8(-16);
    for (int half = 0; half < 2; ++half) {
      for (int side = 0; side < 2; ++side) {
        const Multiplier low(tile + 16 * half + 8 * side);
        const Multiplier high(tile + 32 + 16 * half + 8 * side);
        // The high nibbles stay where they are: (16 * q * size << 12) >> 16 is q * size.
        const __m256i high_flip = _mm256_slli_epi16(high.flip, 4);
        const __m256i high_size = _mm256_slli_epi16(high.size, 12);
        const uint8_t* from = tile + (1 + 8 * half) * kLine + 32 * side;
        uint8_t* line_to = to + 8 * half * kLine + 32 * side;
        for (int line = 0; line < 8; ++line, from += kLine, line_to += kLine) {
          const __m256i q = load(from);
          const __m256i a = _mm256_xor_si256(_mm256_and_si256(q, nibble), low.flip);
          const __m256i b = _mm256_xor_si256(_mm256_and_si256(q, high_nibble), high_flip);
          Vector256::store(line_to, _mm256_sub_epi8(_mm256_mullo_epi16(a, low.size), low.offset));
          Vector256::store(line_to + kTile,
                           _mm256_sub_epi8(_mm256_mulhi_epu16(b, high_size), high.offset));
        }
      }
    }
  }
};

}  // namespace

void matmul_i8_int8_avxvnni(const MatmulTask& task) {
  if (task.n_rows < kManyRows) return few_rows<false>(task);
  many_rows<Int8>(task);
}
void matmul_i8_int4_avxvnni(const MatmulTask& task) {
  if (task.n_rows < kManyRows) return few_rows<true>(task);
  many_rows<Int4>(task);
}

}  // namespace exo::kernels::cpu
#endif
