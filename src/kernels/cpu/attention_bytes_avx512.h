/// Absorbed attention on an int8 cache, its codes multiplied as bytes (vpdpbusd: twice the rate of
/// bf16 pairs, and nothing is widened). Queries are rounded to bytes too, one scale for the same
/// 128 columns that share one in an entry; the weights of two pages, which the entries' scales are
/// part of, to the 255th part of the largest of their head. What a weight's rounding takes or adds
/// is carried to the next key's, so that many small weights together stay what they are. `Rope` has
/// the products of the rotated columns, which the cache keeps in bf16:
///   Dot                                    of add_16_keys, sums in f32
///   query(q, q_stride, rope, out)          16 heads' columns to [rope / 2] lines of Dot
/// Include only from files compiled for AVX-512 with VNNI (see matmul_layout.h about linkage).
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <limits>

#include "kernels/cpu/attention_parts_avx512.h"

namespace exo::kernels::cpu {
namespace {  // NOLINT: internal linkage on purpose

constexpr int64_t n_parts_of(int64_t rank) { return (rank + kScaleCols - 1) / kScaleCols; }

// The queries of 16 heads, in at most absorbed_query_bytes.
struct ByteQueries {
  std::byte* codes;  // [rank / 4] lines of 16 heads x 4 columns, unsigned: 128 added
  float* scales;     // [parts, 16]
  std::byte* rope;   // [rope / 2] lines

  ByteQueries(std::byte* q, int64_t rank)
      : codes(q),
        scales(reinterpret_cast<float*>(codes + 16 * rank)),
        rope(codes + 16 * rank + n_parts_of(rank) * 64) {}
};

// Pages are attended to two at a time: the sums of 16 heads are as large as a first-level cache.
constexpr int64_t kStepPages = 2;
constexpr int64_t kStepKeys = kStepPages * kPageKeys;

struct BytesScratch {
  float* scores;       // [128 keys, 16 heads], then weights
  std::byte* values;   // [32 quads of keys] of 4 lines: 64 columns
  std::byte* weights;  // [parts][32 quads of keys] lines of 16 heads x 4 keys
  float* units;        // [parts, 16]: what a weight's code is worth
  int32_t* offsets;    // [parts, 128]: of each key's codes, -128 times their sum

  BytesScratch(std::byte* s, int64_t rank)
      : scores(reinterpret_cast<float*>(s)),
        values(s + kStepKeys * 64),
        weights(values + kStepKeys * 64),
        units(reinterpret_cast<float*>(weights + n_parts_of(rank) * kStepKeys * 16)),
        offsets(reinterpret_cast<int32_t*>(units + n_parts_of(rank) * 16)) {}
};

// The pages of a step, all but the last full.
struct ByteStep {
  struct Page {
    const std::byte* codes;  // of key t at codes + t * stride; behind n_keys they may be anything
    const float* scales;     // [64, parts]
    int64_t n_keys;
  };
  Page pages[kStepPages];
  int64_t n_pages;
  int64_t n_keys;  // of all
  int64_t stride, rope_offset;
  int64_t rank, rope, n_parts;

  ByteStep(const AbsorbedPages& task, int64_t first)
      : n_pages(std::min(kStepPages, task.n_pages - first)),
        n_keys(0),
        stride(task.entry_bytes),
        rope_offset(task.rope_offset),
        rank(task.rank),
        rope(task.entry - task.rank),
        n_parts(task.n_scales) {
    for (int64_t i = 0; i < n_pages; ++i) {
      const std::byte* from = task.data + task.numbers[first + i] * task.page_bytes;
      pages[i] = {.codes = from,
                  .scales = reinterpret_cast<const float*>(from + task.scales_offset),
                  .n_keys = first + i + 1 < task.n_pages ? kPageKeys : task.n_last_keys};
      n_keys += pages[i].n_keys;
    }
  }
  int64_t part_columns(int64_t part) const {
    return std::min(kScaleCols, rank - part * kScaleCols);
  }
};

// -- queries ------------------------------------------------------------------------------------

template <class Rope>
void byte_query(const float* q, int64_t q_stride, int64_t entry, int64_t rank, std::byte* out) {
  const VectorKernels& v = vector_kernels(Isa::avx512);
  const ByteQueries to(out, rank);
  alignas(64) int8_t rows[16][kScaleCols];
  for (int64_t p = 0; p < n_parts_of(rank); ++p) {
    const int64_t first = p * kScaleCols, n = std::min(kScaleCols, rank - first);
    for (int64_t h = 0; h < 16; ++h)
      to.scales[p * 16 + h] = v.round_to_i8(q + h * q_stride + first, rows[h], n);
    for (int64_t c = 0; c < n; c += 64)
      transpose_words(reinterpret_cast<const std::byte*>(rows[0]) + c, kScaleCols,
                      to.codes + 16 * (first + c), 64);
  }
  for (int64_t i = 0; i < 16 * rank; i += 64) {
    const __m512i code = _mm512_loadu_si512(to.codes + i);
    _mm512_storeu_si512(to.codes + i, _mm512_xor_si512(code, _mm512_set1_epi8(-128)));
  }
  Rope::query(q + rank, q_stride, entry - rank, to.rope);
}

// -- scores -------------------------------------------------------------------------------------

// GCC 12 copies the sums of its intrinsic for vpdpbusd from register to register, as many times as
// it adds to them: written out, they stay where they are.
inline __m512i add_products(__m512i sum, __m512i unsigned_bytes, __m512i signed_bytes) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(unsigned_bytes), "vm"(signed_bytes));
  return sum;
}
using FourBytes [[gnu::may_alias, gnu::aligned(1)]] = int32_t;

