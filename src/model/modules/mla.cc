#include "model/modules/mla.h"

#include <algorithm>
#include <vector>

#include "model/modules/scratch.h"

namespace exo::model::mla {
namespace {

// [n, a * b] seen as [n, a, b]; rows keep their stride.
TensorView split_heads(const TensorView& x, int64_t n_heads) {
  TensorView v = x;
  v.rank = 3;
  v.shape = {x.dim(0), n_heads, x.dim(1) / n_heads, 0};
  v.strides = {x.stride(0), x.dim(1) / n_heads, 1, 0};
  return v;
}

Status project(const LinearConfig& config, const PackedMatrix& w, const TensorView& x,
               const TensorView& out, ops::OpContext& ctx) {
  ArenaScope scope(*ctx.arena);
  EXO_ASSIGN_OR_RETURN(const PackedRows rows, ops::pack(x, config.activation, ctx));
  return ops::linear({.x = rows, .w = &w, .out = out}, ctx);
}

// Queries [n_tokens, n_heads * qk_head_dim], not rotated.
Status queries(const Args& args, const TensorView& normed, const TensorView& q, const Tap& tap,
               ops::OpContext& ctx) {
  const MlaConfig& c = args.prefill;
  if (!c.q_a) return project(c.q_b, args.weights.q_b, normed, q, ctx);
  ArenaScope scope(*ctx.arena);
  EXO_ASSIGN_OR_RETURN(const TensorView q_a,
                       take_tensor<float>({normed.dim(0), c.q_a->n_out}, ctx));
  EXO_RETURN_IF_ERROR(project(*c.q_a, args.weights.q_a, normed, q_a, ctx));
  tap("self_attn.q_a", q_a);
  EXO_RETURN_IF_ERROR(ops::rms_norm(
      {.x = q_a, .weight = args.weights.q_a_norm, .eps = c.q_a_norm->eps, .out = q_a}, ctx));
  tap("self_attn.q_a_norm", q_a);
  return project(c.q_b, args.weights.q_b, q_a, q, ctx);
}

// The rotated key in the two orders that implementations use (goldens/README.md).
void tap_rotated_key(const TensorView& k_rope, const Tap& tap) {
  tap("self_attn.k_pe_rope.pairs", k_rope);
  if (!tap.wants("self_attn.k_pe_rope.halves")) return;
  const int64_t n = k_rope.dim(0), half = k_rope.dim(1) / 2;
  std::vector<float> halves(static_cast<size_t>(2 * n * half));
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < half; ++j) {
      halves[static_cast<size_t>(2 * i * half + j)] = k_rope.row<float>(i)[2 * j];
      halves[static_cast<size_t>((2 * i + 1) * half + j)] = k_rope.row<float>(i)[2 * j + 1];
    }
  }
  tap("self_attn.k_pe_rope.halves", make_view(halves.data(), {n, 2 * half}));
}

// Latent and rotated key of every row, into the pages.
Status store_keys(const Args& args, const TensorView& normed, const Tap& tap, ops::OpContext& ctx) {
  const MlaConfig& c = args.prefill;
  ArenaScope scope(*ctx.arena);
  const int64_t n = normed.dim(0);
  EXO_ASSIGN_OR_RETURN(const TensorView kv_a, take_tensor<float>({n, c.kv_a.n_out}, ctx));
  EXO_RETURN_IF_ERROR(project(c.kv_a, args.weights.kv_a, normed, kv_a, ctx));
  tap("self_attn.compressed_kv", kv_a);
  EXO_ASSIGN_OR_RETURN(const TensorView latent, take_tensor<float>({n, c.kv_lora_rank}, ctx));
  EXO_RETURN_IF_ERROR(ops::rms_norm({.x = kv_a.columns(0, c.kv_lora_rank),
                                     .weight = args.weights.kv_a_norm,
                                     .eps = c.kv_a_norm.eps,
                                     .out = latent},
                                    ctx));
  tap("self_attn.latent", latent);
  const TensorView k_rope = kv_a.columns(c.kv_lora_rank, c.qk_rope_head_dim);
  EXO_RETURN_IF_ERROR(
      ops::rope({.x = split_heads(k_rope, 1), .cos = args.cos, .sin = args.sin}, ctx));
  tap_rotated_key(k_rope, tap);
  return ops::store_latent(
      {.latent = latent, .k_rope = k_rope, .sequences = args.sequences, .pages = args.pages}, ctx);
}

