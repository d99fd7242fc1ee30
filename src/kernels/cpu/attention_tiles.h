/// The inner loops of both attentions on bf16 tiles, for bf16 activations and caches: what a page
/// of 64 keys adds to the running sums of 16 heads of one row (absorbed) or of 16 rows of one head
/// (expanded, which runs in 16-bit integers where there are no units for bf16: vector_words.cc).
/// Scores and sums are f32, weights bf16; each row's or head's arithmetic depends on nothing beside
/// it. The tiles are multiplied by AMX (attention_amx.cc) or by vectors of bf16 pairs
/// (attention_avx512bf16.cc); the rest is theirs together (attention_*_avx512.h). Vectors multiply
/// the codes of an int8 cache as they are (attention_bytes_avx512.h).
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/cpu/vector.h"
#include "tensor/dtype.h"

namespace exo::kernels::cpu {

// -- absorbed: one row, its heads in blocks of 16 ------------------------------------------------

/// Bytes of the queries of 16 heads in whatever form; 64-aligned.
constexpr int64_t absorbed_query_bytes(int64_t entry) { return entry * 64; }
/// What AMX takes together: pages and columns, and blocks of heads at most.
constexpr int64_t kAbsorbedStepPages = 3, kAbsorbedColumns = 64, kAbsorbedMostBlocks = 8;
/// Bytes of the scratch of AbsorbedAttention::pages; 64-aligned. AMX needs the most: for each key
/// of a step two blocks' scores, all blocks' weights, some columns of its values, and its entry.
constexpr int64_t absorbed_scratch_bytes(int64_t entry) {
  return kAbsorbedStepPages * 64 *
         (2 * 64 + kAbsorbedMostBlocks * 32 + kAbsorbedColumns * 2 + entry * 2);
}

/// Pages of one row, in order, each prepared once for all blocks of heads.
struct AbsorbedPages {
  // ops::LatentPages as plain numbers: see matmul_layout.h about linkage.
  DType stored = DType::bf16;  ///< bf16, i8 or f8_e4m3 (no code of it NaN)
  const std::byte* data = nullptr;
  int64_t page_bytes = 0, entry_bytes = 0, rope_offset = 0, scales_offset = 0;
  int64_t n_scales = 0;
  int64_t entry = 0, rank = 0;
  const int32_t* numbers = nullptr;  ///< [n_pages]
  int64_t n_pages = 0;
  int64_t n_last_keys = 0;  ///< entries of the last page, from its first; all of the others
  float scale = 1;
  int64_t n_blocks = 1;
  const std::byte* queries = nullptr;  ///< [n_blocks] of query_bytes (absorbed_query_bytes)
  int64_t query_bytes = 0;
  /// [n_blocks] of state_bytes: sums [16, sum_stride] f32, and behind them SoftmaxState [16].
  /// A sum's columns are in the order of interleaved_column.
  std::byte* states = nullptr;
  int64_t state_bytes = 0;
  int64_t sum_stride = 0;
  std::byte* scratch = nullptr;
};

struct AbsorbedAttention {
  /// q: [16, q_stride] f32, zeros where there is no head.
  void (*query)(const float* q, int64_t q_stride, int64_t entry, int64_t rank, std::byte* out);
  void (*pages)(const AbsorbedPages& task);
  int64_t n_interleaved;  ///< vectors of 16 columns of a sum: see interleaved_column
};

// -- expanded: rows of one head ----------------------------------------------------------------

constexpr int64_t kMostExpandedColumns = 1024;
constexpr int64_t kMostExpandedPages = 2;  ///< of ExpandedRows
constexpr bool expanded_fits_tiles(int64_t qk, int64_t value) {
  return qk <= kMostExpandedColumns && value <= kMostExpandedColumns && value % 16 == 0;
}
/// Bytes of a page's keys and values in tiles, or in words with their scales; 64-aligned.
constexpr int64_t expanded_tile_bytes(int64_t qk, int64_t value) {
  return (qk + 31) / 32 * 4096 + value * 128 + 512;
}
/// Bytes of the scratch of the page's and the rows' functions; 64-aligned.
constexpr int64_t expanded_scratch_bytes(int64_t qk) {
  return std::max<int64_t>((qk + 31) / 32 * 4096, kMostExpandedPages * (2 * 8192 + 4096));
}
/// A row of queries in bf16 or words, padded with zeros.
constexpr int64_t query_row_bytes(int64_t qk) { return (qk + 31) / 32 * 64; }

struct ExpandedPage {
  const float* k = nullptr;  ///< [n_keys, k_stride]: nope values
  int64_t k_stride = 0, nope = 0;
  const float* k_rope = nullptr;  ///< [n_keys, rope_stride]: rope values
  int64_t rope_stride = 0, rope = 0;
  const float* v = nullptr;  ///< [n_keys, v_stride]
  int64_t v_stride = 0, value = 0;
  int64_t n_keys = 0;
};

struct ExpandedRows {
  const std::byte* q = nullptr;     ///< rows, a multiple of 32 (whatever they hold from n_rows on)
  const float* q_scales = nullptr;  ///< [n_rows] of words
  int64_t n_rows = 0;
  int64_t qk = 0, value = 0;
  int64_t n_pages = 1;  ///< at most ExpandedAttention::most_pages, with full pages before the last
  int64_t tiles_apart = 0;  ///< bytes from a page's tiles to the next one's
  int64_t n_keys = 0;  ///< that the first row may see, at least 1; each next row one more, as many
                       ///< as there are
  float scale = 1;
  SoftmaxState* softmax = nullptr;  ///< [n_rows]
  float* sums = nullptr;  ///< rows of `value`, a multiple of 32; what is behind n_rows may change
};

struct ExpandedAttention {
  /// q [n_rows, q_stride] f32 to rows of query_row_bytes, and for words their scales [n_rows].
  void (*queries)(const float* q, int64_t q_stride, int64_t n_rows, int64_t qk, std::byte* out,
                  float* scales);
  /// Brings a page's keys and values into tiles. False when one of them isn't finite: then 0 times
  /// it would not be 0, and the page must go another way.
  bool (*page)(const ExpandedPage& page, std::byte* tiles, std::byte* scratch);
  /// Rows against the tiles of a page, or of several as if they were one.
  void (*rows)(const ExpandedRows& rows, const std::byte* tiles, std::byte* scratch);
  int64_t most_pages = 1;
};

// -- on an instruction set ---------------------------------------------------------------------

AbsorbedAttention absorbed_bytes_avx512();
AbsorbedAttention absorbed_bytes_avx512bf16();
AbsorbedAttention absorbed_tiles_avx512bf16();
AbsorbedAttention absorbed_tiles_amx();
ExpandedAttention expanded_tiles_avx512bf16();
ExpandedAttention expanded_tiles_amx();

/// For pages of `stored` with entries of so many values, `rank` of which are the latent: their
/// codes as bytes, or bf16 tiles; null where there is neither (or the sizes fit neither).
const AbsorbedAttention* absorbed_attention(Isa isa, DType stored, int64_t entry, int64_t rank);
/// On bf16 tiles, else in words, else (ARM) null.
const ExpandedAttention* expanded_attention(Isa isa);

}  // namespace exo::kernels::cpu
