/// The contract of every operation: one struct of operands, one function that checks them and calls
/// the body that the context's table holds. reference/ has the scalar meaning of each;
/// kernels/<device>/ the fast bodies.
///
/// Common rules
///  - Inputs are never written. Outputs never alias inputs unless the field says so. Views may be
///  strided in their
///    leading dimensions; the last dimension is contiguous.
///  - A wrong shape, dtype or device is an internal error (a defect of the caller), said with op,
///  operand, expected
///    and got; scratch that doesn't fit is resource_exhausted. Values (NaN, infinities) are never
///    an error: they propagate.
///  - No operation allocates; scratch comes from ctx.arena (its size: <op>_scratch_bytes).
///  - The result doesn't depend on the number of threads, and a row's result not on the other rows
///  of the batch
///    when the activations are f32 or i8 (bf16 kernels may choose another instruction for few
///    rows).
#pragma once

#include <cstdint>
#include <span>

#include "base/status.h"
#include "ops/context.h"
#include "tensor/packed.h"
#include "tensor/tensor_view.h"

namespace exo::ops {

/// out[i] = table[ids[i]], widened to f32.
struct EmbeddingArgs {
  TensorView table;  ///< [vocab_size, hidden_size] bf16 or f32
  TensorView ids;    ///< [n_tokens] i32, each in [0, vocab_size)
  TensorView out;    ///< [n_tokens, hidden_size] f32
};

/// out = x * rsqrt(mean(x^2) + eps) * weight, per row. (Zhang & Sennrich 2019)
struct RmsNormArgs {
  TensorView x;       ///< [n_rows, n] f32
  TensorView weight;  ///< [n] f32
  float eps = 0;
  TensorView out;  ///< [n_rows, n] f32; may be x
};

/// y += x.
struct AddArgs {
  TensorView x;  ///< [n_rows, n] f32
  TensorView y;  ///< [n_rows, n] f32, in and out
};

/// Brings rows into the layout and type of a matrix product's left operand (tensor/packed.h).
/// bf16: round to nearest even. i8, per row with a = max|x|: scale = a / 127, q = round(x * (127 /
/// a)), nearest even; a row with a < 1e-30 is zero (scale 0); a row with a NaN or an infinity has
/// scale NaN and q = 0, so that it comes out as NaN everywhere.
struct PackRowsArgs {
  TensorView x;    ///< [n_rows, n_cols] f32
  PackedRows out;  ///< dtype, n_rows, n_cols and memory set by the caller (take_packed_rows)
};

/// The longest row of a weight matrix: 127 * 127 * 131072 still fits an int32 sum.
inline constexpr int64_t kMaxMatmulCols = 131072;

/// out[i, n] = sum_k x[i, k] * w[n, k], f32.  Pairs of x.dtype and w.format: f32 with every format
/// (weights widened to f32; an fp8 block's scale multiplies the block's f32 sum, an integer row's
/// scale the whole sum), bf16 with bf16 and fp8 (likewise; AMX takes weights of code * scale,
/// rounded to bf16, for all but one row), i8 with int8 and int4. n_in <= kMaxMatmulCols.
/// i8: out = f32(exact int32 sum) * (x.scales[i] * w.row_scales[n]), each product rounded once (no
/// fused multiply-add, also not when accumulating): the same bits on every instruction set.
struct LinearArgs {
  PackedRows x;             ///< [n_rows, n_in]
  const PackedMatrix* w;    ///< [n_out, n_in]
  TensorView out;           ///< [n_rows, n_out] f32
  bool accumulate = false;  ///< out += instead of out =
};

/// One product per head: out[i, h, :] = w[h] * x[i, h, :]. (MLA's absorbed W_UK and W_UV)
struct HeadLinearArgs {
  TensorView x;                     ///< [n_rows, n_heads, n_in] f32
  std::span<const PackedMatrix> w;  ///< [n_heads] of [n_out, n_in], one format
  DType activation = DType::f32;    ///< type that x is packed to: f32, bf16 or i8 as for LinearArgs
  TensorView out;                   ///< [n_rows, n_heads, n_out] f32
};

/// cos and sin of the rotary angles of each row: angle[i, j] = positions[i] * inv_freq[j], computed
/// in double from the f32 product of position and inv_freq (the reference's own rounding), times
/// `scale`.
struct RopeTableArgs {
  TensorView positions;  ///< [n_rows] i32
  TensorView inv_freq;   ///< [rope_dim / 2] f32, after YaRN
  float scale = 1;       ///< YaRN's factor on cos and sin
  TensorView cos;        ///< [n_rows, rope_dim / 2] f32
  TensorView sin;        ///< [n_rows, rope_dim / 2] f32
};

/// Rotates neighbouring pairs (2j, 2j+1) in place: (a, b) -> (a cos - b sin, a sin + b cos).
struct RopeArgs {
  TensorView
      x;  ///< [n_rows, n_heads, rope_dim] f32, in and out (strided: the rope part of each head)
  TensorView cos;  ///< [n_rows, rope_dim / 2] f32
  TensorView sin;  ///< [n_rows, rope_dim / 2] f32
};

/// How routing chooses, straight from config.json (DeepSeek-V2 section 2.2, DeepSeek-V3
/// section 2.1.2).
struct RouterConfig {
  enum class Scoring : uint8_t { softmax, sigmoid };
  enum class Selection : uint8_t {
    greedy,                ///< top_k of the scores
    group_limited_greedy,  ///< a group's score is its best expert's; top_k within the topk_group
                           ///< best groups
    noaux_tc,              ///< score + bias chooses; a group's score is the sum of its two best
  };
  Scoring scoring = Scoring::sigmoid;
  Selection selection = Selection::noaux_tc;
  int32_t n_experts = 0;
  int32_t n_group = 1;
  int32_t topk_group = 1;
  int32_t top_k = 0;
  bool norm_topk_prob = false;
  float routed_scaling_factor = 1;
};

/// Chosen experts and their weights. Ties go to the lower index. Output order: ascending expert id.
/// Weights: the chosen scores without the bias; noaux_tc: divided by their sum (norm_topk_prob) and
/// then scaled; the V2 selections: divided by their sum (norm_topk_prob and top_k > 1), or else
/// scaled. NaN scores still give distinct ids.
struct SelectExpertsArgs {
  RouterConfig config;
  TensorView logits;   ///< [n_tokens, n_experts] f32
  TensorView bias;     ///< [n_experts] f32 (e_score_correction_bias), or empty
  TensorView ids;      ///< out [n_tokens, top_k] i32
  TensorView weights;  ///< out [n_tokens, top_k] f32
};

/// Gated MLPs, routed and shared: y = sum_k weight[k] * mlp[ids[k]](x) + shared(x),
/// mlp(x) = down * (silu(gate x) * (up x)). A dense MLP is a shared expert alone (top_k 0).
/// The hidden values are packed to x.dtype between the two products. A token's sum runs over its
/// experts in ascending id, then the shared one: out = (sum of routed) + shared.
struct ExpertsArgs {
  PackedRows x;  ///< [n_tokens, hidden_size]
  std::span<const PackedMatrix>
      gate_up;  ///< [n_experts] of [2 * align_up(n_inter, 16), hidden_size], gate_up layout
  std::span<const PackedMatrix> down;            ///< [n_experts] of [hidden_size, n_inter]
  TensorView ids;                                ///< [n_tokens, top_k] i32 ascending, or empty
  TensorView weights;                            ///< [n_tokens, top_k] f32, or empty
  const PackedMatrix* shared_gate_up = nullptr;  ///< or null
  const PackedMatrix* shared_down = nullptr;
  TensorView out;  ///< [n_tokens, hidden_size] f32, written
};

/// One layer's paged latent cache: a page holds kPageTokens entries, an entry the normed latent and
/// the rotated key of a token: 512 + 64 values for V2 and V3, never one per head.
///  - f32, bf16: [kv_lora_rank | rope_dim] values, contiguous.
///  - i8, f8_e4m3: kv_lora_rank codes of a byte; on a new line the rotated key in bf16. Behind a
///    page's entries: scales [kPageTokens, n_scales()] f32, one for each kLatentPartCols latents of
///    an entry; a latent is code * scale (docs/quantisation.md).
inline constexpr int64_t kPageTokens = 64;
inline constexpr int64_t kLatentPartCols = 128;
struct LatentPages {
  DType dtype = DType::f32;   ///< f32, bf16, i8 or f8_e4m3
  std::byte* data = nullptr;  ///< page p begins at p * page_bytes()
  int64_t n_pages = 0;
  int64_t kv_lora_rank = 0;
  int64_t rope_dim = 0;

