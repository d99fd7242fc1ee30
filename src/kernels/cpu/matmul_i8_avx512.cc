/// i8 activations times int8 and int4 weights with AVX-512 VNNI: exact int32 sums, so any order and
/// any blocking gives the reference's bits. vpdpbusd multiplies unsigned by signed bytes: the
/// weights are the unsigned side (int8: q + 128, int4: q + 8 as stored), the activation the signed
/// one, broadcast 4 bytes at a time, and the surplus is the activations' sum times the offset.
#if defined(__x86_64__)
#include <immintrin.h>

#include <type_traits>

#include "kernels/cpu/matmul_layout.h"
#include "kernels/cpu/matmul_vector_avx512.h"
#include "kernels/cpu/matmul_x86.h"
#include "kernels/cpu/unpack_int4_avx512.h"

namespace exo::kernels::cpu {
namespace {

// Weights are streamed from memory while few rows are computed. A line is asked for some time
// before its use: the hardware's own streamer stops at each 4 KiB page.
struct AskAhead {
  int64_t n_bytes;

  inline void line(const uint8_t* at, int) const {
    _mm_prefetch(reinterpret_cast<const char*>(at + n_bytes), _MM_HINT_T0);
  }
};

// Where a panel's products take longer than its reading: all lines of what comes next, in the order
// of memory, one for each line of the first panel.
struct AskNext {
  const uint8_t *at, *end;

