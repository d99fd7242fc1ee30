/// Expanded attention on tiles (attention_tiles.h), with the products of `Products`:
///   begin(), end()       around everything
///   kPages               how many pages are one step at most
///   kSteps               whether scores come in steps, between which other work is done
///   scores_step(q, tiles, step, scores)     2 * tiles.steps steps of a page (kSteps)
///   scores(q, tiles, scores)                [32 rows, 64], unscaled, of a page
///   add_values(weights, pages, n_pages, value, sums)
///                        sums [32 rows, value] += weights [32, 64] * values, of all pages
/// Include only from files compiled for AVX-512 with BF16 (see matmul_layout.h about linkage).
#pragma once

#include <immintrin.h>

#include "kernels/cpu/attention_parts_avx512.h"
#include "kernels/cpu/bf16_pairs_avx512.h"

namespace exo::kernels::cpu {
namespace {  // NOLINT: internal linkage on purpose

struct ExpandedTiles {
  int64_t steps = 0;          // of 32 columns of q and k
  std::byte* keys = nullptr;  // [steps][4 key tiles] tiles: pairs of columns x 16 keys
  std::byte* values =
      nullptr;  // [2 halves of the keys][value / 16] tiles: pairs of keys x 16 columns

  ExpandedTiles() = default;
  ExpandedTiles(std::byte* tiles, int64_t qk)
      : steps((qk + 31) / 32), keys(tiles), values(tiles + steps * 4096) {}
};

// Of the rows' function, which goes by groups of 32 rows: two tiles of rows share each tile of keys
// and of values, which come from the second-level cache.
template <int64_t kPages>
struct ExpandedScratch {
  float* scores[2];    // of this group and of the next: [pages][32 rows, 64]
  std::byte* weights;  // [pages][32 rows, 64] bf16

