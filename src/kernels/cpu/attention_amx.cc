/// See attention_amx.h. Compiled with AMX flags: see matmul_layout.h about linkage.
#include "kernels/cpu/attention_amx.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include "kernels/cpu/tiles_amx.h"

namespace exo::kernels::cpu {
namespace {

constexpr int64_t kTileBytes = 1024;

// The intrinsics for tile loads don't tell the compiler that they read memory.
inline void stores_before_tiles() { asm volatile("" : : : "memory"); }

// e^x for x <= 0 or so, within 3e-6; 0 from -200 on, NaN for NaN: 2^n times a polynomial in the
// rest, by Taylor at 0.
inline __m512 exp16(__m512 x) {
  const __m512 y =
      _mm512_max_ps(_mm512_set1_ps(-288.0f), _mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)));
  const __m512 n = _mm512_roundscale_ps(y, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 r = _mm512_sub_ps(y, n);
  __m512 p = _mm512_set1_ps(1.33335581e-3f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(9.61812911e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.55041087e-2f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(2.40226507e-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(6.93147181e-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(p, n);
}

// Two vectors as 16 pairs of bf16: lane i is (low[i], high[i]).
inline __m512i bf16_pairs(__m512 low, __m512 high) {
  const __m512i both = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24,
                                         8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(order, both);
}

// 32 floats in order as one line of bf16.
inline __m512i bf16_line(__m512 first, __m512 second) {
  return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second, first));
}

inline __m512 load_tail(const float* p, int64_t n) {
  if (n >= 16) return _mm512_loadu_ps(p);
  if (n <= 0) return _mm512_setzero_ps();
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p);
}

// to[j][i] = from[i][j], 16 x 16 words of 32 bits; lines `from_stride` bytes apart.
inline void transpose_words(const std::byte* from, int64_t from_stride, std::byte* to,
                            int64_t to_stride) {
  __m512i a[16], b[16];
  for (int i = 0; i < 16; ++i) a[i] = _mm512_loadu_si512(from + i * from_stride);
  for (int i = 0; i < 16; i += 2) {
    b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
    a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
    a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
    a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
  }
  // a[4q + c] has, in lane L, column 4L + c of the rows 4q .. 4q + 3.
  for (int c = 0; c < 4; ++c) {
    const __m512i low01 = _mm512_shuffle_i32x4(a[c], a[4 + c], 0x44);
    const __m512i high01 = _mm512_shuffle_i32x4(a[c], a[4 + c], 0xEE);
    const __m512i low23 = _mm512_shuffle_i32x4(a[8 + c], a[12 + c], 0x44);
    const __m512i high23 = _mm512_shuffle_i32x4(a[8 + c], a[12 + c], 0xEE);
    _mm512_storeu_si512(to + c * to_stride, _mm512_shuffle_i32x4(low01, low23, 0x88));
    _mm512_storeu_si512(to + (4 + c) * to_stride, _mm512_shuffle_i32x4(low01, low23, 0xDD));
    _mm512_storeu_si512(to + (8 + c) * to_stride, _mm512_shuffle_i32x4(high01, high23, 0x88));
    _mm512_storeu_si512(to + (12 + c) * to_stride, _mm512_shuffle_i32x4(high01, high23, 0xDD));
  }
}

// -- absorbed -------------------------------------------------------------------------------------

struct AbsorbedScratch {
  std::byte* values;   // [2 halves of the keys][rank / 16] tiles: pairs of keys x 16 columns
  std::byte* queries;  // [entry / 32][high, low part] tiles: pairs of columns x 16 heads
  float* scores;       // [64, 16 heads]
  std::byte* weights;  // [2 halves] tiles: 16 heads x 32 keys

  AbsorbedScratch(std::byte* s, int64_t entry, int64_t rank) {
    values = s;
    queries = s + rank * 128;
    scores = reinterpret_cast<float*>(queries + entry / 32 * 2 * kTileBytes);
    weights = reinterpret_cast<std::byte*>(scores + 64 * 16);
  }
};

// scores[t, h] of the page, unscaled: keys are the left operand, straight from the cache.
inline void absorbed_scores(const AbsorbedPageAmx& t, const AbsorbedScratch& s) {
  const std::byte* keys = t.page;
  const int64_t rows16 = 16 * t.entry_bytes;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t j = 0; j < t.entry / 32; ++j, keys += 64) {
    const std::byte* q = s.queries + j * 2 * kTileBytes;
    _tile_loadd(4, q, 64);
    _tile_loadd(5, q + kTileBytes, 64);
    _tile_loadd(6, keys, t.entry_bytes);
    _tile_dpbf16ps(0, 6, 4);
    _tile_dpbf16ps(0, 6, 5);
    _tile_loadd(7, keys + rows16, t.entry_bytes);
    _tile_dpbf16ps(1, 7, 4);
    _tile_dpbf16ps(1, 7, 5);
    _tile_loadd(6, keys + 2 * rows16, t.entry_bytes);
    _tile_dpbf16ps(2, 6, 4);
    _tile_dpbf16ps(2, 6, 5);
    _tile_loadd(7, keys + 3 * rows16, t.entry_bytes);
    _tile_dpbf16ps(3, 7, 4);
    _tile_dpbf16ps(3, 7, 5);
  }
  _tile_stored(0, s.scores, 64);
  _tile_stored(1, s.scores + 256, 64);
  _tile_stored(2, s.scores + 512, 64);
  _tile_stored(3, s.scores + 768, 64);
}

// Scores to weights, lanes being heads; returns the factor for what was summed before.
inline __m512 absorbed_softmax(const AbsorbedPageAmx& t, const AbsorbedScratch& s) {
  float* state = reinterpret_cast<float*>(t.softmax);
  const __m512i even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
  const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
  const __m512 state0 = _mm512_loadu_ps(state), state1 = _mm512_loadu_ps(state + 16);
  const __m512 before = _mm512_permutex2var_ps(state0, even, state1);
  __m512 sum = _mm512_permutex2var_ps(state0, odd, state1);
  const __m512 scale = _mm512_set1_ps(t.scale);
  __m512 largest = before;
  for (int64_t i = 0; i < t.n_keys; ++i) {
    const __m512 score = _mm512_mul_ps(_mm512_loadu_ps(s.scores + 16 * i), scale);
    _mm512_storeu_ps(s.scores + 16 * i, score);
    largest = _mm512_max_ps(score, largest);
  }
  const __m512 keep = exp16(_mm512_sub_ps(before, largest));
  sum = _mm512_mul_ps(sum, keep);
  alignas(64) std::byte pairs[2][kTileBytes];
  for (int64_t i = 0; i < 64; i += 2) {
    __m512 w[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    for (int64_t j = 0; j < 2; ++j) {
      if (i + j >= t.n_keys) break;
      w[j] = exp16(_mm512_sub_ps(_mm512_loadu_ps(s.scores + 16 * (i + j)), largest));
      sum = _mm512_add_ps(sum, w[j]);
    }
    _mm512_store_si512(pairs[i / 32] + i % 32 / 2 * 64, bf16_pairs(w[0], w[1]));
  }
  transpose_words(pairs[0], 64, s.weights, 64);
  transpose_words(pairs[1], 64, s.weights + kTileBytes, 64);
  const __m512i low = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
  _mm512_storeu_ps(state, _mm512_permutex2var_ps(largest, low, sum));
  _mm512_storeu_ps(state + 16, _mm512_permutex2var_ps(largest, high, sum));
  return keep;
}

// The latents as the right operand: lines of pairs of keys. Columns come out in the order of
// unpacklo and unpackhi, which the reader of the sums undoes.
inline void absorbed_values(const AbsorbedPageAmx& t, const AbsorbedScratch& s) {
  const int64_t n_blocks = t.rank / 32;
  const std::byte* ahead = t.next;
  const int64_t ahead_step = t.next == nullptr ? 0 : 64;
  for (int64_t pair = 0; pair < 32; ++pair) {
    const std::byte* row = t.page + 2 * pair * t.entry_bytes;
    std::byte* to = s.values + pair / 16 * (t.rank / 16) * kTileBytes + pair % 16 * 64;
    // An entry beyond the last key may hold anything.
    const __mmask16 first = 2 * pair < t.n_keys ? 0xFFFF : 0;
    const __mmask16 second = 2 * pair + 1 < t.n_keys ? 0xFFFF : 0;
    for (int64_t c = 0; c < n_blocks; ++c, row += 64, to += 2 * kTileBytes) {
      const __m512i a = _mm512_maskz_loadu_epi32(first, row);
      const __m512i b = _mm512_maskz_loadu_epi32(second, row + t.entry_bytes);
      _mm512_store_si512(to, _mm512_unpacklo_epi16(a, b));
      _mm512_store_si512(to + kTileBytes, _mm512_unpackhi_epi16(a, b));
    }
    if (ahead_step != 0) {
      for (int64_t i = 0; i < 2 * t.entry_bytes; i += 64) _mm_prefetch(ahead + i, _MM_HINT_T1);
      ahead += 2 * t.entry_bytes;
    }
  }
}

inline void absorbed_rescale(const AbsorbedPageAmx& t, __m512 keep) {
  if (_mm512_cmp_ps_mask(keep, _mm512_set1_ps(1.0f), _CMP_EQ_OQ) == 0xFFFF) return;
  alignas(64) float factor[16];
  _mm512_store_ps(factor, keep);
  for (int64_t h = 0; h < 16; ++h) {
    float* row = t.sum + h * t.sum_stride;
    const __m512 f = _mm512_set1_ps(factor[h]);
    for (int64_t i = 0; i < t.rank; i += 16)
      _mm512_storeu_ps(row + i, _mm512_mul_ps(_mm512_loadu_ps(row + i), f));
  }
}

// sums [16, 64 columns] += weights [16, 64 keys] * values.
inline void add_four_tiles(const std::byte* weights, int64_t weights_step, int64_t weights_stride,
                           const std::byte* values, int64_t half_bytes, float* sum,
                           int64_t stride_bytes) {
  _tile_loadd(4, weights, weights_stride);
  _tile_loadd(5, weights + weights_step, weights_stride);
  _tile_loadd(0, sum, stride_bytes);
  _tile_loadd(1, sum + 16, stride_bytes);
  _tile_loadd(2, sum + 32, stride_bytes);
  _tile_loadd(3, sum + 48, stride_bytes);
  _tile_loadd(6, values, 64);
  _tile_dpbf16ps(0, 4, 6);
  _tile_loadd(7, values + kTileBytes, 64);
  _tile_dpbf16ps(1, 4, 7);
  _tile_loadd(6, values + 2 * kTileBytes, 64);
  _tile_dpbf16ps(2, 4, 6);
  _tile_loadd(7, values + 3 * kTileBytes, 64);
  _tile_dpbf16ps(3, 4, 7);
  values += half_bytes;
  _tile_loadd(6, values, 64);
  _tile_dpbf16ps(0, 5, 6);
  _tile_loadd(7, values + kTileBytes, 64);
  _tile_dpbf16ps(1, 5, 7);
  _tile_loadd(6, values + 2 * kTileBytes, 64);
  _tile_dpbf16ps(2, 5, 6);
  _tile_loadd(7, values + 3 * kTileBytes, 64);
  _tile_dpbf16ps(3, 5, 7);
  _tile_stored(0, sum, stride_bytes);
  _tile_stored(1, sum + 16, stride_bytes);
  _tile_stored(2, sum + 32, stride_bytes);
  _tile_stored(3, sum + 48, stride_bytes);
}

// The same for 16 columns.
inline void add_one_tile(const std::byte* weights, int64_t weights_step, int64_t weights_stride,
                         const std::byte* values, int64_t half_bytes, float* sum,
                         int64_t stride_bytes) {
  _tile_loadd(4, weights, weights_stride);
  _tile_loadd(5, weights + weights_step, weights_stride);
  _tile_loadd(0, sum, stride_bytes);
  _tile_loadd(6, values, 64);
  _tile_dpbf16ps(0, 4, 6);
  _tile_loadd(7, values + half_bytes, 64);
  _tile_dpbf16ps(0, 5, 7);
  _tile_stored(0, sum, stride_bytes);
}

}  // namespace

void absorbed_query_amx(const float* q, int64_t q_stride, int64_t entry, int64_t rank,
                        std::byte* scratch) {
  const AbsorbedScratch s(scratch, entry, rank);
  alignas(64) std::byte rows[2][kTileBytes];
  for (int64_t j = 0; j < entry / 32; ++j) {
    for (int64_t h = 0; h < 16; ++h) {
      const float* from = q + h * q_stride + 32 * j;
      const __m512 a = _mm512_loadu_ps(from), b = _mm512_loadu_ps(from + 16);
      const __m512i high = bf16_line(a, b);
      const __m512 a_high = _mm512_castsi512_ps(
          _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(high)), 16));
      const __m512 b_high = _mm512_castsi512_ps(
          _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(high, 1)), 16));
      _mm512_store_si512(rows[0] + h * 64, high);
      _mm512_store_si512(rows[1] + h * 64,
                         bf16_line(_mm512_sub_ps(a, a_high), _mm512_sub_ps(b, b_high)));
    }
    for (int part = 0; part < 2; ++part)
      transpose_words(rows[part], 64, s.queries + (2 * j + part) * kTileBytes, 64);
  }
}

