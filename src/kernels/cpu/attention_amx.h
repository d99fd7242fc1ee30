/// The inner loops of both attentions on AMX bf16 tiles, for bf16 activations and caches: what a
/// page of 64 keys adds to the running sums of 16 heads of one row (absorbed) or of 16 rows of one
/// head (expanded). Scores and sums are f32, weights bf16; each row's or head's arithmetic depends
/// on nothing beside it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/vector.h"

namespace exo::kernels::cpu {

// -- absorbed: 16 heads of one row ----------------------------------------------------------------

/// Can these sizes run on tiles? (values of an entry, of its latent part)
constexpr bool absorbed_fits_amx(int64_t entry, int64_t rank) {
  return entry % 32 == 0 && rank % 64 == 0 && entry >= 96;
}
/// Bytes of the scratch that both functions below share; 64-aligned; fewer than 64 entries of f32.
constexpr int64_t absorbed_scratch_bytes_amx(int64_t entry, int64_t rank) {
  return rank * 128 + entry * 64 + 6144;
}

/// Keeps the queries in the scratch as two bf16 parts, so that scores are as good as with f32
/// queries. q: [16, q_stride] f32, zeros where there is no head.
void absorbed_query_amx(const float* q, int64_t q_stride, int64_t entry, int64_t rank,
                        std::byte* scratch);

struct AbsorbedPageAmx {
  const std::byte* page = nullptr;  ///< 64 entries of bf16
  const std::byte* next = nullptr;  ///< the page after it, asked for ahead; may be null
  int64_t entry_bytes = 0;
  int64_t entry = 0, rank = 0;
  int64_t n_keys = 0;  ///< entries to attend to, from the page's first
  float scale = 1;
  std::byte* scratch = nullptr;
  SoftmaxState* softmax = nullptr;  ///< [16]
  /// [16, sum_stride] f32; within 32 columns the places 4g .. 4g + 3 hold the columns 8g .. 8g + 3,
  /// the places 16 + 4g .. the columns 8g + 4 ..
  float* sum = nullptr;
  int64_t sum_stride = 0;
};
void absorbed_page_amx(const AbsorbedPageAmx& task);

// -- expanded: 16 rows of one head ----------------------------------------------------------------

constexpr bool expanded_fits_amx(int64_t qk, int64_t value) {
  return qk <= 1024 && value <= 1024 && value % 16 == 0;
}
/// Bytes of the scratch of the page's and the rows' functions; 64-aligned; at most
/// kMatmulScratchBytes.
constexpr int64_t expanded_scratch_bytes_amx(int64_t qk, int64_t value) {
  return (qk + 31) / 32 * (4096 + 4096) + value * 128 + 4096 + 2048;
}
/// A row of queries in bf16, padded with zeros.
constexpr int64_t query_row_bytes_amx(int64_t qk) { return (qk + 31) / 32 * 64; }

/// q [n_rows, q_stride] f32 to rows of query_row_bytes_amx.
void expanded_queries_amx(const float* q, int64_t q_stride, int64_t n_rows, int64_t qk,
                          std::byte* out);

struct ExpandedPageAmx {
  const float* k = nullptr;  ///< [n_keys, k_stride]: nope values
  int64_t k_stride = 0, nope = 0;
  const float* k_rope = nullptr;  ///< [n_keys, rope_stride]: rope values
  int64_t rope_stride = 0, rope = 0;
  const float* v = nullptr;  ///< [n_keys, v_stride]
  int64_t v_stride = 0, value = 0;
  int64_t n_keys = 0;
};
/// Brings a page's keys and values into tiles. False when one of them isn't finite: then 0 times it
/// would not be 0, and the page must go another way.
bool expanded_page_amx(const ExpandedPageAmx& page, std::byte* scratch);

struct ExpandedRowsAmx {
  const std::byte* q = nullptr;  ///< 16 rows (whatever they hold from n_rows on)
  int64_t n_rows = 0;            ///< 1 .. 16
  int64_t qk = 0, value = 0;
  int64_t n_keys = 0;  ///< that the first row may see; each next row one more, at most 64
  float scale = 1;
  SoftmaxState* softmax = nullptr;  ///< [n_rows]
  float* sums = nullptr;            ///< [16, value]; nothing is added to rows from n_rows on
};
void expanded_rows_amx(const ExpandedRowsAmx& rows, std::byte* scratch);

}  // namespace exo::kernels::cpu