  explicit ExpandedScratch(std::byte* s)
      : scores{reinterpret_cast<float*>(s), reinterpret_cast<float*>(s + kPages * 8192)},
        weights(s + kPages * 16384) {}
};
constexpr int64_t kPageScores = 32 * 64, kPageWeightBytes = kPageScores * 2;

// 16 rows of a task, from row `first` on.
struct ExpandedGroup {
  int64_t first;
  int64_t n_rows;  // none or less: there are none
  int64_t n_keys;  // that its first row sees
};

inline __mmask16 not_finite(__m512 v) {
  const __m512i exponent = _mm512_set1_epi32(0x7F800000);
  return _mm512_cmpeq_epi32_mask(_mm512_and_si512(_mm512_castps_si512(v), exponent), exponent);
}

// 16 columns of one key from its two parts; columns beyond are 0.
inline __m512 key_columns(const ExpandedPage& p, int64_t t, int64_t column) {
  const float* nope = p.k + t * p.k_stride;
  const float* rope = p.k_rope + t * p.rope_stride;
  if (column + 16 <= p.nope) return _mm512_loadu_ps(nope + column);
  if (column >= p.nope) return load_tail(rope + column - p.nope, p.nope + p.rope - column);
  alignas(64) float both[16];
  for (int64_t i = 0; i < 16; ++i) {
    const int64_t c = column + i;
    both[i] = c < p.nope ? nope[c] : c < p.nope + p.rope ? rope[c - p.nope] : 0.0f;
  }
  return _mm512_load_ps(both);
}

inline __mmask16 expanded_keys(const ExpandedPage& p, const ExpandedTiles& tiles,
                               std::byte* lines) {
  __mmask16 bad = 0;
  for (int64_t t = 0; t < 64; ++t) {
    for (int64_t j = 0; j < tiles.steps; ++j) {
      __m512 a = _mm512_setzero_ps(), b = a;
      if (t < p.n_keys) {
        a = key_columns(p, t, 32 * j);
        b = key_columns(p, t, 32 * j + 16);
        bad |= not_finite(a) | not_finite(b);
      }
      _mm512_store_si512(lines + (t * tiles.steps + j) * 64, bf16_line(a, b));
    }
  }
  for (int64_t j = 0; j < tiles.steps; ++j) {
    for (int64_t i = 0; i < 4; ++i)
      transpose_words(lines + (16 * i * tiles.steps + j) * 64, tiles.steps * 64,
                      tiles.keys + (j * 4 + i) * kTileBytes, 64);
  }
  return bad;
}

inline __mmask16 expanded_values(const ExpandedPage& p, const ExpandedTiles& tiles) {
  __mmask16 bad = 0;
  for (int64_t pair = 0; pair < 32; ++pair) {
    const float* row = p.v + 2 * pair * p.v_stride;
    std::byte* to = tiles.values + pair / 16 * (p.value / 16) * kTileBytes + pair % 16 * 64;
    for (int64_t c = 0; c < p.value; c += 16, to += kTileBytes) {
      __m512 a = _mm512_setzero_ps(), b = a;
      if (2 * pair < p.n_keys) a = _mm512_loadu_ps(row + c);
      if (2 * pair + 1 < p.n_keys) b = _mm512_loadu_ps(row + p.v_stride + c);
      bad |= not_finite(a) | not_finite(b);
      _mm512_store_si512(to, bf16_pairs(a, b));
    }
  }
  return bad;
}

// Word i of the result is what reduces row i: one pattern of pairs for every row, so that a row's
// sum has the same bits in every place.
template <typename Combine>
inline __m512 reduce_rows(const __m512 (&rows)[16], Combine combine) {
  __m512 a[8], b[4], c[2];
  for (int i = 0; i < 8; ++i)  // words (i, i + 8, i, i + 8) in every lane
    a[i] =
        combine(_mm512_unpacklo_ps(rows[i], rows[i + 8]), _mm512_unpackhi_ps(rows[i], rows[i + 8]));
  for (int i = 0; i < 4; ++i)  // words (i, i + 8, i + 4, i + 12)
    b[i] = combine(
        _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a[i]), _mm512_castps_pd(a[i + 4]))),
        _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a[i]), _mm512_castps_pd(a[i + 4]))));
  for (int i = 0; i < 2; ++i)  // lanes 0, 1 of i and lanes 2, 3 of i + 2
    c[i] = combine(_mm512_shuffle_f32x4(b[i], b[i + 2], 0x44),
                   _mm512_shuffle_f32x4(b[i], b[i + 2], 0xEE));
  const __m512 d =
      combine(_mm512_shuffle_f32x4(c[0], c[1], 0x88), _mm512_shuffle_f32x4(c[0], c[1], 0xDD));
  // Lanes begin with the rows 0, 2, 1, 3, each followed by its neighbours at 8, 4 and 12.
  const __m512i order = _mm512_set_epi32(15, 7, 11, 3, 13, 5, 9, 1, 14, 6, 10, 2, 12, 4, 8, 0);
  return _mm512_permutexvar_ps(order, d);
}

struct Larger {
  __m512 operator()(__m512 a, __m512 b) const { return _mm512_max_ps(a, b); }
};
struct Sum {
  __m512 operator()(__m512 a, __m512 b) const { return _mm512_add_ps(a, b); }
};

// The keys that row i of a group sees, among columns 16 j .. of a page.
inline __mmask16 seen_by(const ExpandedGroup& g, int64_t i, int64_t page, int j) {
  const int64_t n = g.n_keys + i - page * 64;
  const uint64_t seen = n >= 64 ? ~uint64_t{0} : n <= 0 ? 0 : (uint64_t{1} << n) - 1;
  return static_cast<__mmask16>(seen >> (16 * j));
}

