/// The tile products of both attentions with vectors of bf16 pairs (AVX512-BF16), for processors
/// without AMX, and what of an int8 cache is in bf16: 16 sums in registers, 4 rows by 4 vectors
/// where the right operand is wide enough.
#if defined(__x86_64__)
#include "kernels/cpu/attention_absorbed_avx512.h"
#include "kernels/cpu/attention_bytes_avx512.h"
#include "kernels/cpu/attention_expanded_avx512.h"

namespace exo::kernels::cpu {
namespace {

// sums[r][j] += the pairs of 4 rows (row_bytes apart) with one tile of 16 lines and the three
// tiles_apart behind it (kVectors of them).
template <int kVectors>
inline __attribute__((always_inline)) void add_tile(const std::byte* rows, int64_t row_bytes,
                                                    const std::byte* tile, int64_t tiles_apart,
                                                    __m512 (*sums)[kVectors]) {
#pragma GCC unroll 2
  for (int line = 0; line < 16; ++line) {
    __m512bh right[kVectors];
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) right[j] = pairs_at(tile + j * tiles_apart + line * 64);
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
      const __m512bh left = pair_at(rows + r * row_bytes + line * 4);
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) sums[r][j] = _mm512_dpbf16_ps(sums[r][j], left, right[j]);
    }
  }
}

// sums [4 rows, 16 * kVectors columns] += weights [4, 64 keys] * values; weights in two halves.
template <int kVectors>
inline void add_to_sums(const std::byte* weights, int64_t row_bytes, int64_t weights_half,
                        const std::byte* values, int64_t values_half, float* sums, int64_t stride) {
  __m512 acc[4][kVectors];
#pragma GCC unroll 4
  for (int r = 0; r < 4; ++r) {
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) acc[r][j] = _mm512_loadu_ps(sums + r * stride + 16 * j);
  }
  add_tile<kVectors>(weights, row_bytes, values, kTileBytes, acc);
  add_tile<kVectors>(weights + weights_half, row_bytes, values + values_half, kTileBytes, acc);
#pragma GCC unroll 4
  for (int r = 0; r < 4; ++r) {
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) _mm512_storeu_ps(sums + r * stride + 16 * j, acc[r][j]);
  }
}

// A pair of columns of 16 heads with one of a key.
struct DotPairs {
  using Sum = __m512;
  static constexpr int64_t kLineBytes = 64;
  static __m512bh line_at(const std::byte* p) { return pairs_at(p); }
  static __m512 add(__m512 sum, __m512bh line, const std::byte* key) {
    return _mm512_dpbf16_ps(sum, line, pair_at(key));
  }
};

// Rotated columns of an int8 cache, which keeps them in bf16.
struct RopePairs {
  using Dot = DotPairs;
  static void query(const float* q, int64_t q_stride, int64_t rope, std::byte* out) {
    query_tiles(q, q_stride, rope, out);
  }
};

