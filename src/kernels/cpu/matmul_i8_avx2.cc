/// i8 activations times int8 and int4 weights with AVX2: exact int32 sums, the same bits as every
/// other way. vpmaddubsw multiplies unsigned by signed bytes and adds two products to a word, which
/// saturates.
/// int8: |w| times the activations with w's sign stays below that: 2 * 128 * 127 = 32512.
/// int4: a group's words add up eight lines of q (0..15), 8 * 2 * 15 * 127 = 30480, before they
/// meet the multiplier; less 8 * the group's activation sum they are q - 8, again a word.
#if defined(__x86_64__)
#include <immintrin.h>

#include "kernels/cpu/matmul_blocks.h"
#include "kernels/cpu/matmul_layout.h"
#include "kernels/cpu/matmul_vector_avx2.h"
#include "kernels/cpu/matmul_x86.h"

namespace exo::kernels::cpu {
namespace {

// Weights are streamed from memory while few rows are computed, in so many streams; a line is asked
// for so many bytes before its use. Farther than that Zen 3 reads slower than unasked (20 GB/s for
// 25, 2 threads).
constexpr int kStreams = 2;
constexpr int64_t kPrefetch = 768;
constexpr int64_t kManyRows = 9;  // from here on in blocks
constexpr int kRegisterRows = 4;

inline void prefetch(const uint8_t* p) {
  _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0);
}

// The sum as it is, in its register: GCC 12 would add a row's products up in another order, and
// keep all of them in memory until then.
inline __attribute__((always_inline)) __m256i in_order(__m256i sum) {
  asm("" : "+x"(sum));
  return sum;
}

struct Vector256 : Avx2Vector {
  static constexpr int kRows = kRegisterRows;
};

inline __attribute__((always_inline)) __m256i dot_int8(__m256i sum, __m256i w, __m256i x) {
  const __m256i words = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
  return in_order(_mm256_add_epi32(sum, _mm256_madd_epi16(words, _mm256_set1_epi16(1))));
}

// Where a group's q are: the low or high nibbles of bytes, or bytes of their own.
enum class Q { low, high, bytes };

template <Q kQ>
inline __attribute__((always_inline)) __m256i q_of(__m256i v) {
  if (kQ == Q::bytes) return v;
  return _mm256_and_si256(kQ == Q::low ? v : _mm256_srli_epi16(v, 4), _mm256_set1_epi8(15));
}

// What a group of activations is, of some rows.
struct Group {
  const uint8_t* x;  // the first row's first piece; rows are kLine apart
  const int32_t* sums;
  int64_t sums_apart;
};

// words[i][r][side] = the sums of 8 lines of 16 outputs of the i-th of the groups that they hold:
// (q - 8) * x in two words an output. The line kAsk bytes behind each is asked for, if not 0.
template <int R, int64_t kAsk, Q... kQ>
inline __attribute__((always_inline)) void group_words(const uint8_t* w,
                                                       const Group (&groups)[sizeof...(kQ)],
                                                       __m256i (*words)[R][2]) {
  constexpr int kGroups = sizeof...(kQ);
#pragma GCC unroll 8
  for (int line = 0; line < 8; ++line, w += kLine) {
    if (kAsk != 0) prefetch(w + kAsk);
    const __m256i first = load(w), second = load(w + 32);
    const __m256i q[kGroups][2] = {{q_of<kQ>(first), q_of<kQ>(second)}...};
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
      for (int i = 0; i < kGroups; ++i) {
        const __m256i x = broadcast4(groups[i].x + r * kLine + line * 4);
        __m256i offset = Vector256::zero();
        if (line == 0)  // 8 * the activations' sum in the upper word of each output
          offset = _mm256_slli_epi32(broadcast4(groups[i].sums + r * groups[i].sums_apart), 19);
#pragma GCC unroll 2
        for (int side = 0; side < 2; ++side) {
          const __m256i products = _mm256_maddubs_epi16(q[i][side], x);
          __m256i& sum = words[i][r][side];
          sum = in_order(line == 0 ? _mm256_sub_epi16(products, offset)
                                   : _mm256_add_epi16(sum, products));
        }
      }
    }
  }
}

// The multipliers of a group as two equal words of each output: 0..7, 8..15.
inline void multiplier_words(const uint8_t* group, __m256i* m) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(group));
  m[0] = _mm256_cvtepi8_epi16(_mm_unpacklo_epi8(bytes, bytes));
  m[1] = _mm256_cvtepi8_epi16(_mm_unpackhi_epi8(bytes, bytes));
}

// -- few rows: each weight byte read once ---------------------------------------------------------