// The softmax of a group: all rows' maxima first, then one row's weights after another, between
// which the tiles of the next group's scores run; the rows' sums at the end. kAll: 16 rows that see
// all of the pages.
template <bool kAll>
struct ExpandedSoftmax {
  const ExpandedRows& r;
  const ExpandedGroup& g;
  const int64_t n_pages;
  const float* scores;
  std::byte* weights;
  alignas(64) float factors[16];  // for what the rows summed before
  alignas(64) float shifts[16];   // the rows' maxima, for exponents of 2
  __m512 rows[16];
  __m512 keep;

  inline void maxima() {
    const __m512 lowest = _mm512_set1_ps(-__builtin_inff());
    alignas(64) float largest[16] = {};
    for (int64_t i = 0; i < 16; ++i) {
      rows[i] = lowest;
      if (!kAll && i >= g.n_rows) continue;
      largest[i] = r.softmax[g.first + i].largest;
      for (int64_t page = 0; page < n_pages; ++page) {
        for (int j = 0; j < 4; ++j) {
          const __m512 x = _mm512_load_ps(scores + page * kPageScores + 64 * i + 16 * j);
          rows[i] = kAll ? _mm512_max_ps(x, rows[i])
                         : _mm512_mask_max_ps(rows[i], seen_by(g, i, page, j), x, rows[i]);
        }
      }
    }
    const __m512 before = _mm512_load_ps(largest);
    const __m512 page = _mm512_mul_ps(reduce_rows(rows, Larger()), _mm512_set1_ps(r.scale));
    const __m512 now = _mm512_max_ps(page, before);
    keep = exp16(_mm512_sub_ps(before, now));
    _mm512_store_ps(largest, now);
    _mm512_store_ps(factors, keep);
    _mm512_store_ps(shifts, _mm512_mul_ps(now, _mm512_set1_ps(kLog2E)));
    for (int64_t i = 0; i < g.n_rows; ++i) r.softmax[g.first + i].largest = largest[i];
  }

  inline void row(int64_t i) {
    const __m512 factor = _mm512_set1_ps(r.scale * kLog2E), shift = _mm512_set1_ps(shifts[i]);
    rows[i] = _mm512_setzero_ps();
    for (int64_t page = 0; page < n_pages; ++page) {
      __m512 x[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(),
                     _mm512_setzero_ps()};
      for (int j = 0; j < 4 && (kAll || i < g.n_rows); ++j) {
        const __m512 score = _mm512_load_ps(scores + page * kPageScores + 64 * i + 16 * j);
        x[j] = exp2_16(_mm512_fmsub_ps(score, factor, shift));
        if (!kAll) x[j] = _mm512_maskz_mov_ps(seen_by(g, i, page, j), x[j]);
      }
      std::byte* to = weights + page * kPageWeightBytes + i * 128;
      _mm512_store_si512(to, bf16_line(x[0], x[1]));
      _mm512_store_si512(to + 64, bf16_line(x[2], x[3]));
      rows[i] = _mm512_add_ps(rows[i],
                              _mm512_add_ps(_mm512_add_ps(x[0], x[1]), _mm512_add_ps(x[2], x[3])));
    }
  }

  inline void sums() {
    alignas(64) float sums[16] = {};
    for (int64_t i = 0; i < g.n_rows; ++i) sums[i] = r.softmax[g.first + i].sum;
    _mm512_store_ps(sums, _mm512_fmadd_ps(_mm512_load_ps(sums), keep, reduce_rows(rows, Sum())));
    for (int64_t i = 0; i < g.n_rows; ++i) r.softmax[g.first + i].sum = sums[i];
  }
};

inline void scale_row(float* row, float factor, int64_t n) {
  if (factor == 1.0f) return;
  const __m512 f = _mm512_set1_ps(factor);
  for (int64_t i = 0; i < n; i += 16)
    _mm512_storeu_ps(row + i, _mm512_mul_ps(_mm512_loadu_ps(row + i), f));
}

