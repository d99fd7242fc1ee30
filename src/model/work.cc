#include "model/work.h"

#include <algorithm>

namespace exo::model {
namespace {

// Adds one matrix product: all of its weights read once, every row multiplied with n_uses of its
// `count` matrices.
void add_linear(const LinearConfig& linear, int64_t n_rows, int64_t n_uses, int64_t n_read,
                Work& work) {
  work.weight_bytes += linear.weight_bytes / linear.count * n_read;
  work.matmul_ops += 2 * n_rows * n_uses * linear.n_in * linear.n_out;
}

void add_mlp(const MlpConfig& mlp, int64_t n_rows, Work& work) {
  add_linear(mlp.gate_up, n_rows, 1, 1, work);
  add_linear(mlp.down, n_rows, 1, 1, work);
}

// The expanded form makes keys and values of every token that is attended to, the absorbed one
// folds W_UK and W_UV into each query's row (DeepSeek-V2 section 2.1.2).
void add_attention(const MlaConfig& mla, const CacheSpec& cache, const WorkShape& shape,
                   Work& work) {
  const int64_t n = shape.n_tokens;
  if (mla.q_a) add_linear(*mla.q_a, n, 1, 1, work);
  add_linear(mla.q_b, n, 1, 1, work);
  add_linear(mla.kv_a, n, 1, 1, work);
  add_linear(mla.o, n, 1, 1, work);
  const bool expanded = mla.form == ops::AttentionForm::expanded;
  const int64_t n_expanded_rows = expanded ? shape.n_past + n : n;
  add_linear(mla.w_k, n_expanded_rows, mla.n_heads, mla.n_heads, work);
  add_linear(mla.w_v, n_expanded_rows, mla.n_heads, mla.n_heads, work);
  const int64_t n_sequences = expanded ? 1 : n;
  work.cache_bytes += n_sequences * shape.n_past * cache.bytes_per_entry;
  // Pairs of a query and a key it may see.
  const int64_t n_pairs = expanded ? n * shape.n_past + n * (n + 1) / 2 : n * (shape.n_past + 1);
  const int64_t per_pair = expanded ? mla.qk_nope_head_dim + mla.qk_rope_head_dim + mla.v_head_dim
                                    : 2 * mla.kv_lora_rank + mla.qk_rope_head_dim;
  work.attention_ops += 2 * n_pairs * mla.n_heads * per_pair;
}

}  // namespace

Work work_of(const Plan& plan, const WorkShape& shape) {
  const PhaseConfig& phase = shape.phase == Phase::prefill ? plan.prefill : plan.decode;
  Work work;
  size_t moe_layer = 0;
  for (const DecoderLayerConfig& layer : phase.layers) {
    add_attention(layer.attention, plan.cache.front(), shape, work);
    if (layer.mlp) add_mlp(*layer.mlp, shape.n_tokens, work);
    if (!layer.moe) continue;
    const MoeConfig& moe = *layer.moe;
    const int64_t touched =
        moe_layer < shape.distinct_experts.size()
            ? shape.distinct_experts[moe_layer]
            : std::min<int64_t>(moe.router.n_experts, shape.n_tokens * moe.router.top_k);
    ++moe_layer;
    add_linear(moe.gate, shape.n_tokens, 1, 1, work);
    add_linear(moe.gate_up, shape.n_tokens, moe.router.top_k, touched, work);
    add_linear(moe.down, shape.n_tokens, moe.router.top_k, touched, work);
    if (moe.shared) add_mlp(*moe.shared, shape.n_tokens, work);
  }
  if (phase.lm_head) add_linear(phase.lm_head->linear, shape.n_logit_rows, 1, 1, work);
  return work;
}

}  // namespace exo::model