  inline void line(const uint8_t*, int panel) {
    if (panel != 0 || at >= end) return;
    _mm_prefetch(reinterpret_cast<const char*>(at), _MM_HINT_T1);
    at += kLine;
  }
};
// Fewer weights than that, such as a head's of the absorbed attention, are read in at most four
// streams.
constexpr int64_t kShortTaskBytes = 64 << 10;
constexpr int64_t kManyRows = 9;  // from here on weights are unpacked for all rows

inline __m512i broadcast4(const uint8_t* p) {
  int32_t v;
  __builtin_memcpy(&v, p, 4);
  return _mm512_set1_epi32(v);
}

// R rows from x (a row tile's line of its first row) with P panels of int8, `stride` bytes apart:
// several streams at once find more of the memory's bandwidth than one.
template <int R, int P>
inline void int8_panels(const uint8_t* x, int64_t step, const uint8_t* w, int64_t stride,
                        int64_t n_tiles, const int32_t* correction, const AskAhead& ask,
                        __m512i (*sums)[R]) {
  // Few sums need several chains of additions to hide their latency.
  constexpr int kChains = R * P == 1 ? 4 : R * P <= 3 ? 2 : 1;
  const __m512i flip = _mm512_set1_epi8(-128);
  __m512i acc[kChains][P][R];
  for (int c = 0; c < kChains; ++c) {
    for (int p = 0; p < P; ++p) {
      for (int r = 0; r < R; ++r) acc[c][p][r] = _mm512_setzero_si512();
    }
  }
  for (int64_t t = 0; t < n_tiles; ++t) {
#pragma GCC unroll 16
    for (int line = 0; line < 16; ++line) {
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) {
        const uint8_t* at = w + p * stride + line * kLine;
        ask.line(at, p);
        const __m512i weights = _mm512_xor_si512(_mm512_loadu_si512(at), flip);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
          acc[line % kChains][p][r] = _mm512_dpbusd_epi32(acc[line % kChains][p][r], weights,
                                                          broadcast4(x + r * kLine + line * 4));
      }
    }
    w += kTile;
    x += step;
  }
  for (int p = 0; p < P; ++p) {
    for (int r = 0; r < R; ++r) {
      for (int c = 1; c < kChains; ++c) acc[0][p][r] = _mm512_add_epi32(acc[0][p][r], acc[c][p][r]);
      sums[p][r] = _mm512_add_epi32(acc[0][p][r], _mm512_set1_epi32(correction[r]));
    }
  }
}

// Words (m[g], m[g + 2]) of each output, g = 0 in the lower result and 1 in the upper.
inline void multiplier_pairs(const uint8_t* tile, __m512i* pairs) {
  alignas(64) static constexpr uint8_t kOrder[64] = {
      0,  32, 1,  33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39, 8,  40, 9,  41, 10, 42,
      11, 43, 12, 44, 13, 45, 14, 46, 15, 47, 16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53,
      22, 54, 23, 55, 24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63};
  const __m512i m = _mm512_permutexvar_epi8(_mm512_load_si512(kOrder), _mm512_loadu_si512(tile));
  pairs[0] = _mm512_cvtepi8_epi16(_mm512_castsi512_si256(m));
  pairs[1] = _mm512_cvtepi8_epi16(_mm512_extracti64x4_epi64(m, 1));
}

// Adds to the sums of R rows with P panels of int4, `stride` bytes apart. offsets: -8 * the group's
// activation sum, [R][n_groups].
template <int R, int P, class Ask>
inline void int4_tiles(const uint8_t* x, int64_t step, const uint8_t* w, int64_t stride,
                       int64_t n_tiles, const int32_t* offsets, int64_t n_groups, Ask& ask,
                       __m512i (*sums)[R]) {
  const __m512i low = _mm512_set1_epi8(15);
  for (int64_t t = 0; t < n_tiles; ++t) {
    __m512i pairs[P][2];
    for (int p = 0; p < P; ++p) {
      multiplier_pairs(w + p * stride, pairs[p]);
      ask.line(w + p * stride, p);
    }
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      __m512i a[P][R], b[P][R];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        for (int p = 0; p < P; ++p) {
          a[p][r] = _mm512_set1_epi32(offsets[r * n_groups + half]);
          b[p][r] = _mm512_set1_epi32(offsets[r * n_groups + half + 2]);
        }
      }
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) {
        const int line = half * 8 + i;
        __m512i qa[P], qb[P];
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) {
          const uint8_t* at = w + p * stride + (line + 1) * kLine;
          ask.line(at, p);
          const __m512i q = _mm512_loadu_si512(at);
          qa[p] = _mm512_and_si512(q, low);
          qb[p] = _mm512_and_si512(_mm512_srli_epi16(q, 4), low);
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          const __m512i xa = broadcast4(x + r * kLine + line * 4);
          const __m512i xb = broadcast4(x + step + r * kLine + line * 4);
#pragma GCC unroll 4
          for (int p = 0; p < P; ++p) {
            a[p][r] = _mm512_dpbusd_epi32(a[p][r], qa[p], xa);
            b[p][r] = _mm512_dpbusd_epi32(b[p][r], qb[p], xb);
          }
        }
      }
      // A group's sum of q * x has at most 32 * 8 * 127 = 32512, a word: both groups times their
      // multipliers are one multiply-add of words.
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) {
          const __m512i both =
              _mm512_mask_blend_epi16(0xAAAAAAAA, a[p][r], _mm512_slli_epi32(b[p][r], 16));
          sums[p][r] = _mm512_dpwssd_epi32(sums[p][r], both, pairs[p][half]);
        }
      }
    }
    offsets += 4;
    w += kInt4Tile;
    x += 2 * step;
  }
}

template <int R, int P>
inline void zero_sums(__m512i (*sums)[R]) {
  for (int p = 0; p < P; ++p) {
    for (int r = 0; r < R; ++r) sums[p][r] = _mm512_setzero_si512();
  }
}

// R rows with P panels of int4: as many panels together as their sums fit the registers; those of
// four rows take turns, a tile each.
template <int R, int P>
inline void int4_panels(const uint8_t* x, int64_t step, const uint8_t* w, int64_t stride,
                        int64_t n_tiles, const int32_t* offsets, int64_t n_groups,
                        const AskAhead& ask, __m512i (*sums)[R]) {
  constexpr int kTogether = min_of(P, R == 1 ? 8 : R < 4 ? 4 : 2);
  zero_sums<R, P>(sums);
  const int64_t turn = kTogether == P ? n_tiles : 1;
  for (int64_t t = 0; t < n_tiles; t += turn) {
#pragma GCC unroll 2
    for (int p = 0; p < P; p += kTogether)
      int4_tiles<R, kTogether>(x + 2 * t * step, step, w + t * kInt4Tile + p * stride, stride, turn,
                               offsets + 4 * t, n_groups, ask, sums + p);
  }
}