inline void expanded_queries(const float* q, int64_t q_stride, int64_t n_rows, int64_t qk,
                             std::byte* out, float*) {
  for (int64_t i = 0; i < n_rows; ++i, q += q_stride) {
    for (int64_t k = 0; k < qk; k += 32, out += 64)
      _mm512_storeu_si512(out,
                          bf16_line(load_tail(q + k, qk - k), load_tail(q + k + 16, qk - k - 16)));
  }
}

inline bool expanded_page(const ExpandedPage& page, std::byte* tiles, std::byte* scratch) {
  const ExpandedTiles t(tiles, page.nope + page.rope);
  return (expanded_keys(page, t, scratch) | expanded_values(page, t)) == 0;
}

// The scores of the next group of 32 rows, in steps between the rows of this one's softmax.
template <class Products>
struct NextScores {
  const std::byte* q;  // null after the last group
  const ExpandedTiles* pages;
  int64_t n_pages;
  float* scores;
  int64_t done = 0;

  // After `row` of 32 rows.
  inline void after(int64_t row) {
    if (!Products::kSteps || q == nullptr) return;
    const int64_t steps = 2 * pages[0].steps;  // of a page
    for (; done < n_pages * steps * (row + 1) / 32; ++done)
      Products::scores_step(q, pages[done / steps], done % steps,
                            scores + done / steps * kPageScores);
  }
  inline void all() {
    for (int64_t i = 0; i < n_pages; ++i) Products::scores(q, pages[i], scores + i * kPageScores);
  }
  inline void finish() {
    if (!Products::kSteps && q != nullptr) all();
  }
};

template <class Products, bool kAll>
inline void weigh(const ExpandedRows& r, const ExpandedGroup& g, const float* scores,
                  std::byte* weights, int64_t row, NextScores<Products>& next) {
  ExpandedSoftmax<kAll> softmax{r, g, next.n_pages, scores, weights};
  softmax.maxima();
  for (int64_t i = 0; i < 16; ++i) {
    softmax.row(i);
    next.after(row + i);
  }
  softmax.sums();
  for (int64_t i = 0; i < g.n_rows; ++i)
    scale_row(r.sums + (g.first + i) * r.value, softmax.factors[i], r.value);
}

template <class Products>
void expanded_rows(const ExpandedRows& rows, const std::byte* tiles, std::byte* scratch) {
  constexpr int64_t kPages = Products::kPages;
  const int64_t n_pages = kPages == 1 ? 1 : rows.n_pages;
  ExpandedTiles pages[kPages];
  for (int64_t i = 0; i < n_pages; ++i)
    pages[i] = ExpandedTiles(const_cast<std::byte*>(tiles) + i * rows.tiles_apart, rows.qk);
  const ExpandedScratch<kPages> s(scratch);
  const auto scores_of = [&](int64_t first) {
    return NextScores<Products>{
        first < rows.n_rows ? rows.q + first * pages[0].steps * 64 : nullptr, pages, n_pages,
        s.scores[first / 32 % 2]};
  };
  Products::begin();
  scores_of(0).all();
  for (int64_t first = 0; first < rows.n_rows; first += 32) {
    NextScores<Products> next = scores_of(first + 32);
    for (int64_t part = 0; part < 32; part += 16) {
      const int64_t left = rows.n_rows - first - part;
      const ExpandedGroup g{first + part, left < 16 ? left : 16, rows.n_keys + first + part};
      const float* scores = s.scores[first / 32 % 2] + part * 64;
      std::byte* weights = s.weights + part * 128;
      if (g.n_keys >= 64 * n_pages && g.n_rows == 16) {
        weigh<Products, true>(rows, g, scores, weights, part, next);
      } else {
        weigh<Products, false>(rows, g, scores, weights, part, next);
      }
    }
    Products::add_values(s.weights, pages, n_pages, rows.value, rows.sums + first * rows.value);
    next.finish();
  }
  Products::end();
}

}  // namespace
}  // namespace exo::kernels::cpu
