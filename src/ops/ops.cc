#include "ops/ops.h"

#include <fmt/core.h>

#include <chrono>

#include "ops/checks.h"
#include "ops/profile.h"

namespace exo::ops {
namespace {

// Calls a body, timed when somebody wants to know.
template <typename Args>
Status run(Op op, Status (*body)(const Args&, OpContext&), const Args& args, OpContext& ctx) {
  if (ctx.profile == nullptr) return body(args, ctx);
  const auto begin = std::chrono::steady_clock::now();
  Status status = body(args, ctx);
  Profile::Entry& entry = ctx.profile->by_op[static_cast<size_t>(op)];
  ++entry.n_calls;
  entry.time += std::chrono::steady_clock::now() - begin;
  return status;
}

Status value_error(std::string_view op, std::string message) {
  return internal_error(fmt::format("{}: {}: a defect of the caller", op, message));
}

Status check_router(const RouterConfig& c) {
  const bool counts_fit = c.n_experts > 0 && c.n_group > 0 && c.n_experts % c.n_group == 0 &&
                          c.topk_group > 0 && c.topk_group <= c.n_group;
  if (!counts_fit || c.top_k <= 0 || c.top_k > c.n_experts / c.n_group * c.topk_group)
    return value_error("select_experts",
                       fmt::format("config: cannot choose {} of {} experts in {} of {} groups",
                                   c.top_k, c.n_experts, c.topk_group, c.n_group));
  return ok_status();
}

// Expert ids of a row are ascending and below n_experts: bodies index with them.
Status check_expert_ids(const TensorView& ids, int64_t n_experts) {
  for (int64_t i = 0; i < ids.dim(0); ++i) {
    int32_t previous = -1;
    for (int64_t k = 0; k < ids.dim(1); ++k) {
      const int32_t id = ids.row<int32_t>(i)[k];
      if (id <= previous || id >= n_experts)
        return value_error("experts",
                           fmt::format("ids of token {}: expected ascending ids below {}, got {} "
                                       "after {}",
                                       i, n_experts, id, previous));
      previous = id;
    }
  }
  return ok_status();
}

// One expert's pair of matrices, or all routed ones.
Status check_mlp(std::span<const PackedMatrix> gate_up, std::span<const PackedMatrix> down,
                 int64_t n, const PackedRows& x, int64_t hidden_size) {
  const int64_t n_inter = n > 0 && !down.empty() ? down[0].n_in : 0;
  EXO_RETURN_IF_ERROR(check_matrices("experts", "down", down, n, hidden_size, n_inter, x.dtype));
  EXO_RETURN_IF_ERROR(check_matrices("experts", "gate_up", gate_up, n,
                                     2 * align_up(n_inter, kPanelRows), x.n_cols, x.dtype));
  for (const PackedMatrix& m : gate_up) {
    if (!m.gate_up) return value_error("experts", "gate_up: panels are not interleaved");
  }
  return ok_status();
}

}  // namespace

Status embedding(const EmbeddingArgs& args, OpContext& ctx) {
  const int64_t n_tokens = args.ids.dim(0), n_cols = args.out.dim(1);
  const DType stored = args.table.dtype == DType::bf16 ? DType::bf16 : DType::f32;
  EXO_RETURN_IF_ERROR(check_view("embedding", "table", args.table, stored, {kAnyDim, n_cols}, ctx));
  EXO_RETURN_IF_ERROR(check_view("embedding", "ids", args.ids, DType::i32, {kAnyDim}, ctx));
  EXO_RETURN_IF_ERROR(
      check_view("embedding", "out", args.out, DType::f32, {n_tokens, kAnyDim}, ctx));
  for (int64_t i = 0; i < n_tokens; ++i) {
    const int32_t id = args.ids.ptr<int32_t>()[i];
    if (id < 0 || id >= args.table.dim(0))
      return value_error("embedding", fmt::format("ids: token {} has id {}, the table {} rows", i,
                                                  id, args.table.dim(0)));
  }
  return n_tokens == 0 ? ok_status() : run(Op::embedding, ctx.table->embedding, args, ctx);
}

Status rms_norm(const RmsNormArgs& args, OpContext& ctx) {
  const int64_t n_rows = args.x.dim(0), n = args.x.dim(1);
  EXO_RETURN_IF_ERROR(check_view("rms_norm", "x", args.x, DType::f32, {kAnyDim, kAnyDim}, ctx));
  EXO_RETURN_IF_ERROR(check_view("rms_norm", "weight", args.weight, DType::f32, {n}, ctx));
  EXO_RETURN_IF_ERROR(check_view("rms_norm", "out", args.out, DType::f32, {n_rows, n}, ctx));
  return n_rows == 0 || n == 0 ? ok_status() : run(Op::rms_norm, ctx.table->rms_norm, args, ctx);
}

Status add(const AddArgs& args, OpContext& ctx) {
  EXO_RETURN_IF_ERROR(check_view("add", "x", args.x, DType::f32, {kAnyDim, kAnyDim}, ctx));
  EXO_RETURN_IF_ERROR(
      check_view("add", "y", args.y, DType::f32, {args.x.dim(0), args.x.dim(1)}, ctx));
  return args.x.n_elements() == 0 ? ok_status() : run(Op::add, ctx.table->add, args, ctx);
}

Status pack_rows(const PackRowsArgs& args, OpContext& ctx) {
  EXO_RETURN_IF_ERROR(check_view("pack_rows", "x", args.x, DType::f32, {kAnyDim, kAnyDim}, ctx));
  EXO_RETURN_IF_ERROR(check_rows("pack_rows", "out", args.out, args.x.dim(0), args.x.dim(1)));
  return args.x.dim(0) == 0 ? ok_status() : run(Op::pack_rows, ctx.table->pack_rows, args, ctx);
}

Status linear(const LinearArgs& args, OpContext& ctx) {
  EXO_RETURN_IF_ERROR(check_rows("linear", "x", args.x, kAnyDim, kAnyDim));
  if (args.w == nullptr) return value_error("linear", "w: null");
  EXO_RETURN_IF_ERROR(
      check_matrix("linear", "w", *args.w, args.w->n_out, args.x.n_cols, args.x.dtype));
  EXO_RETURN_IF_ERROR(
      check_view("linear", "out", args.out, DType::f32, {args.x.n_rows, args.w->n_out}, ctx));
  return args.x.n_rows == 0 ? ok_status() : run(Op::linear, ctx.table->linear, args, ctx);
}

Status head_linear(const HeadLinearArgs& args, OpContext& ctx) {
  const int64_t n_rows = args.x.dim(0), n_heads = args.x.dim(1);
  EXO_RETURN_IF_ERROR(
      check_view("head_linear", "x", args.x, DType::f32, {kAnyDim, kAnyDim, kAnyDim}, ctx));
  EXO_RETURN_IF_ERROR(
      check_view("head_linear", "out", args.out, DType::f32, {n_rows, n_heads, kAnyDim}, ctx));
  EXO_RETURN_IF_ERROR(check_matrices("head_linear", "w", args.w, n_heads, args.out.dim(2),
                                     args.x.dim(2), args.activation));
  return n_rows == 0 || n_heads == 0 ? ok_status()
                                     : run(Op::head_linear, ctx.table->head_linear, args, ctx);
}

Status rope_table(const RopeTableArgs& args, OpContext& ctx) {
  const int64_t n_rows = args.positions.dim(0), half = args.inv_freq.dim(0);
  EXO_RETURN_IF_ERROR(
      check_view("rope_table", "positions", args.positions, DType::i32, {kAnyDim}, ctx));
  EXO_RETURN_IF_ERROR(
      check_view("rope_table", "inv_freq", args.inv_freq, DType::f32, {kAnyDim}, ctx));
  EXO_RETURN_IF_ERROR(check_view("rope_table", "cos", args.cos, DType::f32, {n_rows, half}, ctx));
  EXO_RETURN_IF_ERROR(check_view("rope_table", "sin", args.sin, DType::f32, {n_rows, half}, ctx));
  return n_rows == 0 ? ok_status() : run(Op::rope_table, ctx.table->rope_table, args, ctx);
}

Status rope(const RopeArgs& args, OpContext& ctx) {
  const int64_t n_rows = args.x.dim(0), half = args.cos.dim(1);
  EXO_RETURN_IF_ERROR(
      check_view("rope", "x", args.x, DType::f32, {kAnyDim, kAnyDim, 2 * half}, ctx));
  EXO_RETURN_IF_ERROR(check_view("rope", "cos", args.cos, DType::f32, {n_rows, kAnyDim}, ctx));
  EXO_RETURN_IF_ERROR(check_view("rope", "sin", args.sin, DType::f32, {n_rows, half}, ctx));
  return args.x.n_elements() == 0 ? ok_status() : run(Op::rope, ctx.table->rope, args, ctx);
}

Status select_experts(const SelectExpertsArgs& args, OpContext& ctx) {
  const RouterConfig& c = args.config;
  const int64_t n_tokens = args.logits.dim(0);
  EXO_RETURN_IF_ERROR(check_router(c));
  EXO_RETURN_IF_ERROR(
      check_view("select_experts", "logits", args.logits, DType::f32, {kAnyDim, c.n_experts}, ctx));
  if (!args.bias.empty())
    EXO_RETURN_IF_ERROR(
        check_view("select_experts", "bias", args.bias, DType::f32, {c.n_experts}, ctx));
  EXO_RETURN_IF_ERROR(
      check_view("select_experts", "ids", args.ids, DType::i32, {n_tokens, c.top_k}, ctx));
  EXO_RETURN_IF_ERROR(
      check_view("select_experts", "weights", args.weights, DType::f32, {n_tokens, c.top_k}, ctx));
  return n_tokens == 0 ? ok_status()
                       : run(Op::select_experts, ctx.table->select_experts, args, ctx);
}

Status experts(const ExpertsArgs& args, OpContext& ctx) {
  const int64_t n_tokens = args.x.n_rows, hidden_size = args.out.dim(1);
  EXO_RETURN_IF_ERROR(check_rows("experts", "x", args.x, kAnyDim, kAnyDim));
  EXO_RETURN_IF_ERROR(check_view("experts", "out", args.out, DType::f32, {n_tokens, kAnyDim}, ctx));
  if (!args.ids.empty()) {
    const auto n_experts = static_cast<int64_t>(args.down.size());
    EXO_RETURN_IF_ERROR(
        check_view("experts", "ids", args.ids, DType::i32, {n_tokens, kAnyDim}, ctx));
    EXO_RETURN_IF_ERROR(check_view("experts", "weights", args.weights, DType::f32,
                                   {n_tokens, args.ids.dim(1)}, ctx));
    EXO_RETURN_IF_ERROR(check_mlp(args.gate_up, args.down, n_experts, args.x, hidden_size));
    EXO_RETURN_IF_ERROR(check_expert_ids(args.ids, n_experts));
  }
  if ((args.shared_gate_up == nullptr) != (args.shared_down == nullptr))
    return value_error("experts", "shared: one of its two matrices is missing");
  if (args.shared_down != nullptr)
    EXO_RETURN_IF_ERROR(
        check_mlp({args.shared_gate_up, 1}, {args.shared_down, 1}, 1, args.x, hidden_size));
  if (args.ids.empty() && args.shared_down == nullptr)
    return value_error("experts", "neither routed nor shared experts");
  return n_tokens == 0 ? ok_status() : run(Op::experts, ctx.table->experts, args, ctx);
}

Status store_latent(const StoreLatentArgs& args, OpContext& ctx) {
  const int64_t n_rows = args.latent.dim(0);
  EXO_RETURN_IF_ERROR(
      check_view("store_latent", "latent", args.latent, DType::f32, {kAnyDim, kAnyDim}, ctx));
  EXO_RETURN_IF_ERROR(
      check_view("store_latent", "k_rope", args.k_rope, DType::f32, {n_rows, kAnyDim}, ctx));
  EXO_RETURN_IF_ERROR(check_sequences("store_latent", args.sequences, args.pages, n_rows,
                                      args.latent.dim(1), args.k_rope.dim(1)));
  return n_rows == 0 ? ok_status() : run(Op::store_latent, ctx.table->store_latent, args, ctx);
}

Status mla_absorbed(const MlaAbsorbedArgs& args, OpContext& ctx) {
  const int64_t n_rows = args.q_latent.dim(0), n_heads = args.q_latent.dim(1);
  const int64_t rank = args.q_latent.dim(2), rope_dim = args.q_rope.dim(2);
  EXO_RETURN_IF_ERROR(check_view("mla_absorbed", "q_latent", args.q_latent, DType::f32,
                                 {kAnyDim, kAnyDim, kAnyDim}, ctx));
  EXO_RETURN_IF_ERROR(check_view("mla_absorbed", "q_rope", args.q_rope, DType::f32,
                                 {n_rows, n_heads, kAnyDim}, ctx));
  EXO_RETURN_IF_ERROR(
      check_view("mla_absorbed", "out", args.out, DType::f32, {n_rows, n_heads, rank}, ctx));
  EXO_RETURN_IF_ERROR(
      check_sequences("mla_absorbed", args.sequences, args.pages, n_rows, rank, rope_dim));
  return n_rows == 0 || n_heads == 0 ? ok_status()
                                     : run(Op::mla_absorbed, ctx.table->mla_absorbed, args, ctx);
}

Status mla_expanded(const MlaExpandedArgs& args, OpContext& ctx) {
  const int64_t n_rows = args.q.dim(0), n_heads = args.q.dim(1);
  const int64_t rank = args.pages.kv_lora_rank, rope_dim = args.pages.rope_dim;
  EXO_RETURN_IF_ERROR(
      check_view("mla_expanded", "q", args.q, DType::f32, {kAnyDim, kAnyDim, kAnyDim}, ctx));
  EXO_RETURN_IF_ERROR(
      check_view("mla_expanded", "out", args.out, DType::f32, {n_rows, n_heads, kAnyDim}, ctx));
  EXO_RETURN_IF_ERROR(check_matrices("mla_expanded", "w_k", args.w_k, n_heads,
                                     args.q.dim(2) - rope_dim, rank, args.activation));
  EXO_RETURN_IF_ERROR(check_matrices("mla_expanded", "w_v", args.w_v, n_heads, args.out.dim(2),
                                     rank, args.activation));
  EXO_RETURN_IF_ERROR(
      check_sequences("mla_expanded", args.sequences, args.pages, n_rows, rank, rope_dim));
  if (!args.probs.empty()) {
    if (args.sequences.size() != 1)
      return value_error("mla_expanded", "probs: asked for with other than one sequence");
    const SequenceRows& s = args.sequences[0];
    EXO_RETURN_IF_ERROR(check_view("mla_expanded", "probs", args.probs, DType::f32,
                                   {n_heads, n_rows, int64_t{s.n_past} + s.n_rows}, ctx));
  }
  return n_rows == 0 || n_heads == 0 ? ok_status()
                                     : run(Op::mla_expanded, ctx.table->mla_expanded, args, ctx);
}

}  // namespace exo::ops
