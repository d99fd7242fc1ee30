/// Absorbed attention in bf16 (attention_tiles.h), a page at a time, with the products of
/// `Products`:
///   scores(keys, key_bytes, entry, queries, next, out)   out[t, h], unscaled: 64 keys by 16 heads
///   add_values(page, rank, weights, next, sum, stride)
///                        sum [16 heads, rank] += weights [16, n_keys] * values
/// Both ask for lines of the next page meanwhile. AMX has a way of its own
/// (attention_absorbed_amx.h).
/// Include only from files compiled for AVX-512 with BF16 (see matmul_layout.h about linkage).
#pragma once

#include <immintrin.h>

#include "kernels/cpu/attention_parts_avx512.h"
#include "kernels/cpu/bf16_pairs_avx512.h"

namespace exo::kernels::cpu {
namespace {  // NOLINT: internal linkage on purpose

struct AbsorbedScratch {
  float* scores;       // [64, 16 heads]
  std::byte* weights;  // [32 pairs] of 16 heads
  std::byte* rows;     // [64, entry] bf16 of pages of codes

  explicit AbsorbedScratch(std::byte* s)
      : scores(reinterpret_cast<float*>(s)), weights(s + 4096), rows(weights + 2048) {}
};

// A page of bf16: the cache's own, or the scratch's.
struct AbsorbedPage {
  const std::byte* keys;
  int64_t key_bytes;  // from one to the next
  int64_t n_keys;
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

// The entries of a page of codes as rows of bf16, task.entry * 2 bytes apart.
template <DType kStored>
inline void widen_page(const AbsorbedPages& task, const std::byte* page, int64_t n_keys,
                       std::byte* rows) {
  const auto* scales = reinterpret_cast<const float*>(page + task.scales_offset);
  for (int64_t t = 0; t < n_keys; ++t, page += task.entry_bytes, scales += task.n_scales) {
    for (int64_t c = 0; c < task.rank; c += 32, rows += 64) {
      if (c % 64 == 0) _mm_prefetch(page + c + kCodesAhead, _MM_HINT_T0);
      __m512 a, b;
      if constexpr (kStored == DType::i8) {
        widen_i8(page + c, &a, &b);
      } else {
        widen_f8(page + c, &a, &b);
      }
      const float scale = scales[c / kScaleCols];
      const __m512 by = _mm512_set1_ps(kStored == DType::i8 ? scale : scale * 256.0f);
      _mm512_store_si512(rows, bf16_line(_mm512_mul_ps(a, by), _mm512_mul_ps(b, by)));
    }
    for (int64_t i = 0; i < (task.entry - task.rank) * 2; i += 64, rows += 64)
      _mm512_store_si512(rows, _mm512_loadu_si512(page + task.rope_offset + i));
  }
}

// The weights of `n` keys, of which those from n_keys on are 0, as lines of pairs of keys by 16
// heads.
inline void add_weights(const float* scores, int64_t n, int64_t n_keys, HeadsSoftmax& softmax,
                        std::byte* pairs) {
  for (int64_t i = 0; i < n; i += 2, pairs += 64) {
    __m512 w[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    for (int64_t j = 0; j < 2 && i + j < n_keys; ++j) {
      w[j] = exp16(_mm512_sub_ps(_mm512_loadu_ps(scores + 16 * (i + j)), softmax.largest));
      softmax.sum = _mm512_add_ps(softmax.sum, w[j]);
    }
    _mm512_store_si512(pairs, bf16_pairs(w[0], w[1]));
  }
}

// Scores to weights, lanes being heads; returns the factor for what was summed before.
inline __m512 absorbed_softmax(float* state, float softmax_scale, int64_t n_keys,
                               const AbsorbedScratch& s) {
  HeadsSoftmax softmax = load_softmax(state);
  const __m512 keep = add_scores(s.scores, softmax_scale, n_keys, softmax);
  add_weights(s.scores, 64, n_keys, softmax, s.weights);
  store_softmax(softmax, state);
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

// Columns [0, n) of 16 heads, n a multiple of 32, to tiles.
inline void query_tiles(const float* q, int64_t q_stride, int64_t n, std::byte* tiles) {
  alignas(64) std::byte rows[kTileBytes];
  for (int64_t j = 0; j < n / 32; ++j) {
    for (int64_t h = 0; h < 16; ++h) {
      const float* from = q + h * q_stride + 32 * j;
      _mm512_store_si512(rows + h * 64,
                         bf16_line(_mm512_loadu_ps(from), _mm512_loadu_ps(from + 16)));
    }
    transpose_words(rows, 64, tiles + j * kTileBytes, 64);
  }
}

inline void absorbed_query(const float* q, int64_t q_stride, int64_t entry, int64_t,
                           std::byte* to) {
  query_tiles(q, q_stride, entry, to);
}

template <class Products, DType kStored>
void absorbed_pages_of(const AbsorbedPages& task) {
  constexpr bool kCodes = kStored != DType::bf16;
  const AbsorbedScratch s(task.scratch);
  for (int64_t i = 0; i < task.n_pages; ++i) {
    const std::byte* from = task.data + task.numbers[i] * task.page_bytes;
    const AbsorbedPage page{.keys = kCodes ? s.rows : from,
                            .key_bytes = kCodes ? task.entry * 2 : task.entry_bytes,
                            .n_keys = i + 1 < task.n_pages ? kPageKeys : task.n_last_keys};
    NextPage next = page_at(task, i + 1);
    if constexpr (kCodes) widen_page<kStored>(task, from, page.n_keys, s.rows);
    for (int64_t block = 0; block < task.n_blocks; ++block) {
      const AbsorbedState state(task, block);
      Products::scores(page.keys, page.key_bytes, task.entry,
                       task.queries + block * task.query_bytes, next, s.scores);
      absorbed_rescale(state, task.rank,
                       absorbed_softmax(state.softmax, task.scale, page.n_keys, s));
      Products::add_values(page, task.rank, s.weights, next, state.sum, state.stride);
    }
  }
}

template <class Products>
void absorbed_pages(const AbsorbedPages& task) {
  if (task.stored == DType::bf16) return absorbed_pages_of<Products, DType::bf16>(task);
  if (task.stored == DType::i8) return absorbed_pages_of<Products, DType::i8>(task);
  absorbed_pages_of<Products, DType::f8_e4m3>(task);
}

}  // namespace
}  // namespace exo::kernels::cpu