// Rows [begin, begin + n) of the batch, all of one form, with their sequences counted from `begin`.
struct FormRun {
  int64_t begin = 0;
  int64_t n = 0;
  std::span<const ops::SequenceRows> sequences;
};

Status attend_expanded(const Args& args, const FormRun& run, const TensorView& q,
                       const TensorView& out, const Tap& tap, ops::OpContext& ctx) {
  const MlaConfig& c = args.prefill;
  ops::MlaExpandedArgs op{.q = q.rows(run.begin, run.n),
                          .w_k = args.weights.w_uk,
                          .w_v = args.weights.w_uv,
                          .activation = c.w_k.activation,
                          .sequences = run.sequences,
                          .pages = args.pages,
                          .softmax_scale = c.softmax_scale,
                          .out = out.rows(run.begin, run.n)};
  if (run.sequences.size() != 1 || !tap.wants("self_attn.probs")) return ops::mla_expanded(op, ctx);
  // Only the reference body gives out its weights.
  const int64_t n_keys = run.sequences[0].n_past + run.n;
  std::vector<float> probs(static_cast<size_t>(c.n_heads * run.n * n_keys));
  op.probs = make_view(probs.data(), {c.n_heads, run.n, n_keys});
  ops::OpContext with_probs = ctx;
  with_probs.table = &ops::reference_table();
  EXO_RETURN_IF_ERROR(ops::mla_expanded(op, with_probs));
  tap("self_attn.probs", op.probs);
  return ok_status();
}

Status attend_absorbed(const Args& args, const FormRun& run, const TensorView& q,
                       const TensorView& out, ops::OpContext& ctx) {
  const MlaConfig& c = args.decode;
  ArenaScope scope(*ctx.arena);
  EXO_ASSIGN_OR_RETURN(const TensorView q_latent,
                       take_tensor<float>({run.n, c.n_heads, c.kv_lora_rank}, ctx));
  EXO_ASSIGN_OR_RETURN(const TensorView o_latent,
                       take_tensor<float>({run.n, c.n_heads, c.kv_lora_rank}, ctx));
  const TensorView q_run = q.rows(run.begin, run.n);
  EXO_RETURN_IF_ERROR(ops::head_linear({.x = q_run.columns(0, c.qk_nope_head_dim),
                                        .w = args.weights.w_uk_t,
                                        .activation = c.w_k.activation,
                                        .out = q_latent},
                                       ctx));
  EXO_RETURN_IF_ERROR(
      ops::mla_absorbed({.q_latent = q_latent,
                         .q_rope = q_run.columns(c.qk_nope_head_dim, c.qk_rope_head_dim),
                         .sequences = run.sequences,
                         .pages = args.pages,
                         .softmax_scale = c.softmax_scale,
                         .out = o_latent},
                        ctx));
  return ops::head_linear({.x = o_latent,
                           .w = args.weights.w_uv,
                           .activation = c.w_v.activation,
                           .out = out.rows(run.begin, run.n)},
                          ctx);
}

// Cuts the batch into runs of sequences of one form and attends to each.
Status attend(const Args& args, const TensorView& q, const TensorView& context, const Tap& tap,
              ops::OpContext& ctx) {
  const TensorView out = split_heads(context, args.prefill.n_heads);
  for (size_t first = 0; first < args.sequences.size();) {
    const ops::AttentionForm form = args.sequences[first].form;
    size_t end = first;
    while (end < args.sequences.size() && args.sequences[end].form == form) ++end;
    ArenaScope scope(*ctx.arena);
    auto* sequences = ctx.arena->take<ops::SequenceRows>(static_cast<int64_t>(end - first));
    if (sequences == nullptr) return resource_exhausted("scratch: no place for the sequences");
    FormRun run{.begin = args.sequences[first].row_begin, .sequences = {sequences, end - first}};
    for (size_t i = first; i < end; ++i) {
      sequences[i - first] = args.sequences[i];
      sequences[i - first].row_begin -= static_cast<int32_t>(run.begin);
      run.n += args.sequences[i].n_rows;
    }
    EXO_RETURN_IF_ERROR(form == ops::AttentionForm::expanded
                            ? attend_expanded(args, run, q, out, tap, ctx)
                            : attend_absorbed(args, run, q, out, ctx));
    first = end;
  }
  return ok_status();
}

}  // namespace