// Four columns of 16 heads with those of a key.
struct DotBytes {
  using Sum = __m512i;
  static constexpr int64_t kLineBytes = 64;
  static __m512i line_at(const std::byte* p) { return _mm512_loadu_si512(p); }
  static __m512i add(__m512i sum, __m512i line, const std::byte* key) {
    asm("vpdpbusd %2%{1to16%}, %1, %0"
        : "+v"(sum)
        : "v"(line), "m"(*reinterpret_cast<const FourBytes*>(key)));
    return sum;
  }
};

// Sums of the lanes of 4 vectors, those of vector i in place i of each 128 bits.
inline __m512i sums_of_4(__m512i a, __m512i b, __m512i c, __m512i d) {
  const __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
  const __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
  return _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
}

// What queries with 128 added make too much of 16 keys: offsets [parts], kStepKeys apart.
inline void offsets_of_16_keys(const ByteStep& step, const std::byte* keys, int32_t* offsets) {
  const __m512i ones = _mm512_set1_epi8(1);
  for (int64_t p = 0; p < step.n_parts; ++p, keys += kScaleCols, offsets += kStepKeys) {
    const int64_t n = step.part_columns(p);
    __m512i sums[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      __m512i of_key[4];
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        const std::byte* codes = keys + (4 * i + j) * step.stride;
        of_key[j] = _mm512_setzero_si512();
        for (int64_t c = 0; c < n; c += 64)
          of_key[j] = add_products(of_key[j], ones, _mm512_loadu_si512(codes + c));
      }
      sums[i] = sums_of_4(of_key[0], of_key[1], of_key[2], of_key[3]);
    }
    // The four lanes of 128 bits are added: sums[i] becomes lane i.
    const __m512i a = _mm512_add_epi32(_mm512_shuffle_i32x4(sums[0], sums[1], 0x88),
                                       _mm512_shuffle_i32x4(sums[0], sums[1], 0xDD));
    const __m512i b = _mm512_add_epi32(_mm512_shuffle_i32x4(sums[2], sums[3], 0x88),
                                       _mm512_shuffle_i32x4(sums[2], sums[3], 0xDD));
    const __m512i all =
        _mm512_add_epi32(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xDD));
    _mm512_storeu_si512(offsets,
                        _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32(all, 7)));
  }
}

// out [16 keys, 16 heads]: of keys that have those scales [16, parts] and offsets.
template <class Rope>
inline void scores_of_16_keys(const ByteStep& step, const std::byte* keys, const float* scales,
                              const int32_t* offsets, const ByteQueries& q, NextPage& next,
                              float* out) {
  __m512 sums[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) sums[i] = _mm512_setzero_ps();
  add_16_keys<typename Rope::Dot, 1>(keys + step.rope_offset, step.stride, q.rope, step.rope / 2,
                                     next, sums);
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) _mm512_storeu_ps(out + i * 16, sums[i]);
  for (int64_t p = 0; p < step.n_parts; ++p, ++scales) {
    const int64_t first = p * kScaleCols;
    __m512i codes[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) codes[i] = _mm512_set1_epi32(offsets[p * kStepKeys + i]);
    add_16_keys<DotBytes, 1>(keys + first, step.stride, q.codes + 16 * first,
                             step.part_columns(p) / 4, next, codes);
    const __m512 q_scale = _mm512_loadu_ps(q.scales + p * 16);
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) {
      const __m512 by = _mm512_mul_ps(q_scale, _mm512_set1_ps(scales[i * step.n_parts]));
      _mm512_storeu_ps(out + i * 16, _mm512_fmadd_ps(_mm512_cvtepi32_ps(codes[i]), by,
                                                     _mm512_loadu_ps(out + i * 16)));
    }
  }
}

// -- weights ------------------------------------------------------------------------------------

