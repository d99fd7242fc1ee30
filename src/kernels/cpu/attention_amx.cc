/// See attention_amx.h. Compiled with AMX flags: see matmul_layout.h about linkage.
#include "kernels/cpu/attention_amx.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include "kernels/cpu/tiles_amx.h"

namespace exo::kernels::cpu {
namespace {

constexpr int64_t kTileBytes = 1024;
constexpr int64_t kPageKeys = 64;
constexpr int64_t kScaleCols = 128;  // ops::kLatentPartCols

// The intrinsics for tile loads don't tell the compiler that they read memory.
inline void stores_before_tiles() { asm volatile("" : : : "memory"); }

// 2^y for y <= 0 or so, within 3e-6; 0 from -288 on, NaN for NaN: 2^n times a polynomial in the
// rest, by Taylor at 0.
inline __m512 exp2_16(__m512 x) {
  const __m512 y = _mm512_max_ps(_mm512_set1_ps(-288.0f), x);
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
constexpr float kLog2E = 1.44269504f;
inline __m512 exp16(__m512 x) { return exp2_16(_mm512_mul_ps(x, _mm512_set1_ps(kLog2E))); }

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
  float* scores;       // [64, 16 heads]
  std::byte* weights;  // [2 halves] tiles: 16 heads x 32 keys
  std::byte* values;   // [2 halves of the keys][rank / 16] tiles: pairs of keys x 16 columns
  std::byte* rows;     // [64, entry] bf16 of pages of codes

  AbsorbedScratch(std::byte* s, int64_t rank)
      : scores(reinterpret_cast<float*>(s)),
        weights(s + 4096),
        values(weights + 2 * kTileBytes),
        rows(values + rank * 128) {}
};

// A page on its way into tiles.
struct AbsorbedPage {
  const std::byte* from;  // its entries in the cache
  int64_t entry_bytes;
  const float* scales;    // of codes
  const std::byte* keys;  // rows of bf16: the cache's own, or the scratch's
  int64_t key_bytes;      // from one to the next
  int64_t n_keys;
};

// The sums and the running softmax of 16 heads.
struct AbsorbedState {
  float* sum;      // [16, stride]
  float* softmax;  // [16] pairs: largest, sum
  int64_t stride;
};

// 32 codes to f32.
inline void widen_i8(const std::byte* codes, __m512* first, __m512* second) {
  const auto* q = reinterpret_cast<const __m128i*>(codes);
  *first = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(q)));
  *second = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(q + 1)));
}
// The same of e4m3, times 2^-8: with three zeros behind its mantissa a code is an fp16 of the same
// digits, subnormals included, whose exponent is smaller by 8.
inline void widen_f8(const std::byte* codes, __m512* first, __m512* second) {
  const __m512i c =
      _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes)));
  const __m512i sign = _mm512_and_si512(_mm512_slli_epi16(c, 8), _mm512_set1_epi16(-32768));
  const __m512i rest = _mm512_and_si512(_mm512_slli_epi16(c, 7), _mm512_set1_epi16(0x3F80));
  const __m512i half = _mm512_or_si512(sign, rest);
  *first = _mm512_cvtph_ps(_mm512_castsi512_si256(half));
  *second = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(half, 1));
}

// Codes take longer to widen than to read: asked for two rows ahead, a page takes 6.8 us instead of
// 7.7. (Pages of bf16 gain nothing by it.)
constexpr int64_t kCodesAhead = 1152;

// 32 latents of key t from column c on, in bf16; an entry beyond the last key may hold anything.
template <DType kStored>
inline __m512i latents(const AbsorbedPagesAmx& task, const AbsorbedPage& p, int64_t t, int64_t c,
                       std::byte* rows) {
  if (t >= p.n_keys) return _mm512_setzero_si512();
  const std::byte* from = p.from + t * p.entry_bytes;
  if constexpr (kStored == DType::bf16) return _mm512_loadu_si512(from + 2 * c);
  if (c % 64 == 0) _mm_prefetch(from + c + kCodesAhead, _MM_HINT_T0);
  const float scale = p.scales[t * task.n_scales + c / kScaleCols];
  __m512 a, b;
  if constexpr (kStored == DType::i8) {
    widen_i8(from + c, &a, &b);
  } else {
    widen_f8(from + c, &a, &b);
  }
  const __m512 by = _mm512_set1_ps(kStored == DType::i8 ? scale : scale * 256.0f);
  const __m512i line = bf16_line(_mm512_mul_ps(a, by), _mm512_mul_ps(b, by));
  _mm512_store_si512(rows + t * p.key_bytes + 2 * c, line);
  return line;
}

