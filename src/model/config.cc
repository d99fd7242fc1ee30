#include "model/config.h"

#include <fmt/core.h>

#include "model/family.h"

namespace exo::model {
namespace {

int64_t attention_parameters(const HfConfig& c) {
  const int64_t q = c.num_attention_heads * c.qk_head_dim();
  const int64_t query = c.q_lora_rank > 0 ? c.q_lora_rank * (c.hidden_size + 1) + q * c.q_lora_rank
                                          : q * c.hidden_size;
  const int64_t kv_a = (c.kv_lora_rank + c.qk_rope_head_dim) * c.hidden_size + c.kv_lora_rank;
  const int64_t kv_b = c.num_attention_heads * (c.qk_nope_head_dim + c.v_head_dim) * c.kv_lora_rank;
  const int64_t o = c.hidden_size * c.num_attention_heads * c.v_head_dim;
  return query + kv_a + kv_b + o;
}

// Of a decoder layer of which `n_experts` routed experts are counted.
int64_t layer_parameters(const HfConfig& c, int64_t layer, int64_t n_experts) {
  const int64_t norms = 2 * c.hidden_size;
  if (!c.is_moe_layer(layer))
    return attention_parameters(c) + norms + 3 * c.hidden_size * c.intermediate_size;
  const bool has_bias = c.router.selection == ops::RouterConfig::Selection::noaux_tc;
  const int64_t gate = c.router.n_experts * (c.hidden_size + (has_bias ? 1 : 0));
  return attention_parameters(c) + norms + gate +
         3 * c.hidden_size * (n_experts * c.moe_intermediate_size + c.shared_intermediate_size());
}

}  // namespace

int64_t HfConfig::n_parameters(bool with_mtp) const {
  const int64_t table = vocab_size * hidden_size;
  int64_t n = table * (tie_word_embeddings ? 1 : 2) + hidden_size;
  for (int64_t i = 0; i < num_hidden_layers; ++i) n += layer_parameters(*this, i, router.n_experts);
  if (!with_mtp) return n;
  for (int64_t i = num_hidden_layers; i < num_hidden_layers + num_nextn_predict_layers; ++i) {
    // enorm, hnorm, shared_head.norm, eh_proj, the block, and copies of embedding and head.
    n += 3 * hidden_size + 2 * hidden_size * hidden_size +
         layer_parameters(*this, i, router.n_experts) + 2 * table;
  }
  return n;
}

int64_t HfConfig::n_active_parameters() const {
  int64_t n = vocab_size * hidden_size + hidden_size;
  for (int64_t i = 0; i < num_hidden_layers; ++i) n += layer_parameters(*this, i, router.top_k);
  return n;
}

Result<HfConfig> parse_config(const Json& json, const std::string& where) {
  const JsonObject o(json, where);
  if (json.is_object() && !o.has("model_type"))
    return invalid_argument(fmt::format(
        "{}: field 'model_type' is missing: expected the config.json of a Hugging Face checkpoint",
        where));
  EXO_ASSIGN_OR_RETURN(const std::string model_type, o.string("model_type"));
  EXO_ASSIGN_OR_RETURN(const Family* family, find_family(model_type, where));
  return family->parse_config(json, where);
}

OrderedJson config_to_json(const HfConfig& c) {
  using Router = ops::RouterConfig;
  OrderedJson j;
  j["model_type"] = c.model_type;
  j["vocab_size"] = c.vocab_size;
  j["hidden_size"] = c.hidden_size;
  j["intermediate_size"] = c.intermediate_size;
  j["num_hidden_layers"] = c.num_hidden_layers;
  j["num_nextn_predict_layers"] = c.num_nextn_predict_layers;
  j["num_attention_heads"] = c.num_attention_heads;
  j["q_lora_rank"] = c.q_lora_rank > 0 ? OrderedJson(c.q_lora_rank) : OrderedJson(nullptr);
  j["kv_lora_rank"] = c.kv_lora_rank;
  j["qk_nope_head_dim"] = c.qk_nope_head_dim;
  j["qk_rope_head_dim"] = c.qk_rope_head_dim;
  j["v_head_dim"] = c.v_head_dim;
  j["n_routed_experts"] = c.router.n_experts;
  if (c.router.n_experts > 0) {
    j["moe_intermediate_size"] = c.moe_intermediate_size;
    j["n_shared_experts"] = c.n_shared_experts;
    j["first_k_dense_replace"] = c.first_k_dense_replace;
    j["moe_layer_freq"] = c.moe_layer_freq;
    j["num_experts_per_tok"] = c.router.top_k;
    j["n_group"] = c.router.n_group;
    j["topk_group"] = c.router.topk_group;
    j["scoring_func"] = c.router.scoring == Router::Scoring::softmax ? "softmax" : "sigmoid";
    j["topk_method"] = c.router.selection == Router::Selection::greedy     ? "greedy"
                       : c.router.selection == Router::Selection::noaux_tc ? "noaux_tc"
                                                                           : "group_limited_greedy";
    j["norm_topk_prob"] = c.router.norm_topk_prob;
    j["routed_scaling_factor"] = c.router.routed_scaling_factor;
  }
  j["rms_norm_eps"] = c.rms_norm_eps;
  j["rope_theta"] = c.rope_theta;
  if (c.yarn.has_value()) {
    j["rope_scaling"] = {
        {"type", "yarn"},
        {"factor", c.yarn->factor},
        {"original_max_position_embeddings", c.yarn->original_max_position_embeddings},
        {"beta_fast", c.yarn->beta_fast},
        {"beta_slow", c.yarn->beta_slow},
        {"mscale", c.yarn->mscale},
        {"mscale_all_dim", c.yarn->mscale_all_dim}};
  }
  j["max_position_embeddings"] = c.max_position_embeddings;
  j["tie_word_embeddings"] = c.tie_word_embeddings;
  if (c.fp8_block_rows > 0) {
    j["quantization_config"] = {{"quant_method", "fp8"},
                                {"fmt", "e4m3"},
                                {"weight_block_size", {c.fp8_block_rows, c.fp8_block_cols}}};
  }
  j["torch_dtype"] = c.torch_dtype == DType::f32   ? "float32"
                     : c.torch_dtype == DType::f16 ? "float16"
                                                   : "bfloat16";
  if (c.bos_token_id >= 0) j["bos_token_id"] = c.bos_token_id;
  j["eos_token_id"] = c.eos_token_ids;
  return j;
}

}  // namespace exo::model
