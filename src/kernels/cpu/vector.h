/// The vector pieces that this room's bodies are made of: one function per step of an operation,
/// compiled for every instruction set (vector_*.cc), never threaded. Pointers need no alignment
/// unless said; counts may be anything.
#pragma once

#include <cstdint>

#include "kernels/cpu/isa.h"
#include "tensor/packed.h"

namespace exo::kernels::cpu {

/// A query row's running softmax (Milakov & Gimelshein 2018): the largest score so far and the sum
/// of exp(score - largest).
struct SoftmaxState {
  float largest;
  float sum;
};

/// Heads that share what is read of a page of the latent.
inline constexpr int64_t kPageHeads = 16;

/// A page's entries for up to kPageHeads heads of one row of queries: what f32 and words share.
struct HeadsPage {
  int64_t n_heads = 0;
  int64_t stride = 0;  ///< from an entry to the next
  int64_t n_keys = 0;  ///< 1 to 64
  int64_t dim = 0;
  int64_t rank = 0;                 ///< of an entry's columns those that are its value, the first
  float* weights = nullptr;         ///< scratch [64, kPageHeads], 64-aligned
  SoftmaxState* softmax = nullptr;  ///< [kPageHeads]
  float* sum = nullptr;             ///< [n_heads, rank], sum_stride apart, not yet divided
  int64_t sum_stride = 0;
  const std::byte *next = nullptr, *next_end = nullptr;  ///< bytes that are asked for meanwhile
};

struct PageOfHeads : HeadsPage {
  const float* q_t = nullptr;      ///< [dim, kPageHeads], 64-aligned, zeros where there is no head
  const float* entries = nullptr;  ///< [n_keys, dim]
  float scale = 1;
};

/// In integers of 16 bits, whose products have twice the rate of f32's where there are no units for
/// bf16 (vpmaddwd, vpdpwssd). Rows of queries and of entries are codes that round_to_words has
/// made; sums of their products are exact. dim is even, rank a multiple of 32; columns of `sum` are
/// in the order of interleaved_column, 2 vectors.
struct PageOfWords : HeadsPage {
  const int16_t* q = nullptr;        ///< codes [dim / 2, kPageHeads, 2], 64-aligned
  const float* q_scales = nullptr;   ///< [kPageHeads], 64-aligned, those of the softmax included
  const int16_t* entries = nullptr;  ///< codes [align_up(n_keys, 2), dim]
  const float* scales = nullptr;     ///< [n_keys]
};

/// Where columns c .. c + 3 (c a multiple of 4) of a sum lie that interleaving within 128-bit lanes
/// has left in blocks of n_columns, n_vectors of them: words interleave as 2 vectors, bytes as 4.
constexpr int64_t interleaved_column(int64_t c, int64_t n_columns, int64_t n_vectors) {
  const int64_t in_block = c % n_columns;
  return c - in_block + in_block / (4 * n_vectors) * 4 +
         in_block / 4 % n_vectors * (n_columns / n_vectors);
}

struct ExpandedAttention;  // attention_tiles.h

struct VectorKernels {
  // Rows of f32 [n].
  void (*widen_bf16)(const bf16* x, float* out, int64_t n);
  void (*round_to_bf16)(const float* x, bf16* out, int64_t n);
  /// Codes of i8 or f8_e4m3 (ops::StoreLatentArgs): out = scale * code; and back, returning the
  /// scale.
  void (*widen_i8)(const int8_t* codes, float scale, float* out, int64_t n);
  void (*widen_f8)(const f8_e4m3* codes, float scale, float* out, int64_t n);
  float (*round_to_i8)(const float* x, int8_t* codes, int64_t n);
  float (*round_to_f8)(const float* x, f8_e4m3* codes, int64_t n);
  void (*rms_norm)(const float* x, const float* weight, float eps, float* out, int64_t n);
  void (*add)(const float* x, float* y, int64_t n);  ///< y += x
  /// out[rows[r], 0..n) += scales[r] * x[r, 0..n)
  void (*add_scaled_rows)(const float* scales, const float* x, int64_t stride, const int32_t* rows,
                          int64_t n_rows, int64_t n, float* out, int64_t out_stride);
  /// (a, b) of pairs j < half: (a cos[j] - b sin[j], a sin[j] + b cos[j]).
  void (*rope)(float* x, const float* cos, const float* sin, int64_t half);
  void (*sigmoid)(const float* x, float* out, int64_t n);
  void (*softmax)(const float* x, float* out, int64_t n);
  /// out[r, 16 p + i] = silu(x[r, 32 p + i]) * x[r, 32 p + 16 + i]: rows of a gate_up product.
  void (*silu_mul)(const float* gate_up, int64_t stride, int64_t n_rows, int64_t n_pairs,
                   float* out, int64_t out_stride);
  /// x [out.n_cols] becomes row `row` of out (ops::PackRowsArgs).
  void (*pack_row)(const float* x, int64_t row, const PackedRows& out);

  // Attention over one page of at most 64 keys. `p` rows are 64 floats apart.
  /// p[i, t] = scale * (q[i] . keys[t]); q [n_q, dim] with any stride; keys transposed: keys_t
  /// [dim, 64], aligned. All 64 columns are computed.
  void (*score_columns)(const float* q, int64_t q_stride, int64_t n_q, const float* keys_t,
                        int64_t dim, float scale, float* p);
  /// Adds a page's scores p[0, n) to the state, turns them into weights exp(score - largest) and
  /// returns the factor exp(old largest - largest) for what was summed before.
  float (*softmax_page)(float* p, int64_t n, SoftmaxState& state);
  /// out[i] = keep[i] * out[i] + sum_t p[i, t] * values[t] for t < n_keys[i] (ascending, one fused
  /// multiply-add each); out [n_q, dim], values [max n_keys, dim] with strides.
  void (*add_values)(const float* p, const float* keep, const int64_t* n_keys, int64_t n_q,
                     const float* values, int64_t value_stride, int64_t dim, float* out,
                     int64_t out_stride);
  /// Adds a page to the heads' softmax and sums.
  void (*attend_heads)(const PageOfHeads& page);
  /// x = scale * code, with codes so small that the sum of products of two such rows, and every
  /// part of that sum, is less than 2^31. Returns the scale: NaN (and codes 0) where x is not
  /// finite.
  float (*round_to_words)(const float* x, int16_t* codes, int64_t n);
  /// Null where attend_heads is as fast.
  void (*attend_words)(const PageOfWords& page) = nullptr;
  int64_t words_interleaved = 0;  ///< columns, of attend_words: see interleaved_column
  /// The same for prompts, or null.
  const ExpandedAttention* expanded_words = nullptr;
  void (*divide)(float* x, float divisor, int64_t n);
  /// y = a * y + b * x
  void (*mix)(float a, float* y, float b, const float* x, int64_t n);
  /// out[j, i] = in[i, j]; in [n_rows <= 64, n_cols], out [n_cols, 64].
  void (*transpose_page)(const float* in, int64_t in_stride, int64_t n_rows, int64_t n_cols,
                         float* out);
};

/// Precondition: isa is not `reference`.
const VectorKernels& vector_kernels(Isa isa);

}  // namespace exo::kernels::cpu