// Some rows of one row tile.
struct FewRows {
  const uint8_t* x;
  int64_t step;  // to the next K tile
  const int32_t* group_sums;
  int64_t n_groups;
};

// Adds a K tile of the format to the sums of rows [kFirst, kFirst + R).
template <int R, bool kInt4, int kFirst = 0>
inline void add_tile(const FewRows& rows, int64_t t, const uint8_t* w, __m256i (*sums)[2]) {
  if constexpr (R > kRegisterRows) {  // the second half finds the tile in the L1 cache
    add_tile<(R + 1) / 2, kInt4, kFirst>(rows, t, w, sums);
    add_tile<R / 2, kInt4, kFirst + (R + 1) / 2>(rows, t, w, sums);
  } else if constexpr (kInt4) {
    constexpr int64_t kAsk = kFirst == 0 ? kPrefetch : 0;
    for (int half = 0; half < 2; ++half) {  // groups half and half + 2
      const uint8_t* lines = w + kLine + half * 8 * kLine;
      const uint8_t* x = rows.x + 2 * t * rows.step + kFirst * kLine + half * 32;
      const int32_t* group_sums = rows.group_sums + kFirst * rows.n_groups + t * 4 + half;
      const Group low = {x, group_sums, rows.n_groups};
      const Group high = {x + rows.step, group_sums + 2, rows.n_groups};
      __m256i words[2][R][2];
      if constexpr (R <= 2) {  // both groups' sums fit the registers
        group_words<R, kAsk, Q::low, Q::high>(lines, {low, high}, words);
      } else {
        group_words<R, kAsk, Q::low>(lines, {low}, words);
        group_words<R, 0, Q::high>(lines, {high}, words + 1);
      }
      for (int i = 0; i < 2; ++i) {
        __m256i m[2];
        multiplier_words(w + (half + 2 * i) * 16, m);
        for (int r = 0; r < R; ++r) {
          for (int side = 0; side < 2; ++side) {
            __m256i& sum = sums[kFirst + r][side];
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(words[i][r][side], m[side]));
          }
        }
      }
    }
  } else {
    const uint8_t* x = rows.x + t * rows.step + kFirst * kLine;
    __m256i acc[R][2];
    for (int r = 0; r < R; ++r) {
      for (int i = 0; i < 2; ++i) acc[r][i] = sums[kFirst + r][i];
    }
#pragma GCC unroll 4
    for (int line = 0; line < 16; ++line) {
      if (kFirst == 0) prefetch(w + line * kLine + kPrefetch);
      const __m256i a = load(w + line * kLine), b = load(w + line * kLine + 32);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const __m256i v = broadcast4(x + r * kLine + line * 4);
        acc[r][0] = dot_int8(acc[r][0], a, v);
        acc[r][1] = dot_int8(acc[r][1], b, v);
      }
    }
    for (int r = 0; r < R; ++r) {
      for (int i = 0; i < 2; ++i) sums[kFirst + r][i] = acc[r][i];
    }
  }
}

// R rows with P panels, `apart` from one another: several streams at once find more of the memory's
// bandwidth than one.
template <int R, bool kInt4, int P>
void add_panels(const MatmulTask& task, const FewRows& rows, int64_t panel, int64_t apart) {
  constexpr int64_t kBytes = kInt4 ? kInt4Tile : kTile;
  const PackedMatrix& w = *task.w;
  const int64_t n_tiles = ceil_of(w.n_in, kInt4 ? 128 : 64), stride = apart * n_tiles * kBytes;
  const uint8_t* from = tiles_of(w) + panel * n_tiles * kBytes;
  alignas(32) __m256i sums[P][R][2];
  for (int p = 0; p < P; ++p) {
    for (int r = 0; r < R; ++r) sums[p][r][0] = sums[p][r][1] = Vector256::zero();
  }
  for (int64_t t = 0; t < n_tiles; ++t, from += kBytes) {
    for (int p = 0; p < P; ++p) add_tile<R, kInt4>(rows, t, from + p * stride, sums[p]);
  }
  for (int p = 0; p < P; ++p) {
    const int64_t at = panel + p * apart;
    const Vector256::Writer writer(w, at, true);
    for (int r = 0; r < R; ++r)
      writer.write(reinterpret_cast<const uint8_t*>(sums[p][r]), task.x->scales[task.row_begin + r],
                   task.accumulate,
                   task.out + r * task.out_stride + (at - task.panel_begin) * kPanelRows);
  }
}

