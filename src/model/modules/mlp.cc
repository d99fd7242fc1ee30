#include "model/modules/mlp.h"

#include <algorithm>

#include "base/os.h"
#include "model/modules/scratch.h"

namespace exo::model {

namespace mlp {

Status forward(const MlpConfig& config, const MlpWeights& weights, const TensorView& x,
               const TensorView& out, ops::OpContext& ctx) {
  ArenaScope scope(*ctx.arena);
  EXO_ASSIGN_OR_RETURN(const PackedRows rows, ops::pack(x, config.gate_up.activation, ctx));
  return ops::experts(
      {.x = rows, .shared_gate_up = &weights.gate_up, .shared_down = &weights.down, .out = out},
      ctx);
}

int64_t scratch_bytes(const MlpConfig& config, int64_t n_tokens, int n_threads) {
  return ops::packed_rows_bytes(config.gate_up.activation, n_tokens, config.gate_up.n_in) +
         ops::experts_scratch_bytes(n_tokens, 0, 0, config.gate_up.n_in, 0, config.down.n_in,
                                    n_threads, config.gate_up.activation);
}

}  // namespace mlp

namespace moe {
namespace {

struct Choice {
  TensorView ids;      // [n_tokens, top_k] i32, ascending
  TensorView weights;  // [n_tokens, top_k] f32
};

// The gate computes in f32 whatever the compute mode: a rounded logit would change the choice.
Status choose(const MoeConfig& config, const MoeWeights& weights, const TensorView& x,
              const Choice& choice, const Tap& tap, ops::OpContext& ctx) {
  ArenaScope scope(*ctx.arena);
  EXO_ASSIGN_OR_RETURN(const TensorView logits,
                       take_tensor<float>({x.dim(0), config.router.n_experts}, ctx));
  EXO_ASSIGN_OR_RETURN(const PackedRows rows, ops::pack(x, config.gate.activation, ctx));
  EXO_RETURN_IF_ERROR(ops::linear({.x = rows, .w = &weights.gate, .out = logits}, ctx));
  tap("mlp.gate.logits", logits);
  return ops::select_experts({.config = config.router,
                              .logits = logits,
                              .bias = weights.bias,
                              .ids = choice.ids,
                              .weights = choice.weights},
                             ctx);
}

Status routed(const MoeConfig& config, const MoeWeights& weights, const TensorView& x,
              const Choice& choice, const MlpWeights* shared, const TensorView& out,
              ops::OpContext& ctx) {
  ArenaScope scope(*ctx.arena);
  EXO_ASSIGN_OR_RETURN(const PackedRows rows, ops::pack(x, config.gate_up.activation, ctx));
  return ops::experts({.x = rows,
                       .gate_up = weights.gate_up,
                       .down = weights.down,
                       .ids = choice.ids,
                       .weights = choice.weights,
                       .shared_gate_up = shared != nullptr ? &shared->gate_up : nullptr,
                       .shared_down = shared != nullptr ? &shared->down : nullptr,
                       .out = out},
                      ctx);
}

// One operation takes both kinds of experts when they read the same activations.
bool fuses_shared(const MoeConfig& config) {
  return config.shared && config.shared->gate_up.activation == config.gate_up.activation &&
         config.shared->down.activation == config.down.activation;
}

}  // namespace

Status forward(const MoeConfig& config, const MoeWeights& weights, const TensorView& x,
               const Forced& forced, const TensorView& out, const Tap& tap, ops::OpContext& ctx) {
  ArenaScope scope(*ctx.arena);
  const int64_t n = x.dim(0), top_k = config.router.top_k;
  Choice choice;
  EXO_ASSIGN_OR_RETURN(choice.ids, take_tensor<int32_t>({n, top_k}, ctx));
  EXO_ASSIGN_OR_RETURN(choice.weights, take_tensor<float>({n, top_k}, ctx));
  EXO_RETURN_IF_ERROR(choose(config, weights, x, choice, tap, ctx));
  if (!forced.ids.empty()) choice = {.ids = forced.ids, .weights = forced.weights};
  if (weights.read_ahead) read_ahead(weights, choice.ids);
  tap("mlp.gate.topk_idx", choice.ids);
  tap("mlp.gate.topk_weight", choice.weights);

  const bool apart = tap.wants("mlp.routed_out") || tap.wants("mlp.shared_out");
  if (!config.shared || (fuses_shared(config) && !apart)) {
    const MlpWeights* shared = config.shared ? &weights.shared : nullptr;
    return routed(config, weights, x, choice, shared, out, ctx);
  }
  EXO_RETURN_IF_ERROR(routed(config, weights, x, choice, nullptr, out, ctx));
  tap("mlp.routed_out", out);
  EXO_ASSIGN_OR_RETURN(const TensorView shared_out, take_tensor<float>({n, out.dim(1)}, ctx));
  EXO_RETURN_IF_ERROR(mlp::forward(*config.shared, weights.shared, x, shared_out, ctx));
  tap("mlp.shared_out", shared_out);
  return ops::add({.x = shared_out, .y = out}, ctx);
}

void read_ahead(const MoeWeights& weights, const TensorView& ids) {
  const auto n_experts = static_cast<int32_t>(weights.gate_up.size());
  int64_t n_bytes = 0;
  const auto ask = [&](const PackedMatrix& m) {
    const auto size =
        static_cast<int64_t>(weights::packed_matrix_bytes(m.format, m.n_out, m.n_in, m.k_block));
    advise_memory(m.tiles, static_cast<uint64_t>(size), MappedFile::Advice::will_need);
    n_bytes += size;
  };
  // In the order that they are computed in; each id once.
  for (int32_t id = 0; id < n_experts && n_bytes < kMostReadAhead; ++id) {
    bool chosen = false;
    for (int64_t i = 0; i < ids.dim(0) && !chosen; ++i)
      chosen = std::binary_search(ids.row<int32_t>(i), ids.row<int32_t>(i) + ids.dim(1), id);
    if (!chosen) continue;
    ask(weights.gate_up[static_cast<size_t>(id)]);
    ask(weights.down[static_cast<size_t>(id)]);
  }
}

int64_t scratch_bytes(const MoeConfig& c, int64_t n, int n_threads) {
  const int64_t hidden_size = c.gate.n_in;
  const int64_t gate = tensor_bytes(n * c.router.n_experts) +
                       ops::packed_rows_bytes(c.gate.activation, n, hidden_size) +
                       std::max(ops::linear_scratch_bytes(n_threads),
                                ops::select_experts_scratch_bytes(c.router.n_experts, n_threads));
  const int64_t n_shared_inter = c.shared ? c.shared->down.n_in : 0;
  const int64_t experts =
      ops::packed_rows_bytes(c.gate_up.activation, n, hidden_size) +
      ops::experts_scratch_bytes(n, c.router.top_k, c.router.n_experts, hidden_size, c.down.n_in,
                                 n_shared_inter, n_threads, c.gate_up.activation);
  const int64_t shared =
      c.shared ? tensor_bytes(n * hidden_size) + mlp::scratch_bytes(*c.shared, n, n_threads) : 0;
  return 2 * tensor_bytes(n * c.router.top_k) + std::max({gate, experts, shared});
}

}  // namespace moe

}  // namespace exo::model