struct AbsorbedVectors {
  static void scores(const std::byte* keys, int64_t key_bytes, int64_t entry,
                     const std::byte* queries, NextPage& next, float* out) {
    for (int64_t t = 0; t < kPageKeys; t += 16) {
      __m512 acc[16];
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) acc[i] = _mm512_setzero_ps();
      add_16_keys<DotPairs, 2>(keys + t * key_bytes, key_bytes, queries, entry / 2, next, acc);
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) _mm512_storeu_ps(out + (t + i) * 16, acc[i]);
    }
  }

  // The latents' rows, as they are: two keys' lines are interleaved in registers for 8 heads.
  static void add_values(const AbsorbedPage& page, int64_t rank, const std::byte* weights,
                         NextPage& next, float* sum, int64_t stride) {
    for (int64_t c = 0; c < rank; c += 32) {
      add_columns(page, c, weights, next, sum + c, stride);
      add_columns(page, c, weights + 32, next, sum + 8 * stride + c, stride);
    }
  }

 private:
  // sum [8 heads, 32 columns] += weights [n_keys / 2 pairs, 8 heads] * values; columns come out in
  // the order of unpacklo and unpackhi.
  static inline void add_columns(const AbsorbedPage& page, int64_t c, const std::byte* weights,
                                 NextPage& next, float* sum, int64_t stride) {
    __m512 acc[8][2];
#pragma GCC unroll 8
    for (int h = 0; h < 8; ++h) {
      acc[h][0] = _mm512_loadu_ps(sum + h * stride);
      acc[h][1] = _mm512_loadu_ps(sum + h * stride + 16);
    }
    const auto add_pair = [&](__m512i a, __m512i b) __attribute__((always_inline)) {
      const auto low = reinterpret_cast<__m512bh>(_mm512_unpacklo_epi16(a, b));
      const auto high = reinterpret_cast<__m512bh>(_mm512_unpackhi_epi16(a, b));
#pragma GCC unroll 8
      for (int h = 0; h < 8; ++h) {
        const __m512bh w = pair_at(weights + 4 * h);
        acc[h][0] = _mm512_dpbf16_ps(acc[h][0], w, low);
        acc[h][1] = _mm512_dpbf16_ps(acc[h][1], w, high);
      }
    };
    const std::byte* row = page.keys + 2 * c;
    for (int64_t t = 0; t + 2 <= page.n_keys; t += 2, row += 2 * page.key_bytes, weights += 64) {
      next.ask();
      add_pair(_mm512_loadu_si512(row), _mm512_loadu_si512(row + page.key_bytes));
    }
    // What lies behind the last key may be anything.
    if (page.n_keys % 2 != 0) add_pair(_mm512_loadu_si512(row), _mm512_setzero_si512());
#pragma GCC unroll 8
    for (int h = 0; h < 8; ++h) {
      _mm512_storeu_ps(sum + h * stride, acc[h][0]);
      _mm512_storeu_ps(sum + h * stride + 16, acc[h][1]);
    }
  }
};

struct ExpandedVectors {
  static constexpr int64_t kPages = 1;
  static constexpr bool kSteps = false;
  static void begin() {}
  static void end() {}
  static void scores_step(const std::byte*, const ExpandedTiles&, int64_t, float*) {}

  static void scores(const std::byte* q, const ExpandedTiles& tiles, float* scores) {
    const int64_t row_bytes = tiles.steps * 64;
    for (int64_t r = 0; r < 32; r += 4, q += 4 * row_bytes, scores += 4 * kPageKeys) {
      __m512 acc[4][4];
      for (auto& row : acc) {
        for (__m512& v : row) v = _mm512_setzero_ps();
      }
      for (int64_t j = 0; j < tiles.steps; ++j)
        add_tile<4>(q + j * 64, row_bytes, tiles.keys + j * 4 * kTileBytes, kTileBytes, acc);
      for (int i = 0; i < 4; ++i) {
        for (int j = 0; j < 4; ++j) _mm512_storeu_ps(scores + i * kPageKeys + 16 * j, acc[i][j]);
      }
    }
  }

  static void add_values(const std::byte* weights, const ExpandedTiles* pages, int64_t,
                         int64_t value, float* sums) {
    const ExpandedTiles& tiles = pages[0];
    const int64_t half_bytes = value / 16 * kTileBytes;
    for (int64_t c = 0; c < value; c += 64) {
      const int64_t left = value - c;
      const std::byte* values = tiles.values + c / 16 * kTileBytes;
      const auto add = left >= 64   ? add_to_sums<4>
                       : left >= 48 ? add_to_sums<3>
                       : left >= 32 ? add_to_sums<2>
                                    : add_to_sums<1>;
      for (int64_t r = 0; r < 32; r += 4)
        add(weights + r * 128, 128, 64, values, half_bytes, sums + r * value + c, value);
    }
  }
};

}  // namespace

AbsorbedAttention absorbed_tiles_avx512bf16() {
  return {.query = absorbed_query, .pages = absorbed_pages<AbsorbedVectors>, .n_interleaved = 2};
}

AbsorbedAttention absorbed_bytes_avx512bf16() { return absorbed_bytes<RopePairs>(); }

ExpandedAttention expanded_tiles_avx512bf16() {
  return {
      .queries = expanded_queries, .page = expanded_page, .rows = expanded_rows<ExpandedVectors>};
}

}  // namespace exo::kernels::cpu
#endif