// R rows of one row tile with all panels of the task.
template <int R, bool kInt4>
void few_rows(const MatmulTask& task) {
  const RowTile tile = row_tile(*task.x, task.row_begin);
  const FewRows rows = {tile.data, tile.step, group_sums_of(*task.x, task.row_begin),
                        padded_groups(*task.x)};
  const int64_t apart = task.n_panels / kStreams, end = task.panel_begin + task.n_panels;
  for (int64_t p = 0; p < apart; ++p)
    add_panels<R, kInt4, kStreams>(task, rows, task.panel_begin + p, apart);
  for (int64_t p = task.panel_begin + kStreams * apart; p < end; ++p)
    add_panels<R, kInt4, 1>(task, rows, p, 1);
}

template <bool kInt4>
void few_rows(const MatmulTask& task) {
  static constexpr void (*kFew[kManyRows - 1])(const MatmulTask&) = {
      few_rows<1, kInt4>, few_rows<2, kInt4>, few_rows<3, kInt4>, few_rows<4, kInt4>,
      few_rows<5, kInt4>, few_rows<6, kInt4>, few_rows<7, kInt4>, few_rows<8, kInt4>};
  kFew[task.n_rows - 1](task);
}

// -- many rows ------------------------------------------------------------------------------------

struct Integers {
  using Vector = Vector256;
  static constexpr bool kInteger = true, kScaled = false;
  static int64_t block_tiles(const PackedMatrix&) { return kBlockTiles; }
  static int32_t start(const PackedRows&, int64_t) { return 0; }
};

struct Int8 : Integers {
  static constexpr int64_t kSourceCols = 64, kSourceBytes = kTile, kTilesPerSource = 1;
  static constexpr int64_t kUnpackedTile = 0;
  static inline __attribute__((always_inline)) __m256i dot(__m256i sum, __m256i w, __m256i x) {
    return dot_int8(sum, w, x);
  }
};

// Rows that a core's second-level cache holds for one panel after another, whose products need a
// row's byte for 16 outputs: 512 rows of 2,048 columns at once take a tenth longer.
constexpr int64_t kPassRowsInCache = 256;

// A K tile is unpacked to 16 lines of q in bytes and the multiplier words of its two groups.
struct Int4 : Integers {
  static constexpr int64_t kSourceCols = 128, kSourceBytes = kInt4Tile, kTilesPerSource = 2;
  static constexpr int64_t kUnpackedTile = kTile + 2 * kLine;

  static void unpack(const uint8_t* tile, uint8_t* to) {
    for (int64_t i = 0; i < kTile; i += 32) {
      Vector256::store(to + i, q_of<Q::low>(load(tile + kLine + i)));
      Vector256::store(to + kUnpackedTile + i, q_of<Q::high>(load(tile + kLine + i)));
    }
    for (int group = 0; group < 4; ++group) {
      __m256i m[2];
      multiplier_words(tile + group * 16, m);
      uint8_t* words = to + group / 2 * kUnpackedTile + kTile + group % 2 * kLine;
      for (int i = 0; i < 2; ++i) Vector256::store(words + i * 32, m[i]);
    }
  }

  template <int R, int P>
  static __attribute__((noinline)) void multiply(const RowsOfBlock& b, Ahead& ahead) {
    static_assert(P == 1);
    const uint8_t *x = b.x, *w = b.w;
    const int32_t* group_sums = b.group_sums;
    if (b.first) {
      for (int i = 0; i < 2 * R; ++i) Vector256::store(b.sums + i * 32, Vector256::zero());
    }
    for (int64_t t = 0; t < b.n_tiles; ++t, w += kUnpackedTile, x += b.step) {
      ahead.step();
      for (int group = 0; group < 2; ++group, ++group_sums) {
        __m256i words[1][R][2];
        group_words<R, 0, Q::bytes>(w + group * 8 * kLine,
                                    {{x + group * 32, group_sums, b.n_groups}}, words);
        const uint8_t* m = w + kTile + group * kLine;
        for (int r = 0; r < R; ++r) {
          for (int i = 0; i < 2; ++i) {
            uint8_t* sum = b.sums + r * kLine + i * 32;
            const __m256i products = _mm256_madd_epi16(words[0][r][i], load(m + i * 32));
            Vector256::store(sum, _mm256_add_epi32(load(sum), products));
          }
        }
      }
    }
  }
};

}  // namespace

void matmul_i8_int8_avx2(const MatmulTask& task) {
  if (task.n_rows < kManyRows) return few_rows<false>(task);
  many_rows<Int8>(task);
}
void matmul_i8_int4_avx2(const MatmulTask& task) {
  if (task.n_rows < kManyRows) return few_rows<true>(task);
  many_rows<Int4, kPassRowsInCache>(task);
}

}  // namespace exo::kernels::cpu
#endif