// Two keys: their latents as lines of pairs, the right operand of the sums (columns come out in the
// order of unpacklo and unpackhi, which the reader of the sums undoes), and codes as rows, the left
// operand of the scores.
template <DType kStored>
inline void prepare_pair(const AbsorbedPagesAmx& task, const AbsorbedPage& p, int64_t pair,
                         const AbsorbedScratch& s) {
  const int64_t rank = task.rank;
  std::byte* to = s.values + pair / 16 * (rank / 16) * kTileBytes + pair % 16 * 64;
  for (int64_t c = 0; c < rank; c += 32, to += 2 * kTileBytes) {
    const __m512i a = latents<kStored>(task, p, 2 * pair, c, s.rows);
    const __m512i b = latents<kStored>(task, p, 2 * pair + 1, c, s.rows);
    _mm512_store_si512(to, _mm512_unpacklo_epi16(a, b));
    _mm512_store_si512(to + kTileBytes, _mm512_unpackhi_epi16(a, b));
  }
  if constexpr (kStored == DType::bf16) return;
  for (int64_t t = 2 * pair; t < 2 * pair + 2 && t < p.n_keys; ++t)
    for (int64_t i = 0; i < (task.entry - rank) * 2; i += 64)
      _mm512_store_si512(s.rows + t * p.key_bytes + 2 * rank + i,
                         _mm512_loadu_si512(p.from + t * p.entry_bytes + task.rope_offset + i));
}

// scores[t, h] of the page, unscaled: keys are the left operand.
inline void absorbed_scores(const AbsorbedPage& p, int64_t entry, const std::byte* queries,
                            const AbsorbedScratch& s) {
  const std::byte* keys = p.keys;
  const int64_t rows16 = 16 * p.key_bytes;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t j = 0; j < entry / 32; ++j, keys += 64) {
    _tile_loadd(4, queries + j * kTileBytes, 64);
    _tile_loadd(6, keys, p.key_bytes);
    _tile_dpbf16ps(0, 6, 4);
    _tile_loadd(7, keys + rows16, p.key_bytes);
    _tile_dpbf16ps(1, 7, 4);
    _tile_loadd(6, keys + 2 * rows16, p.key_bytes);
    _tile_dpbf16ps(2, 6, 4);
    _tile_loadd(7, keys + 3 * rows16, p.key_bytes);
    _tile_dpbf16ps(3, 7, 4);
  }
  _tile_stored(0, s.scores, 64);
  _tile_stored(1, s.scores + 256, 64);
  _tile_stored(2, s.scores + 512, 64);
  _tile_stored(3, s.scores + 768, 64);
}

