/// Packed rows from the arena, and how much of it each operation may take.
#include <algorithm>

#include "ops/checks.h"
#include "ops/ops.h"

namespace exo::ops {
namespace {

// Bytes that Arena::take takes for n_bytes.
constexpr int64_t piece(int64_t n_bytes) { return align_up(n_bytes); }

int64_t scale_bytes(DType dtype, int64_t n_rows) {
  return dtype == DType::i8 ? piece(n_rows * 4) : 0;
}
int64_t group_sum_bytes(DType dtype, int64_t n_rows, int64_t n_cols) {
  return dtype == DType::i8 ? piece(n_rows * (align_up(n_cols, kKPad) / kInt4GroupCols) * 4) : 0;
}

int64_t n_wide_bytes(DType dtype, int64_t n_rows) {
  return dtype == DType::i8 ? piece(n_rows * 4) : 0;
}
int64_t wide_bytes(DType dtype, int64_t n_rows, int64_t n_cols) {
  constexpr auto kValueBytes = static_cast<int64_t>(sizeof(WideValue));
  return dtype == DType::i8 ? piece(n_rows * max_wide(n_cols) * kValueBytes) : 0;
}

}  // namespace

int64_t packed_rows_bytes(DType dtype, int64_t n_rows, int64_t n_cols) {
  return piece(n_rows * align_up(n_cols, kKPad) * size_bytes(dtype)) + scale_bytes(dtype, n_rows) +
         group_sum_bytes(dtype, n_rows, n_cols) + n_wide_bytes(dtype, n_rows) +
         wide_bytes(dtype, n_rows, n_cols);
}

Result<PackedRows> take_packed_rows(DType dtype, int64_t n_rows, int64_t n_cols, Arena& arena) {
  PackedRows rows{.dtype = dtype, .n_rows = n_rows, .n_cols = n_cols};
  std::byte* p = arena.take_bytes(packed_rows_bytes(dtype, n_rows, n_cols));
  if (p == nullptr)
    return scratch_exhausted("pack_rows", packed_rows_bytes(dtype, n_rows, n_cols), arena);
  rows.data = p;
  if (dtype == DType::i8) {
    p += piece(rows.data_bytes());
    rows.scales = reinterpret_cast<float*>(p);
    p += scale_bytes(dtype, n_rows);
    rows.group_sums = reinterpret_cast<int32_t*>(p);
    p += group_sum_bytes(dtype, n_rows, n_cols);
    rows.n_wide = reinterpret_cast<int32_t*>(p);
    rows.wide = reinterpret_cast<WideValue*>(p + n_wide_bytes(dtype, n_rows));
  }
  return rows;
}

Result<PackedRows> pack(const TensorView& x, DType dtype, OpContext& ctx) {
  EXO_RETURN_IF_ERROR(check_view("pack_rows", "x", x, DType::f32, {kAnyDim, kAnyDim}, ctx));
  EXO_ASSIGN_OR_RETURN(PackedRows rows, take_packed_rows(dtype, x.dim(0), x.dim(1), *ctx.arena));
  EXO_RETURN_IF_ERROR(pack_rows({.x = x, .out = rows}, ctx));
  return rows;
}

DType activation_dtype(WeightFormat format, bool fp32_compute) {
  if (fp32_compute) return DType::f32;
  switch (format) {
    case WeightFormat::f32:
      return DType::f32;
    case WeightFormat::bf16:
    case WeightFormat::fp8:
      return DType::bf16;
    case WeightFormat::int8:
    case WeightFormat::int4:
      return DType::i8;
  }
  return DType::f32;
}

// The bounds below add what every thread of a product may use; where no activation is given they
// take the widest (f32). The tests of kernels/ give every body exactly this much.
int64_t linear_scratch_bytes(int n_threads) { return n_threads * kThreadScratchBytes; }

int64_t select_experts_scratch_bytes(int64_t n_experts, int n_threads) {
  return n_threads * (piece(4 * n_experts * 4) + piece(2 * n_experts));
}

int64_t head_linear_scratch_bytes(int64_t n_rows, int64_t, int64_t n_in, int64_t, int n_threads) {
  // Each thread packs up to 64 rows of one head.
  return n_threads *
         (kThreadScratchBytes + packed_rows_bytes(DType::f32, std::min<int64_t>(n_rows, 64), n_in) +
          packed_rows_bytes(DType::i8, std::min<int64_t>(n_rows, 64), n_in));
}

int64_t experts_scratch_bytes(int64_t n_tokens, int64_t top_k, int64_t n_experts,
                              int64_t hidden_size, int64_t n_inter, int64_t n_shared_inter,
                              int n_threads, DType activation) {
  const int64_t n_routed = n_tokens * top_k;
  const auto rows = [activation](int64_t n, int64_t cols) {
    return packed_rows_bytes(activation, n, cols);
  };
  const int64_t hidden = rows(n_routed, n_inter) + rows(n_tokens, n_shared_inter) +
                         piece(n_routed * align_up(n_inter, 16) * 4) +
                         piece(n_tokens * align_up(n_shared_inter, 16) * 4);
  // Each expert's rows, gathered and hidden, are PackedRows of their own: their scales, sums and
  // wide values begin on new lines.
  const int64_t gathered = rows(n_routed, hidden_size) + std::min(n_experts, n_routed) * 512;
  const int64_t widest = std::max(n_inter, n_shared_inter);
  // Of tasks, for each expert and each block of 512 rows, one for every 16 columns at most; then a
  // step for each block and a lane for every 32 columns. Threads' own rows replace the experts'.
  const int64_t n_blocks = std::min(n_experts, n_routed) + 2 + (n_routed + n_tokens) / 512;
  const int64_t lists =
      piece(n_routed * 16) + 2 * piece(n_tokens * 4) + piece((n_experts + 2) * 512) +
      piece(n_blocks * ceil_div(widest + hidden_size, 16) * 16) + piece(n_blocks * 8) +
      piece(ceil_div(hidden_size, 32) * 8) + piece(n_threads * 128);
  // A scalar body's rows of one token.
  const int64_t scalar = piece(2 * align_up(widest, 16) * 4) + piece(widest * 4) + rows(1, widest) +
                         piece(hidden_size * 4);
  // Of few rows the products with down, before they are added up.
  const int64_t few = std::min<int64_t>(n_tokens, 16);
  const int64_t products = few * (top_k + 1) * piece(hidden_size * 4);
  return gathered + hidden + lists + scalar + products + n_threads * 2 * kThreadScratchBytes;
}

int64_t mla_absorbed_scratch_bytes(int64_t n_rows, int64_t n_heads, int64_t kv_lora_rank,
                                   int64_t rope_dim, int n_threads) {
  // A thread's page in f32, or three in bf16 with what becomes of them in tiles, one block of 16
  // heads' queries and scores, every block's queries and two states; and 8 partial states of each
  // unit of work (a row and 16 heads) while there are fewer than 4 units a thread, of a whole row's
  // blocks at least.
  const int64_t entry = align_up(kv_lora_rank + rope_dim, 16), n_blocks = ceil_div(n_heads, 16);
  const int64_t state = piece(16 * (align_up(kv_lora_rank, 16) + 32) * 4);
  const int64_t per_thread = piece(3 * kPageTokens * (entry * 2 + 512)) + piece(16 * entry * 4) +
                             piece(16 * kPageTokens * 4) +
                             n_blocks * (piece(16 * entry * 4) + 2 * state);
  const int64_t n_units = std::min(n_rows * n_blocks, int64_t{4} * n_threads + n_blocks);
  return n_threads * per_thread + n_units * 8 * state + piece(n_rows * 64);
}

int64_t mla_expanded_scratch_bytes(int64_t n_rows, int64_t n_heads, int64_t qk_nope_head_dim,
                                   int64_t rope_dim, int64_t v_head_dim, int64_t kv_lora_rank,
                                   int n_threads) {
  const int64_t qk = align_up(qk_nope_head_dim, 16) + align_up(rope_dim, 16);
  const int64_t v = align_up(v_head_dim, 16), entry = align_up(kv_lora_rank + rope_dim, 16);
  // A thread's page: the latents as f32 and packed, K twice (rows and columns), V, and for 4 heads
  // every row's running maximum and sum. Or, with tiles, four pages of K and V, one of K as columns
  // and as lines, and a head's queries in bf16 and sums of up to 512 rows.
  const int64_t page =
      piece(kPageTokens * entry * 4) + packed_rows_bytes(DType::f32, kPageTokens, kv_lora_rank) +
      packed_rows_bytes(DType::i8, kPageTokens, kv_lora_rank) + piece(kPageTokens * qk * 4) * 2 +
      piece(kPageTokens * v * 4) + piece(4 * n_rows * 8);
  const int64_t tiles = piece(4 * kPageTokens * (qk + v) * 4) + piece(entry * 4) +
                        piece(kPageTokens * qk * 4) + piece(align_up(qk, 32) * 128 + 2 * 20480) +
                        (std::min<int64_t>(n_rows, 512) + 31) * (align_up(qk, 32) * 2 + v * 4 + 4) +
                        128;
  const int64_t per_thread = std::max(page, tiles) + kThreadScratchBytes;
  // Shared with tiles: 32 pages' keys and values of 16 heads, packed latents and rotated keys.
  const int64_t shared =
      32 * std::min<int64_t>(n_heads, 16) * (align_up(qk, 32) * 128 + v * 128 + 512) + 1024 +
      packed_rows_bytes(DType::bf16, 32 * kPageTokens, kv_lora_rank) +
      packed_rows_bytes(DType::i8, 32 * kPageTokens, kv_lora_rank) +
      piece(32 * kPageTokens * rope_dim * 4) + piece(16 * n_rows * 8);
  return n_threads * per_thread + shared + piece(n_rows * 64);
}

}  // namespace exo::ops