// The weights of kParts parts from `first` on as codes. The parts' roundings are carried side by
// side: one alone would wait for itself at every key.
template <int kParts>
inline void weights_to_bytes(const ByteStep& step, int64_t first, const BytesScratch& s) {
  __m512 largest[kParts], inverse[kParts], carry[kParts];
#pragma GCC unroll 4
  for (int p = 0; p < kParts; ++p) largest[p] = carry[p] = _mm512_setzero_ps();
  const float* weight = s.scores;
  for (int64_t i = 0; i < step.n_pages; ++i) {
    const float* scales = step.pages[i].scales + first;
    for (int64_t t = 0; t < step.pages[i].n_keys; ++t, weight += 16, scales += step.n_parts) {
      const __m512 w = _mm512_loadu_ps(weight);
#pragma GCC unroll 4
      for (int p = 0; p < kParts; ++p)
        largest[p] = _mm512_max_ps(largest[p], _mm512_mul_ps(w, _mm512_set1_ps(scales[p])));
    }
  }
#pragma GCC unroll 4
  for (int p = 0; p < kParts; ++p) {
    // 254.5 and a carry of a half are at most 255. Where the inverse would leave f32 nothing
    // remains.
    const __m512 unit = _mm512_mul_ps(largest[p], _mm512_set1_ps(1.0f / 254.5f));
    const __mmask16 some =
        _mm512_cmp_ps_mask(unit, _mm512_set1_ps(std::numeric_limits<float>::min()), _CMP_GE_OQ);
    inverse[p] = _mm512_maskz_div_ps(some, _mm512_set1_ps(1.0f), unit);
    _mm512_storeu_ps(s.units + (first + p) * 16, unit);
  }
  weight = s.scores;
  std::byte* to = s.weights + first * kStepKeys * 16;
  for (int64_t i = 0; i < step.n_pages; ++i) {
    const float* scales = step.pages[i].scales + first;
    for (int64_t t = 0; t < step.pages[i].n_keys; t += 4, to += 64) {
      __m512i codes[kParts];
#pragma GCC unroll 4
      for (int p = 0; p < kParts; ++p) codes[p] = _mm512_setzero_si512();
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j, weight += 16, scales += step.n_parts) {
        const bool some = t + j < step.pages[i].n_keys;
        const __m512 w = some ? _mm512_loadu_ps(weight) : _mm512_setzero_ps();
#pragma GCC unroll 4
        for (int p = 0; p < kParts; ++p) {
          const __m512 scale = _mm512_set1_ps(some ? scales[p] : 0.0f);
          const __m512 x = _mm512_fmadd_ps(_mm512_mul_ps(w, scale), inverse[p], carry[p]);
          const __m512 rounded =
              _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
          carry[p] = _mm512_sub_ps(x, rounded);
          codes[p] = _mm512_shrdi_epi32(codes[p], _mm512_cvtps_epi32(rounded), 8);
        }
      }
#pragma GCC unroll 4
      for (int p = 0; p < kParts; ++p) _mm512_storeu_si512(to + p * kStepKeys * 16, codes[p]);
    }
  }
}

// Scores to the weights' codes; returns the factor for what was summed before.
inline __m512 bytes_softmax(const ByteStep& step, float softmax_scale, float* state,
                            const BytesScratch& s) {
  HeadsSoftmax softmax = load_softmax(state);
  const __m512 keep = add_scores(s.scores, softmax_scale, step.n_keys, softmax);
  for (int64_t t = 0; t < step.n_keys; ++t) {
    const __m512 w = exp16(_mm512_sub_ps(_mm512_loadu_ps(s.scores + 16 * t), softmax.largest));
    softmax.sum = _mm512_add_ps(softmax.sum, w);
    _mm512_storeu_ps(s.scores + 16 * t, w);
  }
  store_softmax(softmax, state);
  int64_t p = 0;
  for (; p + 4 <= step.n_parts; p += 4) weights_to_bytes<4>(step, p, s);
  for (; p < step.n_parts; ++p) weights_to_bytes<1>(step, p, s);
  return keep;
}

// -- values -------------------------------------------------------------------------------------

// 64 columns of four keys, the keys' bytes beside each other; columns come out in the order of
// interleaved_column.
inline void interleave_quad(const std::byte* keys, int64_t stride, __m512i (&out)[4]) {
  const __m512i r0 = _mm512_loadu_si512(keys), r1 = _mm512_loadu_si512(keys + stride);
  const __m512i r2 = _mm512_loadu_si512(keys + 2 * stride),
                r3 = _mm512_loadu_si512(keys + 3 * stride);
  const __m512i low01 = _mm512_unpacklo_epi8(r0, r1), high01 = _mm512_unpackhi_epi8(r0, r1);
  const __m512i low23 = _mm512_unpacklo_epi8(r2, r3), high23 = _mm512_unpackhi_epi8(r2, r3);
  out[0] = _mm512_unpacklo_epi16(low01, low23);
  out[1] = _mm512_unpackhi_epi16(low01, low23);
  out[2] = _mm512_unpacklo_epi16(high01, high23);
  out[3] = _mm512_unpackhi_epi16(high01, high23);
}

