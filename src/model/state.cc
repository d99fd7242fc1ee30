#include "model/state.h"

namespace exo::model {
namespace {

int64_t row_bytes(int64_t n_rows, int64_t n) { return align_up(n_rows * n * 4); }
bool has_head(const HfConfig& config, const Placement& placement) {
  return placement.layer_end == config.num_hidden_layers;
}

ops::LatentPages layer_pages(const Plan& plan, int64_t n_pages) {
  return {.dtype = plan.cache.front().dtype,
          .n_pages = n_pages,
          .kv_lora_rank = plan.config.kv_lora_rank,
          .rope_dim = plan.config.qk_rope_head_dim};
}

}  // namespace

int64_t n_pages_of(const Limits& limits) {
  return limits.n_pages > 0
             ? limits.n_pages
             : limits.max_sequences * ceil_div(limits.max_context_tokens, ops::kPageTokens);
}

int64_t run_memory_bytes(const HfConfig& config, const Placement& placement, const Limits& limits) {
  const int64_t logits =
      has_head(config, placement) ? row_bytes(limits.max_logit_rows, config.vocab_size) : 0;
  return row_bytes(limits.max_batch_tokens, config.hidden_size) + logits +
         2 * row_bytes(limits.max_batch_tokens, config.qk_rope_head_dim / 2);
}

Result<std::unique_ptr<State>> create_state(const Plan& plan) {
  auto state = std::make_unique<State>();
  const Limits& limits = plan.limits;
  const HfConfig& config = plan.config;
  state->rope = make_rope(config);

  ops::LatentPages pages = layer_pages(plan, n_pages_of(limits));
  const int64_t layer_bytes = pages.n_pages * pages.page_bytes();
  const auto n_layers = static_cast<int64_t>(plan.prefill.layers.size());
  EXO_ASSIGN_OR_RETURN(state->page_memory, Buffer::allocate(n_layers * layer_bytes));
  for (int64_t i = 0; i < n_layers; ++i) {
    pages.data = state->page_memory.data() + i * layer_bytes;
    state->pages.push_back(pages);
  }

  EXO_ASSIGN_OR_RETURN(state->arena_memory, Buffer::allocate(plan.scratch_bytes));
  state->arena = Arena(state->arena_memory.data(), state->arena_memory.size_bytes());

  EXO_ASSIGN_OR_RETURN(state->run_memory,
                       Buffer::allocate(run_memory_bytes(config, plan.placement, limits)));
  Arena run(state->run_memory.data(), state->run_memory.size_bytes());
  const int64_t n = limits.max_batch_tokens, half = config.qk_rope_head_dim / 2;
  state->hidden = make_view(run.take<float>(n * config.hidden_size), {n, config.hidden_size});
  state->cos = make_view(run.take<float>(n * half), {n, half});
  state->sin = make_view(run.take<float>(n * half), {n, half});
  if (has_head(config, plan.placement)) {
    state->logits = make_view(run.take<float>(limits.max_logit_rows * config.vocab_size),
                              {limits.max_logit_rows, config.vocab_size});
  }
  return state;
}

}  // namespace exo::model
