/// The configs of a phase: every shape and format from config.json's fields.
#include <fmt/core.h>

#include "model/deepseek/deepseek.h"
#include "weights/fp8_blocks.h"
#include "weights/weight_config.h"

namespace exo::model::deepseek {
namespace {

// q_a_layernorm and kv_a_layernorm use the default of DeepSeek's RMSNorm whatever rms_norm_eps is
// (modeling_deepseek.py; goldens/README.md).
constexpr float kLoraNormEps = 1e-6f;

struct Maker {
  const Plan& plan;
  const HfConfig& c = plan.config;

  // `regions`: where the matrices lie in the checkpoint's FP8 tensors; empty for tensors that an
  // FP8 checkpoint leaves in bf16. fp8 stays only if every matrix of the entry can keep its scales;
  // the others become f32, which holds every FP8 weight exactly.
  LinearConfig linear(std::string path, Role role, int64_t n_out, int64_t n_in, int64_t count,
                      std::span<const weights::Fp8Region> regions) const {
    LinearConfig l{.path = std::move(path), .n_in = n_in, .n_out = n_out, .count = count};
    l.weight = plan.format.of(role);
    if (l.weight == WeightFormat::fp8) {
      if (regions.empty()) {
        l.weight = WeightFormat::bf16;
      } else {
        l.k_block = weights::fp8_k_block(regions.front());
        for (const weights::Fp8Region& region : regions)
          l.k_block = weights::common_k_block(l.k_block, weights::fp8_k_block(region));
        if (l.k_block == 0) l.weight = WeightFormat::f32;
      }
    }
    l.activation = ops::activation_dtype(l.weight, plan.limits.fp32_compute);
    l.accumulate = l.activation == DType::i8 ? DType::i32 : DType::f32;
    l.device = plan.placement.device[static_cast<size_t>(role)];
    l.weight_bytes = count * static_cast<int64_t>(
                                 weights::packed_matrix_bytes(l.weight, n_out, n_in, l.k_block));
    return l;
  }

  weights::Fp8Region whole(int64_t n_rows, int64_t n_cols) const {
    return {.block_rows = c.fp8_block_rows,
            .block_cols = c.fp8_block_cols,
            .n_rows = n_rows,
            .n_cols = n_cols};
  }
  LinearConfig linear(std::string path, Role role, int64_t n_out, int64_t n_in) const {
    const weights::Fp8Region region = whole(n_out, n_in);
    return linear(std::move(path), role, n_out, n_in, 1, {&region, 1});
  }

  // One matrix per head of kv_b_proj [n_heads * (nope + v), kv_lora_rank]: rows [offset, offset +
  // n) of the head's.
  LinearConfig per_head(std::string path, int64_t offset, int64_t n, bool transposed) const {
    const int64_t head_rows = c.qk_nope_head_dim + c.v_head_dim;
    std::vector<weights::Fp8Region> regions;
    for (int64_t h = 0; h < c.num_attention_heads; ++h) {
      weights::Fp8Region region = whole(n, c.kv_lora_rank);
      region.row_begin = h * head_rows + offset;
      region.transposed = transposed;
      regions.push_back(region);
    }
    return linear(std::move(path), Role::attention, transposed ? c.kv_lora_rank : n,
                  transposed ? n : c.kv_lora_rank, c.num_attention_heads, regions);
  }

  NormConfig norm(std::string path, int64_t n, double eps) const {
    return {.path = std::move(path), .n = n, .eps = static_cast<float>(eps)};
  }

  MlaConfig attention(const std::string& prefix, Phase phase) const {
    const std::string attn = prefix + "self_attn.";
    const int64_t n_heads = c.num_attention_heads;
    const bool lora = c.q_lora_rank > 0;
    MlaConfig m;
    m.form = phase == Phase::prefill ? ops::AttentionForm::expanded : ops::AttentionForm::absorbed;
    m.input_norm = norm(prefix + "input_layernorm", c.hidden_size, c.rms_norm_eps);
    if (lora) {
      m.q_a = linear(attn + "q_a_proj", Role::attention, c.q_lora_rank, c.hidden_size);
      m.q_a_norm = norm(attn + "q_a_layernorm", c.q_lora_rank, kLoraNormEps);
    }
    m.q_b = linear(attn + (lora ? "q_b_proj" : "q_proj"), Role::attention,
                   n_heads * c.qk_head_dim(), lora ? c.q_lora_rank : c.hidden_size);
    m.kv_a = linear(attn + "kv_a_proj_with_mqa", Role::attention,
                    c.kv_lora_rank + c.qk_rope_head_dim, c.hidden_size);
    m.kv_a_norm = norm(attn + "kv_a_layernorm", c.kv_lora_rank, kLoraNormEps);
    m.w_k = phase == Phase::prefill ? per_head(attn + "w_uk", 0, c.qk_nope_head_dim, false)
                                    : per_head(attn + "w_uk_t", 0, c.qk_nope_head_dim, true);
    m.w_v = per_head(attn + "w_uv", c.qk_nope_head_dim, c.v_head_dim, false);
    if (m.w_k.activation != m.w_v.activation && phase == Phase::prefill) {
      // The expanded form packs a latent once for both; f32 goes with every format.
      m.w_k.activation = m.w_v.activation = DType::f32;
      m.w_k.accumulate = m.w_v.accumulate = DType::f32;
    }
    m.o = linear(attn + "o_proj", Role::attention, c.hidden_size, n_heads * c.v_head_dim);
    m.n_heads = n_heads;
    m.kv_lora_rank = c.kv_lora_rank;
    m.qk_nope_head_dim = c.qk_nope_head_dim;
    m.qk_rope_head_dim = c.qk_rope_head_dim;
    m.v_head_dim = c.v_head_dim;
    m.softmax_scale = make_rope(c).softmax_scale;
    m.cache = *plan.limits.cache;
    return m;
  }