// The products of 4 heads with 64 columns of values.
struct ValueSums {
  __m512i sum[4][4];

  void clear() {
#pragma GCC unroll 4
    for (auto& head : sum) {
#pragma GCC unroll 4
      for (__m512i& v : head) v = _mm512_setzero_si512();
    }
  }
  void add(const std::byte* weights, const __m512i (&values)[4]) {
#pragma GCC unroll 4
    for (int h = 0; h < 4; ++h) {
      const __m512i w = _mm512_set1_epi32(*reinterpret_cast<const FourBytes*>(weights + 4 * h));
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) sum[h][j] = add_products(sum[h][j], w, values[j]);
    }
  }
  // to [4, 64 columns] = keep * to + unit * sum
  void store(const float* keep, const float* unit, float* to, int64_t stride) const {
#pragma GCC unroll 4
    for (int h = 0; h < 4; ++h, to += stride) {
      const __m512 k = _mm512_set1_ps(keep[h]), u = _mm512_set1_ps(unit[h]);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        const __m512 before = _mm512_mul_ps(_mm512_loadu_ps(to + 16 * j), k);
        _mm512_storeu_ps(to + 16 * j, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[h][j]), u, before));
      }
    }
  }
};

// 64 columns from c on of 16 heads: the first four heads' products go with the interleaving of
// values, which the others find done.
inline void add_byte_values(const ByteStep& step, int64_t c, const float* keep,
                            const AbsorbedState& state, const BytesScratch& s) {
  const int64_t part = c / kScaleCols;
  const std::byte* weights = s.weights + part * kStepKeys * 16;
  const float* units = s.units + part * 16;
  float* to = state.sum + c;
  ValueSums sums;
  sums.clear();
  std::byte* values = s.values;
  for (int64_t i = 0; i < step.n_pages; ++i) {
    const std::byte* keys = step.pages[i].codes + c;
    for (int64_t t = 0; t < step.pages[i].n_keys; t += 4, values += 256) {
      __m512i quad[4];
      interleave_quad(keys + t * step.stride, step.stride, quad);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) _mm512_store_si512(values + 64 * j, quad[j]);
      sums.add(weights + (values - s.values) / 4, quad);
    }
  }
  sums.store(keep, units, to, state.stride);
  for (int64_t h = 4; h < 16; h += 4) {
    sums.clear();
    for (const std::byte* v = s.values; v < values; v += 256) {
      __m512i quad[4];
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) quad[j] = _mm512_load_si512(v + 64 * j);
      sums.add(weights + (v - s.values) / 4 + 4 * h, quad);
    }
    sums.store(keep + h, units + h, to + h * state.stride, state.stride);
  }
}

// -- pages --------------------------------------------------------------------------------------

template <class Rope>
void byte_pages(const AbsorbedPages& task) {
  const BytesScratch s(task.scratch, task.rank);
  for (int64_t first = 0; first < task.n_pages; first += kStepPages) {
    const ByteStep step(task, first);
    for (int64_t block = 0; block < task.n_blocks; ++block) {
      const AbsorbedState state(task, block);
      const ByteQueries q(const_cast<std::byte*>(task.queries) + block * task.query_bytes,
                          task.rank);
      float* out = s.scores;
      int32_t* offsets = s.offsets;
      for (int64_t i = 0; i < step.n_pages; ++i) {
        const ByteStep::Page& page = step.pages[i];
        // While one page is computed, the one that is as far ahead as a step has pages comes.
        NextPage next = block == 0 ? page_at(task, first + i + kStepPages) : NextPage{};
        for (int64_t t = 0; t < page.n_keys; t += 16, out += 256, offsets += 16) {
          const std::byte* keys = page.codes + t * step.stride;
          if (block == 0) offsets_of_16_keys(step, keys, offsets);
          scores_of_16_keys<Rope>(step, keys, page.scales + t * step.n_parts, offsets, q, next,
                                  out);
        }
      }
      alignas(64) float keep[16];
      _mm512_store_ps(keep, bytes_softmax(step, task.scale, state.softmax, s));
      for (int64_t c = 0; c < task.rank; c += 64) add_byte_values(step, c, keep, state, s);
    }
  }
}

template <class Rope>
AbsorbedAttention absorbed_bytes() {
  return {.query = byte_query<Rope>, .pages = byte_pages<Rope>, .n_interleaved = 4};
}

}  // namespace
}  // namespace exo::kernels::cpu