// More rows: two halves of them take turns, a few tiles each, which the second finds in the L1
// cache. A panel more beside fewer rows loads less than more rows with one panel.
template <int R, int P>
inline void int4_panels_in_turns(const uint8_t* x, int64_t step, const uint8_t* w, int64_t stride,
                                 int64_t n_tiles, const int32_t* offsets, int64_t n_groups,
                                 AskNext ask, __m512i (*sums)[R]) {
  constexpr int kFirst = (R + 1) / 2, kSecond = R / 2;
  constexpr int64_t kTurn = 4;
  __m512i first[P][kFirst], second[P][kSecond];
  zero_sums<kFirst, P>(first);
  zero_sums<kSecond, P>(second);
  for (int64_t t = 0; t < n_tiles; t += kTurn) {
    const int64_t n = min_of(kTurn, n_tiles - t);
    const uint8_t *x_at = x + 2 * t * step, *w_at = w + t * kInt4Tile;
    int4_tiles<kFirst, P>(x_at, step, w_at, stride, n, offsets + 4 * t, n_groups, ask, first);
    int4_tiles<kSecond, P>(x_at + kFirst * kLine, step, w_at, stride, n,
                           offsets + kFirst * n_groups + 4 * t, n_groups, ask, second);
  }
  for (int p = 0; p < P; ++p) {
    for (int r = 0; r < R; ++r) sums[p][r] = r < kFirst ? first[p][r] : second[p][r - kFirst];
  }
}

// The sums of panel `first`, that `apart` behind it and so on to their outputs.
template <int R, int P>
inline void write_sums(const MatmulTask& task, int64_t first, int64_t apart,
                       const __m512i (*sums)[R]) {
  for (int p = 0; p < P; ++p) {
    const int64_t panel = first + p * apart;
    const Vector512::Writer writer(*task.w, panel, true);
    float* out = task.out + (panel - task.panel_begin) * kPanelRows;
    for (int r = 0; r < R; ++r)
      writer.write(_mm512_castsi512_ps(sums[p][r]), task.x->scales[task.row_begin + r],
                   task.accumulate, out + r * task.out_stride);
  }
}

// -8 * the activation sums of each group, in the scratch (n_in up to 524,288 / R columns).
template <int R>
inline const int32_t* int4_offsets(const MatmulTask& task, int64_t n_groups) {
  auto* offsets = reinterpret_cast<int32_t*>(task.scratch);
  for (int r = 0; r < R; ++r) {
    const int32_t* group_sums = group_sums_of(*task.x, task.row_begin + r);
    for (int64_t g = 0; g < n_groups; ++g) offsets[r * n_groups + g] = -8 * group_sums[g];
  }
  return offsets;
}

// Few rows of one row tile with all panels of the task, each weight byte read once.
template <int R, bool kInt4>
void few_rows_in_streams(const MatmulTask& task) {
  const PackedMatrix& w = *task.w;
  const RowTile tile = row_tile(*task.x, task.row_begin);
  const int64_t n_tiles = ceil_of(w.n_in, kInt4 ? 128 : 64);
  const int64_t stride = n_tiles * (kInt4 ? kInt4Tile : kTile);
  const int32_t* offsets = nullptr;
  int32_t correction[R];
  if constexpr (kInt4) {
    offsets = int4_offsets<R>(task, n_tiles * 4);
  } else {
    for (int r = 0; r < R; ++r) correction[r] = -128 * row_sum_of(*task.x, task.row_begin + r);
  }
  const auto multiply = [&]<int kStreams> {
    const AskAhead ask{ahead_of_streams(kStreams, read_ahead_bytes())};
    in_streams<kStreams>(task, stride, ask.n_bytes, [&]<int P>(int64_t first, int64_t apart) {
      __m512i sums[P][R];
      for (int p = 0; p < P; ++p) ask_for_scales(w, first + p * apart);
      const uint8_t* from = tiles_of(w) + first * stride;
      if constexpr (kInt4) {
        int4_panels<R, P>(tile.data, tile.step, from, apart * stride, n_tiles, offsets, n_tiles * 4,
                          ask, sums);
      } else {
        int8_panels<R, P>(tile.data, tile.step, from, apart * stride, n_tiles, correction, ask,
                          sums);
      }
      write_sums<R, P>(task, first, apart, sums);
    });
  };
  constexpr int kMost = R == 1 ? 8 : kInt4 ? 4 : R == 2 ? 8 : R <= 4 ? 4 : 2;
  if (kMost > 4 && task.n_panels * stride < kShortTaskBytes)
    return multiply.template operator()<min_of(4, kMost)>();
  multiply.template operator()<kMost>();
}