  // gate_up and down of `count` MLPs: hidden values are packed to the type that x has, so both
  // read the same one.
  MlpConfig mlp(const std::string& prefix, Role role, int64_t n_inter, int64_t count) const {
    const std::vector<weights::Fp8Region> up(static_cast<size_t>(count),
                                             whole(n_inter, c.hidden_size));
    const std::vector<weights::Fp8Region> down(static_cast<size_t>(count),
                                               whole(c.hidden_size, n_inter));
    MlpConfig m;
    m.gate_up = linear(prefix + "gate_up", role, 2 * align_up(n_inter, kPanelRows), c.hidden_size,
                       count, up);
    m.down = linear(prefix + "down", role, c.hidden_size, n_inter, count, down);
    if (m.gate_up.activation != m.down.activation) {
      m.gate_up.activation = m.down.activation = DType::f32;
      m.gate_up.accumulate = m.down.accumulate = DType::f32;
    }
    m.mul = {.n = n_inter, .silu = true, .out = m.down.activation};
    return m;
  }

  MoeConfig moe(const std::string& prefix) const {
    MoeConfig m;
    m.router = c.router;
    // As stored, bf16 or f32, and always multiplied in f32: a rounded score changes the choice.
    m.gate = {.path = prefix + "gate", .n_in = c.hidden_size, .n_out = c.router.n_experts};
    m.gate.weight = c.torch_dtype == DType::bf16 ? WeightFormat::bf16 : WeightFormat::f32;
    m.gate.activation = DType::f32;
    m.gate.device = plan.placement.device[static_cast<size_t>(Role::experts)];
    m.gate.weight_bytes = static_cast<int64_t>(
        weights::packed_matrix_bytes(m.gate.weight, m.gate.n_out, m.gate.n_in, 0));
    if (c.router.selection == ops::RouterConfig::Selection::noaux_tc)
      m.bias_path = prefix + "gate.e_score_correction_bias";
    MlpConfig experts =
        mlp(prefix + "experts.", Role::experts, c.moe_intermediate_size, c.router.n_experts);
    m.gate_up = std::move(experts.gate_up);
    m.down = std::move(experts.down);
    m.mul = experts.mul;
    if (c.n_shared_experts > 0)
      m.shared = mlp(prefix + "shared_experts.", Role::shared, c.shared_intermediate_size(), 1);
    return m;
  }

  // Layer `index` of the checkpoint, under `prefix` in the cache.
  DecoderLayerConfig layer(int64_t index, const std::string& prefix, Phase phase) const {
    DecoderLayerConfig l;
    l.layer = index;
    l.attention = attention(prefix, phase);
    l.post_attention_norm =
        norm(prefix + "post_attention_layernorm", c.hidden_size, c.rms_norm_eps);
    if (c.is_moe_layer(index)) {
      l.moe = moe(prefix + "mlp.");
    } else {
      l.mlp = mlp(prefix + "mlp.", Role::dense, c.intermediate_size, 1);
    }
    return l;
  }

  EmbeddingConfig embedding(std::string path) const {
    return {.path = std::move(path),
            .vocab_size = c.vocab_size,
            .hidden_size = c.hidden_size,
            .dtype = DType::bf16,
            .weight_bytes = align_up(c.vocab_size * c.hidden_size * size_bytes(DType::bf16))};
  }

  MtpConfig mtp(int64_t i, Phase phase) const {
    const std::string prefix = fmt::format("mtp.{}.", i);
    MtpConfig m;
    m.enorm = norm(prefix + "enorm", c.hidden_size, c.rms_norm_eps);
    m.hnorm = norm(prefix + "hnorm", c.hidden_size, c.rms_norm_eps);
    m.eh_proj = linear(prefix + "eh_proj", Role::lm_head, c.hidden_size, 2 * c.hidden_size, 1, {});
    m.block = layer(c.num_hidden_layers + i, prefix + "block.", phase);
    m.shared_head_norm = norm(prefix + "shared_head.norm", c.hidden_size, c.rms_norm_eps);
    if (plan.placement.layer_begin > 0) m.embedding = embedding(prefix + "embed_tokens");
    return m;
  }
};

}  // namespace

PhaseConfig make_phase(const Plan& plan, Phase phase) {
  const Maker make{plan};
  const HfConfig& c = plan.config;
  PhaseConfig p;
  p.phase = phase;
  const Placement& placement = plan.placement;
  if (placement.layer_begin == 0) p.embedding = make.embedding("embed_tokens");
  for (int64_t i = placement.layer_begin; i < placement.layer_end; ++i)
    p.layers.push_back(make.layer(i, fmt::format("layers.{}.", i), phase));
  if (placement.layer_end == c.num_hidden_layers) {
    p.lm_head = LmHeadConfig{
        .final_norm = make.norm("norm", c.hidden_size, c.rms_norm_eps),
        .linear = make.linear("lm_head", Role::lm_head, c.vocab_size, c.hidden_size, 1, {})};
    for (int64_t i = 0; i < c.num_nextn_predict_layers; ++i) p.mtp.push_back(make.mtp(i, phase));
  }
  return p;
}

}  // namespace exo::model::deepseek