Status forward(const Args& args, const Tap& tap, ops::OpContext& ctx) {
  const MlaConfig& c = args.prefill;
  ArenaScope scope(*ctx.arena);
  const int64_t n = args.hidden.dim(0), hidden_size = args.hidden.dim(1);
  EXO_ASSIGN_OR_RETURN(const TensorView normed, take_tensor<float>({n, hidden_size}, ctx));
  EXO_RETURN_IF_ERROR(ops::rms_norm(
      {.x = args.hidden, .weight = args.weights.input_norm, .eps = c.input_norm.eps, .out = normed},
      ctx));
  tap("input_layernorm", normed);

  const int64_t qk_head_dim = c.qk_nope_head_dim + c.qk_rope_head_dim;
  EXO_ASSIGN_OR_RETURN(const TensorView q_flat,
                       take_tensor<float>({n, c.n_heads * qk_head_dim}, ctx));
  EXO_RETURN_IF_ERROR(queries(args, normed, q_flat, tap, ctx));
  const TensorView q = split_heads(q_flat, c.n_heads);
  tap("self_attn.q", q);
  const TensorView q_rope = q.columns(c.qk_nope_head_dim, c.qk_rope_head_dim);
  EXO_RETURN_IF_ERROR(ops::rope({.x = q_rope, .cos = args.cos, .sin = args.sin}, ctx));
  tap("self_attn.q_pe_rope.pairs", q_rope);
  EXO_RETURN_IF_ERROR(store_keys(args, normed, tap, ctx));

  EXO_ASSIGN_OR_RETURN(const TensorView context,
                       take_tensor<float>({n, c.n_heads * c.v_head_dim}, ctx));
  EXO_RETURN_IF_ERROR(attend(args, q, context, tap, ctx));
  tap("self_attn.context", context);

  EXO_RETURN_IF_ERROR(project(c.o, args.weights.o, context, normed, ctx));
  tap("self_attn.out", normed);
  EXO_RETURN_IF_ERROR(ops::add({.x = normed, .y = args.hidden}, ctx));
  tap("attn_residual", args.hidden);
  return ok_status();
}

int64_t scratch_bytes(const MlaConfig& c, int64_t hidden_size, int64_t n, int64_t n_absorbed,
                      int n_threads) {
  const int64_t qk_head_dim = c.qk_nope_head_dim + c.qk_rope_head_dim;
  const auto projection = [&](const LinearConfig& linear) {
    return ops::packed_rows_bytes(linear.activation, n, linear.n_in) +
           ops::linear_scratch_bytes(n_threads);
  };
  const int64_t q_a = c.q_a ? tensor_bytes(n * c.q_a->n_out) : 0;
  int64_t inner = q_a + std::max(c.q_a ? projection(*c.q_a) : 0, projection(c.q_b));
  inner = std::max(inner, tensor_bytes(n * c.kv_a.n_out) + tensor_bytes(n * c.kv_lora_rank) +
                              projection(c.kv_a));
  const int64_t context = tensor_bytes(n * c.n_heads * c.v_head_dim);
  inner = std::max(inner, context + projection(c.o));
  const int64_t sequences = align_up(n * static_cast<int64_t>(sizeof(ops::SequenceRows)));
  inner = std::max(inner, context + sequences +
                              ops::mla_expanded_scratch_bytes(n, c.n_heads, c.qk_nope_head_dim,
                                                              c.qk_rope_head_dim, c.v_head_dim,
                                                              c.kv_lora_rank, n_threads));
  const int64_t absorbed =
      std::max({ops::head_linear_scratch_bytes(n_absorbed, c.n_heads, c.qk_nope_head_dim,
                                               c.kv_lora_rank, n_threads),
                ops::mla_absorbed_scratch_bytes(n_absorbed, c.n_heads, c.kv_lora_rank,
                                                c.qk_rope_head_dim, n_threads),
                ops::head_linear_scratch_bytes(n_absorbed, c.n_heads, c.kv_lora_rank, c.v_head_dim,
                                               n_threads)});
  inner = std::max(inner, context + sequences +
                              2 * tensor_bytes(n_absorbed * c.n_heads * c.kv_lora_rank) + absorbed);
  return tensor_bytes(n * hidden_size) + tensor_bytes(n * c.n_heads * qk_head_dim) + inner;
}

}  // namespace exo::model::mla