// The same of more rows of int4, panel pair after panel pair.
template <int R>
void int4_rows_in_turns(const MatmulTask& task) {
  const PackedMatrix& w = *task.w;
  const RowTile tile = row_tile(*task.x, task.row_begin);
  const int64_t n_tiles = ceil_of(w.n_in, 128), stride = n_tiles * kInt4Tile;
  const int32_t* offsets = int4_offsets<R>(task, n_tiles * 4);
  const int64_t end = task.panel_begin + task.n_panels;
  for (int64_t panel = task.panel_begin; panel < end; panel += 2) {
    Panels next = {&w, panel + 2, min_of(2, end - panel - 2)};
    if (next.count <= 0) next = task.next;
    AskNext ask = {};
    if (next.w != nullptr && next.count > 0) {
      const int64_t next_stride = ceil_of(next.w->n_in, 128) * kInt4Tile;
      ask.at = tiles_of(*next.w) + next.begin * next_stride;
      ask.end = ask.at + min_of(2, next.count) * next_stride;
    }
    const uint8_t* from = tiles_of(w) + panel * stride;
    if (panel + 1 < end) {
      __m512i sums[2][R];
      int4_panels_in_turns<R, 2>(tile.data, tile.step, from, stride, n_tiles, offsets, n_tiles * 4,
                                 ask, sums);
      write_sums<R, 2>(task, panel, 1, sums);
    } else {
      __m512i sums[1][R];
      int4_panels_in_turns<R, 1>(tile.data, tile.step, from, stride, n_tiles, offsets, n_tiles * 4,
                                 ask, sums);
      write_sums<R, 1>(task, panel, 1, sums);
    }
  }
}

template <int R, bool kInt4>
void few_rows(const MatmulTask& task) {
  if constexpr (kInt4 && R > 4) {
    int4_rows_in_turns<R>(task);
  } else {
    few_rows_in_streams<R, kInt4>(task);
  }
}

template <bool kInt4>
void few_rows(const MatmulTask& task) {
  static constexpr void (*kFew[kManyRows - 1])(const MatmulTask&) = {
      few_rows<1, kInt4>, few_rows<2, kInt4>, few_rows<3, kInt4>, few_rows<4, kInt4>,
      few_rows<5, kInt4>, few_rows<6, kInt4>, few_rows<7, kInt4>, few_rows<8, kInt4>};
  kFew[task.n_rows - 1](task);
}

// -- many rows ------------------------------------------------------------------------------------

using Int8 = Int8Format<Vector512>;

struct Int4 : Int4Format<Vector512> {
  static void unpack(const uint8_t* tile, uint8_t* to) {
    Int4Half<true>(tile, 0, to).lines(0, 8);
    Int4Half<true>(tile, 1, to).lines(0, 8);
  }
};

}  // namespace

void matmul_i8_int8_avx512(const MatmulTask& task) {
  if (task.n_rows < kManyRows) return few_rows<false>(task);
  many_rows<Int8>(task);
}
void matmul_i8_int4_avx512(const MatmulTask& task) {
  if (task.n_rows < kManyRows) return few_rows<true>(task);
  many_rows<Int4>(task);
}

}  // namespace exo::kernels::cpu
#endif