void absorbed_page_amx(const AbsorbedPageAmx& task) {
  const AbsorbedScratch s(task.scratch, task.entry, task.rank);
  configure_tiles();
  stores_before_tiles();
  absorbed_scores(task, s);
  absorbed_rescale(task, absorbed_softmax(task, s));
  absorbed_values(task, s);
  stores_before_tiles();
  const int64_t half_bytes = task.rank / 16 * kTileBytes;
  for (int64_t c = 0; c < task.rank; c += 64)
    add_four_tiles(s.weights, kTileBytes, 64, s.values + c / 16 * kTileBytes, half_bytes,
                   task.sum + c, task.sum_stride * 4);
  _tile_release();
}

// -- expanded -------------------------------------------------------------------------------------

namespace {

struct ExpandedScratch {
  int64_t steps;       // of 32 columns of q and k
  std::byte* keys;     // [steps][4 key tiles] tiles: pairs of columns x 16 keys
  std::byte* lines;    // [64 keys][steps] lines of bf16
  std::byte* values;   // [2 halves of the keys][value / 16] tiles: pairs of keys x 16 columns
  float* scores;       // [16 rows, 64]
  std::byte* weights;  // [16 rows, 64] bf16

  ExpandedScratch(std::byte* s, int64_t qk, int64_t value) : steps((qk + 31) / 32) {
    keys = s;
    lines = keys + steps * 4096;
    values = lines + steps * 4096;
    scores = reinterpret_cast<float*>(values + value * 128);
    weights = reinterpret_cast<std::byte*>(scores + 1024);
  }
};

inline __mmask16 not_finite(__m512 v) {
  const __m512i exponent = _mm512_set1_epi32(0x7F800000);
  return _mm512_cmpeq_epi32_mask(_mm512_and_si512(_mm512_castps_si512(v), exponent), exponent);
}

// 16 columns of one key from its two parts; columns beyond are 0.
inline __m512 key_columns(const ExpandedPageAmx& p, int64_t t, int64_t column) {
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

inline __mmask16 expanded_keys(const ExpandedPageAmx& p, const ExpandedScratch& s) {
  __mmask16 bad = 0;
  for (int64_t t = 0; t < 64; ++t) {
    for (int64_t j = 0; j < s.steps; ++j) {
      __m512 a = _mm512_setzero_ps(), b = a;
      if (t < p.n_keys) {
        a = key_columns(p, t, 32 * j);
        b = key_columns(p, t, 32 * j + 16);
        bad |= not_finite(a) | not_finite(b);
      }
      _mm512_store_si512(s.lines + (t * s.steps + j) * 64, bf16_line(a, b));
    }
  }
  for (int64_t j = 0; j < s.steps; ++j) {
    for (int64_t i = 0; i < 4; ++i)
      transpose_words(s.lines + (16 * i * s.steps + j) * 64, s.steps * 64,
                      s.keys + (j * 4 + i) * kTileBytes, 64);
  }
  return bad;
}

inline __mmask16 expanded_values(const ExpandedPageAmx& p, const ExpandedScratch& s) {
  __mmask16 bad = 0;
  for (int64_t pair = 0; pair < 32; ++pair) {
    const float* row = p.v + 2 * pair * p.v_stride;
    std::byte* to = s.values + pair / 16 * (p.value / 16) * kTileBytes + pair % 16 * 64;
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

inline void expanded_scores(const ExpandedRowsAmx& r, const ExpandedScratch& s) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t j = 0; j < s.steps; ++j) {
    const std::byte* keys = s.keys + j * 4 * kTileBytes;
    _tile_loadd(4, r.q + j * 64, s.steps * 64);
    _tile_loadd(6, keys, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, keys + kTileBytes, 64);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(6, keys + 2 * kTileBytes, 64);
    _tile_dpbf16ps(2, 4, 6);
    _tile_loadd(7, keys + 3 * kTileBytes, 64);
    _tile_dpbf16ps(3, 4, 7);
  }
  _tile_stored(0, s.scores, 256);
  _tile_stored(1, s.scores + 16, 256);
  _tile_stored(2, s.scores + 32, 256);
  _tile_stored(3, s.scores + 48, 256);
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

// The keys that row i of a block sees, among columns 16 j ..
inline __mmask16 seen_by(const ExpandedRowsAmx& r, int64_t i, int j) {
  const int64_t n = r.n_keys + i;
  const uint64_t seen = n >= 64 ? ~uint64_t{0} : (uint64_t{1} << n) - 1;
  return static_cast<__mmask16>(seen >> (16 * j));
}

// All rows' scores to weights; factors[i] is for what row i summed before. Rows beyond get zeros.
inline void expanded_softmax(const ExpandedRowsAmx& r, const ExpandedScratch& s,
                             float (&factors)[16]) {
  const __m512 lowest = _mm512_set1_ps(-__builtin_inff()), scale = _mm512_set1_ps(r.scale);
  alignas(64) float largest[16] = {}, sums[16] = {};
  __m512 rows[16];
  for (int64_t i = 0; i < 16; ++i) {
    rows[i] = lowest;
    if (i >= r.n_rows) continue;
    largest[i] = r.softmax[i].largest;
    sums[i] = r.softmax[i].sum;
    for (int j = 0; j < 4; ++j) {
      float* at = s.scores + 64 * i + 16 * j;
      const __m512 x = _mm512_mask_mul_ps(lowest, seen_by(r, i, j), _mm512_load_ps(at), scale);
      _mm512_store_ps(at, x);
      rows[i] = _mm512_max_ps(x, rows[i]);
    }
  }
  const __m512 before = _mm512_load_ps(largest);
  const __m512 now = _mm512_max_ps(reduce_rows(rows, Larger()), before);
  const __m512 keep = exp16(_mm512_sub_ps(before, now));
  _mm512_store_ps(largest, now);
  _mm512_storeu_ps(factors, keep);
  for (int64_t i = 0; i < 16; ++i) {
    __m512 x[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(),
                   _mm512_setzero_ps()};
    for (int j = 0; j < 4 && i < r.n_rows; ++j) {
      const __m512 score = _mm512_load_ps(s.scores + 64 * i + 16 * j);
      const __m512 weight = exp16(_mm512_sub_ps(score, _mm512_set1_ps(largest[i])));
      x[j] = _mm512_maskz_mov_ps(seen_by(r, i, j), weight);
    }
    _mm512_store_si512(s.weights + i * 128, bf16_line(x[0], x[1]));
    _mm512_store_si512(s.weights + i * 128 + 64, bf16_line(x[2], x[3]));
    rows[i] = _mm512_add_ps(_mm512_add_ps(x[0], x[1]), _mm512_add_ps(x[2], x[3]));
  }
  _mm512_store_ps(sums, _mm512_fmadd_ps(_mm512_load_ps(sums), keep, reduce_rows(rows, Sum())));
  for (int64_t i = 0; i < r.n_rows; ++i) {
    r.softmax[i].largest = largest[i];
    r.softmax[i].sum = sums[i];
  }
}

inline void scale_row(float* row, float factor, int64_t n) {
  if (factor == 1.0f) return;
  const __m512 f = _mm512_set1_ps(factor);
  for (int64_t i = 0; i < n; i += 16)
    _mm512_storeu_ps(row + i, _mm512_mul_ps(_mm512_loadu_ps(row + i), f));
}

}  // namespace

void expanded_queries_amx(const float* q, int64_t q_stride, int64_t n_rows, int64_t qk,
                          std::byte* out) {
  for (int64_t i = 0; i < n_rows; ++i, q += q_stride) {
    for (int64_t k = 0; k < qk; k += 32, out += 64)
      _mm512_storeu_si512(out,
                          bf16_line(load_tail(q + k, qk - k), load_tail(q + k + 16, qk - k - 16)));
  }
}

bool expanded_page_amx(const ExpandedPageAmx& page, std::byte* scratch) {
  const ExpandedScratch s(scratch, page.nope + page.rope, page.value);
  return (expanded_keys(page, s) | expanded_values(page, s)) == 0;
}

void expanded_rows_amx(const ExpandedRowsAmx& rows, std::byte* scratch) {
  const ExpandedScratch s(scratch, rows.qk, rows.value);
  configure_tiles();
  stores_before_tiles();
  expanded_scores(rows, s);
  alignas(64) float factors[16];
  expanded_softmax(rows, s, factors);
  for (int64_t i = 0; i < rows.n_rows; ++i)
    scale_row(rows.sums + i * rows.value, factors[i], rows.value);
  stores_before_tiles();
  const int64_t half_bytes = rows.value / 16 * kTileBytes, stride = rows.value * 4;
  int64_t c = 0;
  for (; c + 64 <= rows.value; c += 64)
    add_four_tiles(s.weights, 64, 128, s.values + c / 16 * kTileBytes, half_bytes, rows.sums + c,
                   stride);
  for (; c < rows.value; c += 16)
    add_one_tile(s.weights, 64, 128, s.values + c / 16 * kTileBytes, half_bytes, rows.sums + c,
                 stride);
  _tile_release();
}

}  // namespace exo::kernels::cpu

#endif  // __x86_64__