// Scores to weights, lanes being heads; returns the factor for what was summed before.
inline __m512 absorbed_softmax(float* state, float softmax_scale, int64_t n_keys,
                               const AbsorbedScratch& s) {
  const __m512i even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
  const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
  const __m512 state0 = _mm512_loadu_ps(state), state1 = _mm512_loadu_ps(state + 16);
  const __m512 before = _mm512_permutex2var_ps(state0, even, state1);
  __m512 sum = _mm512_permutex2var_ps(state0, odd, state1);
  const __m512 scale = _mm512_set1_ps(softmax_scale);
  __m512 largest = before;
  for (int64_t i = 0; i < n_keys; ++i) {
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
      if (i + j >= n_keys) break;
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

inline void absorbed_rescale(const AbsorbedState& state, int64_t rank, __m512 keep) {
  if (_mm512_cmp_ps_mask(keep, _mm512_set1_ps(1.0f), _CMP_EQ_OQ) == 0xFFFF) return;
  alignas(64) float factor[16];
  _mm512_store_ps(factor, keep);
  for (int64_t h = 0; h < 16; ++h) {
    if (factor[h] == 1.0f) continue;
    float* row = state.sum + h * state.stride;
    const __m512 f = _mm512_set1_ps(factor[h]);
    for (int64_t i = 0; i < rank; i += 16)
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

}  // namespace

void absorbed_query_amx(const float* q, int64_t q_stride, int64_t entry, std::byte* tiles) {
  alignas(64) std::byte rows[kTileBytes];
  for (int64_t j = 0; j < entry / 32; ++j) {
    for (int64_t h = 0; h < 16; ++h) {
      const float* from = q + h * q_stride + 32 * j;
      _mm512_store_si512(rows + h * 64,
                         bf16_line(_mm512_loadu_ps(from), _mm512_loadu_ps(from + 16)));
    }
    transpose_words(rows, 64, tiles + j * kTileBytes, 64);
  }
}

namespace {

// Reading a page and computing with it are apart on purpose. Bringing it into tiles reads in order,
// at what one core can read (17 GB/s here), and leaves it in the L2 cache. Interleaving the next
// page's reads with this one's tile instructions, or asking for its lines ahead of time (T0, T1, at
// several distances and rates), took as long or longer: 7.6 to 12 us a page against 7.6.
template <DType kStored>
void absorbed_pages(const AbsorbedPagesAmx& task) {
  const int64_t rank = task.rank, entry = task.entry, half_bytes = rank / 16 * kTileBytes;
  constexpr bool kCodes = kStored != DType::bf16;
  const AbsorbedScratch s(task.scratch, rank);
  configure_tiles();
  for (int64_t i = 0; i < task.n_pages; ++i) {
    const std::byte* from = task.data + task.numbers[i] * task.page_bytes;
    const AbsorbedPage page{.from = from,
                            .entry_bytes = task.entry_bytes,
                            .scales = reinterpret_cast<const float*>(from + task.scales_offset),
                            .keys = kCodes ? s.rows : from,
                            .key_bytes = kCodes ? entry * 2 : task.entry_bytes,
                            .n_keys = i + 1 < task.n_pages ? kPageKeys : task.n_last_keys};
    for (int64_t pair = 0; pair < 32; ++pair) prepare_pair<kStored>(task, page, pair, s);
    for (int64_t block = 0; block < task.n_blocks; ++block) {
      auto* sum = reinterpret_cast<float*>(task.states + block * task.state_bytes);
      const AbsorbedState state{sum, sum + 16 * task.sum_stride, task.sum_stride};
      stores_before_tiles();
      absorbed_scores(page, entry, task.queries + block * task.query_bytes, s);
      absorbed_rescale(state, rank, absorbed_softmax(state.softmax, task.scale, page.n_keys, s));
      stores_before_tiles();
      for (int64_t c = 0; c < rank; c += 64)
        add_four_tiles(s.weights, kTileBytes, 64, s.values + c / 16 * kTileBytes, half_bytes,
                       state.sum + c, state.stride * 4);
    }
  }
  _tile_release();
}

}  // namespace

void absorbed_pages_amx(const AbsorbedPagesAmx& task) {
  if (task.stored == DType::bf16) return absorbed_pages<DType::bf16>(task);
  if (task.stored == DType::i8) return absorbed_pages<DType::i8>(task);
  absorbed_pages<DType::f8_e4m3>(task);
}

// -- expanded -------------------------------------------------------------------------------------

namespace {

struct ExpandedTiles {
  int64_t steps;      // of 32 columns of q and k
  std::byte* keys;    // [steps][4 key tiles] tiles: pairs of columns x 16 keys
  std::byte* values;  // [2 halves of the keys][value / 16] tiles: pairs of keys x 16 columns

  ExpandedTiles(std::byte* tiles, int64_t qk)
      : steps((qk + 31) / 32), keys(tiles), values(tiles + steps * 4096) {}
};

// Of the rows' function, which goes by groups of 32 rows: two tiles of rows share each tile of keys
// and of values, which come from the second-level cache.
struct ExpandedScratch {
  float* scores[2];    // of this group and of the next: [32 rows, 64]
  std::byte* weights;  // [32 rows, 64] bf16

  explicit ExpandedScratch(std::byte* s)
      : scores{reinterpret_cast<float*>(s), reinterpret_cast<float*>(s + 8192)},
        weights(s + 16384) {}
};

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

inline __mmask16 expanded_keys(const ExpandedPageAmx& p, const ExpandedTiles& tiles,
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

inline __mmask16 expanded_values(const ExpandedPageAmx& p, const ExpandedTiles& tiles) {
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

// The scores of 32 rows in 2 * steps steps: the keys' first half, then the other; tiles 0 to 3.
inline void scores_step(const std::byte* q, const ExpandedTiles& tiles, int64_t step,
                        float* scores) {
  const int64_t j = step % tiles.steps, half = step / tiles.steps, stride = tiles.steps * 64;
  const std::byte* keys = tiles.keys + (j * 4 + half * 2) * kTileBytes;
  if (j == 0) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  _tile_loadd(4, q + j * 64, stride);
  _tile_loadd(6, keys, 64);
  _tile_dpbf16ps(0, 4, 6);
  _tile_loadd(7, keys + kTileBytes, 64);
  _tile_dpbf16ps(1, 4, 7);
  _tile_loadd(5, q + 16 * stride + j * 64, stride);
  _tile_dpbf16ps(2, 5, 6);
  _tile_dpbf16ps(3, 5, 7);
  if (j + 1 < tiles.steps) return;
  float* to = scores + half * 32;
  _tile_stored(0, to, 256);
  _tile_stored(1, to + 16, 256);
  _tile_stored(2, to + 16 * 64, 256);
  _tile_stored(3, to + 16 * 64 + 16, 256);
}

// sums [32 rows, 32 or 16 columns] += weights [32, 64 keys] * values.
template <bool kTwo>
inline void add_values(const std::byte* weights, const std::byte* values, int64_t half_bytes,
                       float* sums, int64_t stride) {
  float* lower = sums + 16 * (stride / 4);
  _tile_loadd(0, sums, stride);
  if (kTwo) _tile_loadd(1, sums + 16, stride);
  _tile_loadd(2, lower, stride);
  if (kTwo) _tile_loadd(3, lower + 16, stride);
  for (int64_t half = 0; half < 2; ++half, values += half_bytes, weights += 64) {
    _tile_loadd(4, weights, 128);
    _tile_loadd(6, values, 64);
    _tile_dpbf16ps(0, 4, 6);
    if (kTwo) _tile_loadd(7, values + kTileBytes, 64);
    if (kTwo) _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, weights + 16 * 128, 128);
    _tile_dpbf16ps(2, 5, 6);
    if (kTwo) _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, sums, stride);
  if (kTwo) _tile_stored(1, sums + 16, stride);
  _tile_stored(2, lower, stride);
  if (kTwo) _tile_stored(3, lower + 16, stride);
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

// The keys that row i of a group sees, among columns 16 j ..
inline __mmask16 seen_by(const ExpandedGroup& g, int64_t i, int j) {
  const int64_t n = g.n_keys + i;
  const uint64_t seen = n >= 64 ? ~uint64_t{0} : (uint64_t{1} << n) - 1;
  return static_cast<__mmask16>(seen >> (16 * j));
}

// The softmax of a group: all rows' maxima first, then one row's weights after another, between
// which the tiles of the next group's scores run; the rows' sums at the end. kAll: 16 rows that see
// all of the page.
template <bool kAll>
struct ExpandedSoftmax {
  const ExpandedRowsAmx& r;
  const ExpandedGroup& g;
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
      for (int j = 0; j < 4; ++j) {
        const __m512 x = _mm512_load_ps(scores + 64 * i + 16 * j);
        rows[i] = kAll ? _mm512_max_ps(x, rows[i])
                       : _mm512_mask_max_ps(rows[i], seen_by(g, i, j), x, rows[i]);
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
    __m512 x[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(),
                   _mm512_setzero_ps()};
    const __m512 factor = _mm512_set1_ps(r.scale * kLog2E), shift = _mm512_set1_ps(shifts[i]);
    for (int j = 0; j < 4 && (kAll || i < g.n_rows); ++j) {
      const __m512 score = _mm512_load_ps(scores + 64 * i + 16 * j);
      x[j] = exp2_16(_mm512_fmsub_ps(score, factor, shift));
      if (!kAll) x[j] = _mm512_maskz_mov_ps(seen_by(g, i, j), x[j]);
    }
    _mm512_store_si512(weights + i * 128, bf16_line(x[0], x[1]));
    _mm512_store_si512(weights + i * 128 + 64, bf16_line(x[2], x[3]));
    rows[i] = _mm512_add_ps(_mm512_add_ps(x[0], x[1]), _mm512_add_ps(x[2], x[3]));
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

}  // namespace

void expanded_queries_amx(const float* q, int64_t q_stride, int64_t n_rows, int64_t qk,
                          std::byte* out) {
  for (int64_t i = 0; i < n_rows; ++i, q += q_stride) {
    for (int64_t k = 0; k < qk; k += 32, out += 64)
      _mm512_storeu_si512(out,
                          bf16_line(load_tail(q + k, qk - k), load_tail(q + k + 16, qk - k - 16)));
  }
}

bool expanded_page_amx(const ExpandedPageAmx& page, std::byte* tiles, std::byte* scratch) {
  const ExpandedTiles t(tiles, page.nope + page.rope);
  return (expanded_keys(page, t, scratch) | expanded_values(page, t)) == 0;
}

namespace {

// The steps of the next group's scores, between the rows of this one's softmax.
struct NextScores {
  const std::byte* q;  // null after the last group
  const ExpandedTiles& tiles;
  float* scores;
  int64_t done = 0;

  // After `row` of 32 rows.
  inline void after(int64_t row) {
    if (q == nullptr) return;
    for (; done < 2 * tiles.steps * (row + 1) / 32; ++done) scores_step(q, tiles, done, scores);
  }
};

template <bool kAll>
inline void weigh(const ExpandedRowsAmx& r, const ExpandedGroup& g, const float* scores,
                  std::byte* weights, int64_t row, NextScores& next) {
  ExpandedSoftmax<kAll> softmax{r, g, scores, weights};
  softmax.maxima();
  for (int64_t i = 0; i < 16; ++i) {
    softmax.row(i);
    next.after(row + i);
  }
  softmax.sums();
  for (int64_t i = 0; i < g.n_rows; ++i)
    scale_row(r.sums + (g.first + i) * r.value, softmax.factors[i], r.value);
}

}  // namespace

void expanded_rows_amx(const ExpandedRowsAmx& rows, const std::byte* tiles, std::byte* scratch) {
  const ExpandedTiles t(const_cast<std::byte*>(tiles), rows.qk);
  const ExpandedScratch s(scratch);
  const int64_t half_bytes = rows.value / 16 * kTileBytes, stride = rows.value * 4;
  configure_tiles();
  stores_before_tiles();
  for (int64_t step = 0; step < 2 * t.steps; ++step) scores_step(rows.q, t, step, s.scores[0]);
  for (int64_t first = 0; first < rows.n_rows; first += 32) {
    const int64_t group = first / 32;
    NextScores next{first + 32 < rows.n_rows ? rows.q + (first + 32) * t.steps * 64 : nullptr, t,
                    s.scores[1 - group % 2]};
    for (int64_t part = 0; part < 32; part += 16) {
      const int64_t left = rows.n_rows - first - part;
      const ExpandedGroup g{first + part, left < 16 ? left : 16, rows.n_keys + first + part};
      const float* scores = s.scores[group % 2] + part * 64;
      std::byte* weights = s.weights + part * 128;
      if (g.n_keys >= 64 && g.n_rows == 16) {
        weigh<true>(rows, g, scores, weights, part, next);
      } else {
        weigh<false>(rows, g, scores, weights, part, next);
      }
    }
    stores_before_tiles();
    float* sums = rows.sums + first * rows.value;
    int64_t c = 0;
    for (; c + 32 <= rows.value; c += 32)
      add_values<true>(s.weights, t.values + c / 16 * kTileBytes, half_bytes, sums + c, stride);
    if (c < rows.value)
      add_values<false>(s.weights, t.values + c / 16 * kTileBytes, half_bytes, sums + c, stride);
  }
  _tile_release();
}

}  // namespace exo::kernels::cpu

#endif  // __x86_64__