  bool has_codes() const { return exo::size_bytes(dtype) == 1; }
  DType rope_dtype() const { return has_codes() ? DType::bf16 : dtype; }
  int64_t n_scales() const { return has_codes() ? ceil_div(kv_lora_rank, kLatentPartCols) : 0; }
  int64_t rope_offset() const {
    return has_codes() ? align_up(kv_lora_rank) : kv_lora_rank * exo::size_bytes(dtype);
  }
  int64_t entry_bytes() const {
    return align_up(rope_offset() + rope_dim * exo::size_bytes(rope_dtype()));
  }
  int64_t page_bytes() const { return kPageTokens * token_bytes(); }
  /// What a token takes of a page.
  int64_t token_bytes() const { return entry_bytes() + n_scales() * 4; }
  std::byte* page(int32_t page) const { return data + page * page_bytes(); }
  std::byte* entry(int32_t page, int64_t slot) const {
    return data + page * page_bytes() + slot * entry_bytes();
  }
  float* scales(int32_t page, int64_t slot) const {
    return reinterpret_cast<float*>(entry(page, kPageTokens)) + slot * n_scales();
  }
};

/// Which form of attention a sequence's rows use. Expanded: keys and values per head, made from the
/// latent (prompts). Absorbed: W_UK and W_UV folded into query and output, the latent itself is
/// attended to (generated tokens).
enum class AttentionForm : uint8_t { expanded, absorbed };

/// Rows [row_begin, row_begin + n_rows) of a batch are the tokens at positions n_past ... of one
/// sequence.
struct SequenceRows {
  int32_t row_begin = 0;
  int32_t n_rows = 0;
  int32_t n_past = 0;  ///< entries already in the pages before this forward
  std::span<const int32_t>
      pages;  ///< page numbers; token t is entry t % kPageTokens of pages[t / kPageTokens]
  AttentionForm form = AttentionForm::expanded;
};

/// Stores the rows' entries, rounded to the pages' dtype, at their sequences' next places. Codes,
/// for each part of a latent with a = max|x| and top = 127 (i8) or 448 (f8_e4m3): scale = a / top,
/// code = x * (top / a), rounded to nearest even. A part with a < 1e-30 is zero (scale 0); one with
/// a NaN or an infinity has scale NaN and codes 0.
struct StoreLatentArgs {
  TensorView latent;  ///< [n_rows, kv_lora_rank] f32, normed
  TensorView k_rope;  ///< [n_rows, rope_dim] f32, rotated
  std::span<const SequenceRows> sequences;
  LatentPages pages;
};

/// Causal attention over the latent itself (DeepSeek-V2 section 2.1.2): per head,
///   score[t] = (q_latent . latent[t] + q_rope . k_rope[t]) * softmax_scale,  out = sum_t
///   softmax(score)[t] * latent[t].
/// Rows of sequences whose form is expanded are left alone. Sums run over a sequence's pages in
/// order.
struct MlaAbsorbedArgs {
  TensorView q_latent;  ///< [n_rows, n_heads, kv_lora_rank] f32
  TensorView q_rope;    ///< [n_rows, n_heads, rope_dim] f32, rotated
  std::span<const SequenceRows> sequences;
  LatentPages pages;
  float softmax_scale = 1;
  TensorView out;  ///< [n_rows, n_heads, kv_lora_rank] f32
};

/// Causal attention over keys and values expanded from the latent, a page at a time:
///   k[t, h] = [w_k[h] * latent[t] | k_rope[t]],  v[t, h] = w_v[h] * latent[t].
/// Rows of sequences whose form is absorbed are left alone. Sums run over a sequence's pages in
/// order.
struct MlaExpandedArgs {
  TensorView q;  ///< [n_rows, n_heads, qk_nope_head_dim + rope_dim] f32, rope part rotated
  std::span<const PackedMatrix> w_k;  ///< [n_heads] of [qk_nope_head_dim, kv_lora_rank]
  std::span<const PackedMatrix> w_v;  ///< [n_heads] of [v_head_dim, kv_lora_rank]
  DType activation = DType::f32;      ///< type that latents are packed to for w_k and w_v
  std::span<const SequenceRows> sequences;
  LatentPages pages;
  float softmax_scale = 1;
  TensorView out;    ///< [n_rows, n_heads, v_head_dim] f32
  TensorView probs;  ///< [n_heads, n_rows, n_past + n_rows] f32 or empty; only with one sequence,
                     ///< and the reference body then runs on every table
};

/// The bodies of one device and instruction set. A body may rely on checked operands.
struct OpTable {
  const char* name;  ///< "reference", "avx2", "avxvnni", "avx512", "avx512bf16", "amx", "neon"
  Status (*embedding)(const EmbeddingArgs&, OpContext&);
  Status (*rms_norm)(const RmsNormArgs&, OpContext&);
  Status (*add)(const AddArgs&, OpContext&);
  Status (*pack_rows)(const PackRowsArgs&, OpContext&);
  Status (*linear)(const LinearArgs&, OpContext&);
  Status (*head_linear)(const HeadLinearArgs&, OpContext&);
  Status (*rope_table)(const RopeTableArgs&, OpContext&);
  Status (*rope)(const RopeArgs&, OpContext&);
  Status (*select_experts)(const SelectExpertsArgs&, OpContext&);
  Status (*experts)(const ExpertsArgs&, OpContext&);
  Status (*store_latent)(const StoreLatentArgs&, OpContext&);
  Status (*mla_absorbed)(const MlaAbsorbedArgs&, OpContext&);
  Status (*mla_expanded)(const MlaExpandedArgs&, OpContext&);
};

/// Check the operands, then run the context's body.
Status embedding(const EmbeddingArgs& args, OpContext& ctx);
Status rms_norm(const RmsNormArgs& args, OpContext& ctx);
Status add(const AddArgs& args, OpContext& ctx);
Status pack_rows(const PackRowsArgs& args, OpContext& ctx);
Status linear(const LinearArgs& args, OpContext& ctx);
Status head_linear(const HeadLinearArgs& args, OpContext& ctx);
Status rope_table(const RopeTableArgs& args, OpContext& ctx);
Status rope(const RopeArgs& args, OpContext& ctx);
Status select_experts(const SelectExpertsArgs& args, OpContext& ctx);
Status experts(const ExpertsArgs& args, OpContext& ctx);
Status store_latent(const StoreLatentArgs& args, OpContext& ctx);
Status mla_absorbed(const MlaAbsorbedArgs& args, OpContext& ctx);
Status mla_expanded(const MlaExpandedArgs& args, OpContext& ctx);

/// Memory for packed rows from the arena (released with the caller's ArenaScope).
Result<PackedRows> take_packed_rows(DType dtype, int64_t n_rows, int64_t n_cols, Arena& arena);
/// What take_packed_rows takes.
int64_t packed_rows_bytes(DType dtype, int64_t n_rows, int64_t n_cols);

/// take_packed_rows + pack_rows: x [n_rows, n_cols] f32, packed to `dtype`.
Result<PackedRows> pack(const TensorView& x, DType dtype, OpContext& ctx);

/// The activation type that goes with a weight format: f32 under `fp32` compute; else bf16 for bf16
/// and fp8, i8 for int8 and int4, f32 for f32.
DType activation_dtype(WeightFormat format, bool fp32_compute);

/// Upper bounds of the arena bytes that an operation takes, for stage 2 (n_threads of the pool).
/// Operations not named here take none.
inline constexpr int64_t kThreadScratchBytes = 512 << 10;  ///< of each thread, in every product
int64_t linear_scratch_bytes(int n_threads);
int64_t select_experts_scratch_bytes(int64_t n_experts, int n_threads);
int64_t head_linear_scratch_bytes(int64_t n_rows, int64_t n_heads, int64_t n_in, int64_t n_out,
                                  int n_threads);
int64_t experts_scratch_bytes(int64_t n_tokens, int64_t top_k, int64_t n_experts,
                              int64_t hidden_size, int64_t n_inter, int64_t n_shared_inter,
                              int n_threads, DType activation = DType::f32);
int64_t mla_absorbed_scratch_bytes(int64_t n_rows, int64_t n_heads, int64_t kv_lora_rank,
                                   int64_t rope_dim, int n_threads);
int64_t mla_expanded_scratch_bytes(int64_t n_rows, int64_t n_heads, int64_t qk_nope_head_dim,
                                   int64_t rope_dim, int64_t v_head_dim, int64_t kv_lora_rank,
                                   int n_threads);

/// The scalar bodies (ops/reference/): the meaning of every operation.
const OpTable& reference_table();

}  // namespace exo::ops
