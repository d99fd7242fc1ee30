/// From the checkpoint's names (modeling_deepseek.py; DeepSeek-V3 README_WEIGHTS.md) to the cache's
/// entries.
#include <fmt/core.h>

#include <utility>

#include "model/deepseek/deepseek.h"

namespace exo::model::deepseek {
namespace {

RecipeEntry plain(const NormConfig& norm, std::string tensor) {
  return {.path = norm.path,
          .dtype = DType::f32,
          .shape = {norm.n},
          .sources = {{.tensor = std::move(tensor)}}};
}

RecipeEntry table(const EmbeddingConfig& embedding, std::string tensor) {
  return {.path = embedding.path,
          .dtype = embedding.dtype,
          .shape = {embedding.vocab_size, embedding.hidden_size},
          .sources = {{.tensor = std::move(tensor)}}};
}

RecipeEntry packed(const LinearConfig& linear, std::vector<SourceRef> sources,
                   std::vector<SourceRef> ups = {}) {
  return {.path = linear.path,
          .packed = true,
          .spec = {.format = linear.weight, .k_block = linear.k_block},
          .n_out = linear.n_out,
          .n_in = linear.n_in,
          .n_rows = linear.n_out,
          .sources = std::move(sources),
          .ups = std::move(ups)};
}
RecipeEntry packed(const LinearConfig& linear, std::string tensor) {
  return packed(linear, std::vector<SourceRef>{{.tensor = std::move(tensor)}});
}

// kv_b_proj: per head, qk_nope_head_dim key rows, then v_head_dim value rows.
std::vector<SourceRef> heads_of(const MlaConfig& c, const std::string& tensor, int64_t offset,
                                int64_t n_rows, bool transposed) {
  std::vector<SourceRef> refs;
  refs.reserve(static_cast<size_t>(c.n_heads));
  for (int64_t h = 0; h < c.n_heads; ++h)
    refs.push_back({.tensor = tensor,
                    .row_begin = h * (c.qk_nope_head_dim + c.v_head_dim) + offset,
                    .n_rows = n_rows,
                    .transposed = transposed});
  return refs;
}

void add_attention(const MlaConfig& prefill, const MlaConfig& decode, const std::string& layer,
                   RecipeUnit& unit) {
  const std::string attn = layer + "self_attn.";
  const int64_t nope = prefill.qk_nope_head_dim, v = prefill.v_head_dim;
  const std::string kv_b = attn + "kv_b_proj.weight";
  auto& out = unit.entries;
  out.push_back(plain(prefill.input_norm, layer + "input_layernorm.weight"));
  if (prefill.q_a) {
    out.push_back(packed(*prefill.q_a, attn + "q_a_proj.weight"));
    out.push_back(plain(*prefill.q_a_norm, attn + "q_a_layernorm.weight"));
  }
  out.push_back(packed(prefill.q_b, attn + (prefill.q_a ? "q_b_proj.weight" : "q_proj.weight")));
  out.push_back(packed(prefill.kv_a, attn + "kv_a_proj_with_mqa.weight"));
  out.push_back(plain(prefill.kv_a_norm, attn + "kv_a_layernorm.weight"));
  out.push_back(packed(prefill.w_k, heads_of(prefill, kv_b, 0, nope, false)));
  out.push_back(packed(decode.w_k, heads_of(prefill, kv_b, 0, nope, true)));
  out.push_back(packed(prefill.w_v, heads_of(prefill, kv_b, nope, v, false)));
  out.push_back(packed(prefill.o, attn + "o_proj.weight"));
}

void add_mlp(const LinearConfig& gate_up, const LinearConfig& down,
             const std::vector<std::string>& prefixes, RecipeUnit& unit) {
  std::vector<SourceRef> gates, ups, downs;
  for (auto* refs : {&gates, &ups, &downs}) refs->reserve(prefixes.size());
  for (const std::string& prefix : prefixes) {
    gates.push_back({.tensor = prefix + "gate_proj.weight"});
    ups.push_back({.tensor = prefix + "up_proj.weight"});
    downs.push_back({.tensor = prefix + "down_proj.weight"});
  }
  unit.entries.push_back(packed(gate_up, std::move(gates), std::move(ups)));
  unit.entries.back().n_rows = down.n_in;
  unit.entries.push_back(packed(down, std::move(downs)));
}

// A decoder layer: everything that every token reads in one unit, the routed experts in another.
void add_layer(const DecoderLayerConfig& prefill, const DecoderLayerConfig& decode, RecipeUnit unit,
               std::vector<RecipeUnit>& units) {
  const std::string layer = fmt::format("model.layers.{}.", prefill.layer);
  add_attention(prefill.attention, decode.attention, layer, unit);
  unit.entries.push_back(
      plain(prefill.post_attention_norm, layer + "post_attention_layernorm.weight"));
  if (prefill.mlp) {
    add_mlp(prefill.mlp->gate_up, prefill.mlp->down, {layer + "mlp."}, unit);
    units.push_back(std::move(unit));
    return;
  }
  const MoeConfig& moe = *prefill.moe;
  unit.entries.push_back(packed(moe.gate, layer + "mlp.gate.weight"));
  if (!moe.bias_path.empty())
    unit.entries.push_back(plain({.path = moe.bias_path, .n = moe.router.n_experts},
                                 layer + "mlp.gate.e_score_correction_bias"));
  if (moe.shared)
    add_mlp(moe.shared->gate_up, moe.shared->down, {layer + "mlp.shared_experts."}, unit);
  RecipeUnit experts{.name = unit.name + ".experts", .mtp = unit.mtp, .entries = {}};
  std::vector<std::string> prefixes;
  prefixes.reserve(static_cast<size_t>(moe.router.n_experts));
  for (int32_t e = 0; e < moe.router.n_experts; ++e)
    prefixes.push_back(fmt::format("{}mlp.experts.{}.", layer, e));
  add_mlp(moe.gate_up, moe.down, prefixes, experts);
  units.push_back(std::move(unit));
  units.push_back(std::move(experts));
}

void add_mtp(const MtpConfig& prefill, const MtpConfig& decode, std::string name,
             std::vector<RecipeUnit>& units) {
  const std::string layer = fmt::format("model.layers.{}.", prefill.block.layer);
  RecipeUnit unit{.name = std::move(name), .mtp = true, .entries = {}};
  unit.entries.push_back(plain(prefill.enorm, layer + "enorm.weight"));
  unit.entries.push_back(plain(prefill.hnorm, layer + "hnorm.weight"));
  unit.entries.push_back(packed(prefill.eh_proj, layer + "eh_proj.weight"));
  unit.entries.push_back(plain(prefill.shared_head_norm, layer + "shared_head.norm.weight"));
  if (prefill.embedding)
    units.push_back({.name = unit.name + ".embedding",
                     .mtp = true,
                     .entries = {table(*prefill.embedding, layer + "embed_tokens.weight")}});
  add_layer(prefill.block, decode.block, std::move(unit), units);
}

}  // namespace

std::vector<RecipeUnit> make_recipe(const Plan& plan) {
  const PhaseConfig& prefill = plan.prefill;
  std::vector<RecipeUnit> units;
  if (prefill.embedding)
    units.push_back(
        {.name = "embedding", .entries = {table(*prefill.embedding, "model.embed_tokens.weight")}});
  for (size_t i = 0; i < prefill.layers.size(); ++i)
    add_layer(prefill.layers[i], plan.decode.layers[i],
              {.name = fmt::format("layers.{}", prefill.layers[i].layer), .entries = {}}, units);
  if (prefill.lm_head) {
    const bool tied = plan.config.tie_word_embeddings;
    units.push_back({.name = "head",
                     .entries = {plain(prefill.lm_head->final_norm, "model.norm.weight"),
                                 packed(prefill.lm_head->linear,
                                        tied ? "model.embed_tokens.weight" : "lm_head.weight")}});
  }
  for (size_t i = 0; i < prefill.mtp.size(); ++i)
    add_mtp(prefill.mtp[i], plan.decode.mtp[i], fmt::format("mtp.{}", i), units);
  return units;
}

std::vector<CheckpointTensor> checkpoint_tensors(const HfConfig& c) {
  std::vector<CheckpointTensor> out;
  const auto add = [&](std::string name, std::vector<int64_t> shape, bool quantised = false) {
    out.push_back({.name = std::move(name),
                   .shape = std::move(shape),
                   .quantised = quantised && c.fp8_block_rows > 0});
  };
  const auto add_mlp_tensors = [&](const std::string& prefix, int64_t n_inter) {
    add(prefix + "gate_proj.weight", {n_inter, c.hidden_size}, true);
    add(prefix + "up_proj.weight", {n_inter, c.hidden_size}, true);
    add(prefix + "down_proj.weight", {c.hidden_size, n_inter}, true);
  };
  const int64_t n_q = c.num_attention_heads * c.qk_head_dim();
  add("model.embed_tokens.weight", {c.vocab_size, c.hidden_size});
  for (int64_t i = 0; i < c.num_hidden_layers + c.num_nextn_predict_layers; ++i) {
    const std::string layer = fmt::format("model.layers.{}.", i);
    const std::string attn = layer + "self_attn.", mlp = layer + "mlp.";
    if (i >= c.num_hidden_layers) {  // an MTP layer
      add(layer + "embed_tokens.weight", {c.vocab_size, c.hidden_size});
      add(layer + "enorm.weight", {c.hidden_size});
      add(layer + "hnorm.weight", {c.hidden_size});
      add(layer + "eh_proj.weight", {c.hidden_size, 2 * c.hidden_size});
    }
    add(layer + "input_layernorm.weight", {c.hidden_size});
    if (c.q_lora_rank > 0) {
      add(attn + "q_a_proj.weight", {c.q_lora_rank, c.hidden_size}, true);
      add(attn + "q_a_layernorm.weight", {c.q_lora_rank});
      add(attn + "q_b_proj.weight", {n_q, c.q_lora_rank}, true);
    } else {
      add(attn + "q_proj.weight", {n_q, c.hidden_size}, true);
    }
    add(attn + "kv_a_proj_with_mqa.weight", {c.kv_lora_rank + c.qk_rope_head_dim, c.hidden_size},
        true);
    add(attn + "kv_a_layernorm.weight", {c.kv_lora_rank});
    add(attn + "kv_b_proj.weight",
        {c.num_attention_heads * (c.qk_nope_head_dim + c.v_head_dim), c.kv_lora_rank}, true);
    add(attn + "o_proj.weight", {c.hidden_size, c.num_attention_heads * c.v_head_dim}, true);
    add(layer + "post_attention_layernorm.weight", {c.hidden_size});
    if (c.is_moe_layer(i)) {
      add(mlp + "gate.weight", {c.router.n_experts, c.hidden_size});
      if (c.router.selection == ops::RouterConfig::Selection::noaux_tc) {
        add(mlp + "gate.e_score_correction_bias", {c.router.n_experts});
        out.back().f32 = true;
      }
      for (int32_t e = 0; e < c.router.n_experts; ++e)
        add_mlp_tensors(fmt::format("{}experts.{}.", mlp, e), c.moe_intermediate_size);
      if (c.n_shared_experts > 0)
        add_mlp_tensors(mlp + "shared_experts.", c.shared_intermediate_size());
    } else {
      add_mlp_tensors(mlp, c.intermediate_size);
    }
    if (i >= c.num_hidden_layers) {
      add(layer + "shared_head.norm.weight", {c.hidden_size});
      add(layer + "shared_head.head.weight", {c.vocab_size, c.hidden_size});
    }
  }
  add("model.norm.weight", {c.hidden_size});
  if (!c.tie_word_embeddings) add("lm_head.weight", {c.vocab_size, c.hidden_size});
  return out;
}

}  // namespace exo::model::deepseek
