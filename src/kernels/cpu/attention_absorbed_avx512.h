/// Absorbed attention on tiles (attention_tiles.h), with the products of `Products`:
///   kTiles               its values come in tiles, not as rows
///   begin(), end()       around everything
///   scores(keys, key_bytes, entry, queries, next, out)   out[t, h], unscaled: 64 keys by 16 heads;
///                        lines of the next page may be asked for meanwhile
///   add_values(page, rank, scratch, next, sum, stride)
///                        sum [16 heads, rank] += weights [16, n_keys] * values
/// Include only from files compiled for AVX-512 with BF16 (see matmul_layout.h about linkage).
#pragma once

#include <immintrin.h>

#include "kernels/cpu/attention_parts_avx512.h"
#include "kernels/cpu/bf16_pairs_avx512.h"

namespace exo::kernels::cpu {
namespace {  // NOLINT: internal linkage on purpose

struct AbsorbedScratch {
  float* scores;       // [64, 16 heads]
  std::byte* weights;  // tiles: [2 halves] of 16 heads x 32 keys; else [32 pairs] of 16 heads
  std::byte* values;   // tiles: [2 halves of the keys][rank / 16] of pairs of keys x 16 columns
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
inline __m512i latents(const AbsorbedPages& task, const AbsorbedPage& p, int64_t t, int64_t c,
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

// Two keys: for tiles, their latents as lines of pairs, the right operand of the sums (columns come
// out in the order of unpacklo and unpackhi, which the reader of the sums undoes); and codes as
// rows, the left operand of the scores.
template <DType kStored, bool kTiles>
inline void prepare_pair(const AbsorbedPages& task, const AbsorbedPage& p, int64_t pair,
                         const AbsorbedScratch& s) {
  const int64_t rank = task.rank;
  std::byte* to = s.values + pair / 16 * (rank / 16) * kTileBytes + pair % 16 * 64;
  for (int64_t c = 0; c < rank; c += 32, to += 2 * kTileBytes) {
    const __m512i a = latents<kStored>(task, p, 2 * pair, c, s.rows);
    const __m512i b = latents<kStored>(task, p, 2 * pair + 1, c, s.rows);
    if constexpr (!kTiles) continue;
    _mm512_store_si512(to, _mm512_unpacklo_epi16(a, b));
    _mm512_store_si512(to + kTileBytes, _mm512_unpackhi_epi16(a, b));
  }
  if constexpr (kStored == DType::bf16) return;
  for (int64_t t = 2 * pair; t < 2 * pair + 2 && t < p.n_keys; ++t)
    for (int64_t i = 0; i < (task.entry - rank) * 2; i += 64)
      _mm512_store_si512(s.rows + t * p.key_bytes + 2 * rank + i,
                         _mm512_loadu_si512(p.from + t * p.entry_bytes + task.rope_offset + i));
}

// Scores to weights, lanes being heads; returns the factor for what was summed before.
template <bool kTiles>
inline __m512 absorbed_softmax(float* state, float softmax_scale, int64_t n_keys,
                               const AbsorbedScratch& s) {
  HeadsSoftmax softmax = load_softmax(state);
  const __m512 keep = add_scores(s.scores, softmax_scale, n_keys, softmax);
  alignas(64) std::byte of_tiles[2 * kTileBytes];
  std::byte* pairs = kTiles ? of_tiles : s.weights;
  for (int64_t i = 0; i < 64; i += 2) {
    __m512 w[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    for (int64_t j = 0; j < 2; ++j) {
      if (i + j >= n_keys) break;
      w[j] = exp16(_mm512_sub_ps(_mm512_loadu_ps(s.scores + 16 * (i + j)), softmax.largest));
      softmax.sum = _mm512_add_ps(softmax.sum, w[j]);
    }
    _mm512_store_si512(pairs + i / 2 * 64, bf16_pairs(w[0], w[1]));
  }
  if constexpr (kTiles) {
    transpose_words(pairs, 64, s.weights, 64);
    transpose_words(pairs + kTileBytes, 64, s.weights + kTileBytes, 64);
  }
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

// On AMX reading a page and computing with it are apart on purpose. Bringing it into tiles reads in
// order, at what one core can read, and leaves it in the L2 cache. Interleaving the next page's
// reads with this one's tile instructions, or asking for all its lines ahead of time (T0, T1, at
// several distances and rates), took as long or longer: what is asked for and what tiles load from
// L2 wait for the same fill buffers. Only the head of each 4 KiB is asked for, where the L2
// streamer would start afresh: a seventh less time. Vectors leave the memory time: all of the next
// page is asked for while this one is computed.
template <class Products, DType kStored>
void absorbed_pages_of(const AbsorbedPages& task) {
  const int64_t rank = task.rank, entry = task.entry;
  constexpr bool kCodes = kStored != DType::bf16;
  const AbsorbedScratch s(task.scratch, rank);
  Products::begin();
  for (int64_t i = 0; i < task.n_pages; ++i) {
    const std::byte* from = task.data + task.numbers[i] * task.page_bytes;
    const AbsorbedPage page{.from = from,
                            .entry_bytes = task.entry_bytes,
                            .scales = reinterpret_cast<const float*>(from + task.scales_offset),
                            .keys = kCodes ? s.rows : from,
                            .key_bytes = kCodes ? entry * 2 : task.entry_bytes,
                            .n_keys = i + 1 < task.n_pages ? kPageKeys : task.n_last_keys};
    NextPage next = page_at(task, i + 1);
    if constexpr (Products::kTiles || kCodes)
      for (int64_t pair = 0; pair < 32; ++pair)
        prepare_pair<kStored, Products::kTiles>(task, page, pair, s);
    for (int64_t block = 0; block < task.n_blocks; ++block) {
      const AbsorbedState state(task, block);
      Products::scores(page.keys, page.key_bytes, entry, task.queries + block * task.query_bytes,
                       next, s.scores);
      absorbed_rescale(
          state, rank,
          absorbed_softmax<Products::kTiles>(state.softmax, task.scale, page.n_keys, s));
      Products::add_values(page, rank, s, next, state.sum, state.stride);
    }
  }
  Products::end();
}

template <class Products>
void absorbed_pages(const AbsorbedPages& task) {
  if (task.stored == DType::bf16) return absorbed_pages_of<Products, DType::bf16>(task);
  if (task.stored == DType::i8) return absorbed_pages_of<Products, DType::i8>(task);
  absorbed_pages_of<Products, DType::f8_e4m3>(task);
}

}  // namespace
}  // namespace exo::kernels::cpu
