#include <fmt/core.h>

#include "model/deepseek/deepseek.h"

namespace exo::model::deepseek {
namespace {

// Widest row of a matrix: 127 * 127 * kMaxWidth fits the int32 sums of the integer formats.
constexpr int64_t kMaxWidth = 131072;
constexpr int64_t kMaxLayers = 1024;  // with kMaxExperts: no count of bytes overflows an int64
constexpr int64_t kMaxExperts = 16384;

// What the two published configuration_deepseek.py differ in.
struct Defaults {
  const char* scoring_func;
  const char* topk_method;
  bool norm_topk_prob;
  int64_t n_group, topk_group;
};
constexpr Defaults kV2Defaults{"softmax", "greedy", false, 1, 1};
constexpr Defaults kV3Defaults{"sigmoid", "noaux_tc", true, 8, 4};

Status refuse(const std::string& where, const std::string& what) {
  return unimplemented(fmt::format("{}: {}", where, what));
}

// Of an array's element, which JsonObject doesn't read.
bool is_integer_in(const Json& v, int64_t min, int64_t max) {
  if (!v.is_number_integer()) return false;
  const auto n = v.get<int64_t>();  // beyond int64: negative, and no minimum here is
  return n >= min && n <= max;
}

Status parse_sizes(const JsonObject& o, const Json& json, const std::string& where, HfConfig& c) {
  EXO_ASSIGN_OR_RETURN(c.vocab_size, o.integer("vocab_size", 1, 1 << 24));
  // Half of kMaxWidth: MTP's eh_proj reads two hidden states side by side.
  EXO_ASSIGN_OR_RETURN(c.hidden_size, o.integer("hidden_size", 1, kMaxWidth / 2));
  EXO_ASSIGN_OR_RETURN(c.num_hidden_layers, o.integer("num_hidden_layers", 1, kMaxLayers));
  EXO_ASSIGN_OR_RETURN(c.num_nextn_predict_layers,
                       o.integer_or("num_nextn_predict_layers", 0, 0, 16));
  EXO_ASSIGN_OR_RETURN(c.num_attention_heads, o.integer("num_attention_heads", 1, 4096));
  EXO_ASSIGN_OR_RETURN(c.kv_lora_rank, o.integer("kv_lora_rank", 1, kMaxWidth));
  EXO_ASSIGN_OR_RETURN(c.qk_nope_head_dim, o.integer("qk_nope_head_dim", 1, 8192));
  EXO_ASSIGN_OR_RETURN(c.qk_rope_head_dim, o.integer("qk_rope_head_dim", 2, 8192));
  EXO_ASSIGN_OR_RETURN(c.v_head_dim, o.integer("v_head_dim", 1, 8192));
  // null says "one q_proj"; only a missing field has a default.
  if (json.contains("q_lora_rank")) {
    EXO_ASSIGN_OR_RETURN(c.q_lora_rank, o.integer_or("q_lora_rank", 0, 0, kMaxWidth));
  } else {
    c.q_lora_rank = 1536;
  }
  EXO_ASSIGN_OR_RETURN(const int64_t n_kv_heads,
                       o.integer_or("num_key_value_heads", c.num_attention_heads, 1, 4096));
  if (n_kv_heads != c.num_attention_heads)
    return invalid_argument(fmt::format(
        "{}: num_key_value_heads is {}, num_attention_heads {}: latent attention has as many key "
        "as query heads",
        where, n_kv_heads, c.num_attention_heads));
  if (c.qk_rope_head_dim % 2 != 0)
    return invalid_argument(fmt::format("{}: qk_rope_head_dim is {}, rotary pairs need an even one",
                                        where, c.qk_rope_head_dim));
  if (c.num_attention_heads * c.v_head_dim > kMaxWidth ||
      c.num_attention_heads * c.qk_head_dim() > int64_t{1} << 20)
    return invalid_argument(fmt::format(
        "{}: {} heads of {} query and {} value dimensions are more than this build holds", where,
        c.num_attention_heads, c.qk_head_dim(), c.v_head_dim));
  return ok_status();
}

Status parse_router(const JsonObject& o, const std::string& where, const Defaults& d, HfConfig& c) {
  ops::RouterConfig& r = c.router;
  EXO_ASSIGN_OR_RETURN(const int64_t n_experts,
                       o.integer_or("n_routed_experts", 0, 0, kMaxExperts));
  r.n_experts = static_cast<int32_t>(n_experts);
  if (n_experts == 0) {
    EXO_ASSIGN_OR_RETURN(c.intermediate_size, o.integer("intermediate_size", 1, kMaxWidth));
    return ok_status();
  }
  EXO_ASSIGN_OR_RETURN(c.first_k_dense_replace,
                       o.integer_or("first_k_dense_replace", 0, 0, kMaxLayers));
  EXO_ASSIGN_OR_RETURN(c.moe_layer_freq, o.integer_or("moe_layer_freq", 1, 1, kMaxLayers));
  EXO_ASSIGN_OR_RETURN(c.intermediate_size, o.integer("intermediate_size", 1, kMaxWidth));
  EXO_ASSIGN_OR_RETURN(c.moe_intermediate_size, o.integer("moe_intermediate_size", 1, kMaxWidth));
  EXO_ASSIGN_OR_RETURN(c.n_shared_experts, o.integer_or("n_shared_experts", 0, 0, 64));
  if (c.shared_intermediate_size() > kMaxWidth)
    return invalid_argument(fmt::format("{}: {} shared experts of {} are wider than {}", where,
                                        c.n_shared_experts, c.moe_intermediate_size, kMaxWidth));
  EXO_ASSIGN_OR_RETURN(const int64_t top_k, o.integer("num_experts_per_tok", 1, n_experts));
  EXO_ASSIGN_OR_RETURN(const int64_t n_group, o.integer_or("n_group", d.n_group, 1, n_experts));
  EXO_ASSIGN_OR_RETURN(const int64_t topk_group,
                       o.integer_or("topk_group", std::min(d.topk_group, n_group), 1, n_group));
  EXO_ASSIGN_OR_RETURN(r.norm_topk_prob, o.boolean_or("norm_topk_prob", d.norm_topk_prob));
  EXO_ASSIGN_OR_RETURN(const double scale, o.number_or("routed_scaling_factor", 1.0));
  if (!(scale > 0 && scale <= 1e6))
    return invalid_argument(
        fmt::format("{}: routed_scaling_factor is {}, expected in (0, 1e6]", where, scale));
  r.top_k = static_cast<int32_t>(top_k);
  r.n_group = static_cast<int32_t>(n_group);
  r.topk_group = static_cast<int32_t>(topk_group);
  r.routed_scaling_factor = static_cast<float>(scale);

  EXO_ASSIGN_OR_RETURN(const std::string scoring, o.string_or("scoring_func", d.scoring_func));
  if (scoring == "softmax") {
    r.scoring = ops::RouterConfig::Scoring::softmax;
  } else if (scoring == "sigmoid") {
    r.scoring = ops::RouterConfig::Scoring::sigmoid;
  } else {
    return refuse(where, fmt::format("scoring_func '{}' is not run by this build: softmax and "
                                     "sigmoid are",
                                     scoring));
  }
  EXO_ASSIGN_OR_RETURN(const std::string method, o.string_or("topk_method", d.topk_method));
  if (method == "greedy") {
    r.selection = ops::RouterConfig::Selection::greedy;
  } else if (method == "group_limited_greedy") {
    r.selection = ops::RouterConfig::Selection::group_limited_greedy;
  } else if (method == "noaux_tc") {
    r.selection = ops::RouterConfig::Selection::noaux_tc;
  } else {
    return refuse(where, fmt::format("topk_method '{}' is not run by this build: greedy, "
                                     "group_limited_greedy and noaux_tc are",
                                     method));
  }
  if (r.selection == ops::RouterConfig::Selection::greedy) return ok_status();
  const int64_t per_group = n_experts / n_group;
  if (n_experts % n_group != 0)
    return invalid_argument(fmt::format("{}: n_group {} doesn't divide n_routed_experts {}", where,
                                        n_group, n_experts));
  if (top_k > topk_group * per_group)
    return invalid_argument(
        fmt::format("{}: num_experts_per_tok is {}, but {} groups of {} experts hold only {}",
                    where, top_k, topk_group, per_group, topk_group * per_group));
  if (r.selection == ops::RouterConfig::Selection::noaux_tc && n_group > 1 && per_group < 2)
    return invalid_argument(
        fmt::format("{}: noaux_tc adds a group's two best experts; n_group {} leaves {} in a group",
                    where, n_group, per_group));
  return ok_status();
}

// rope_scaling of transformers 4, or rope_parameters (with rope_theta inside) of transformers 5.
Status parse_rope(const JsonObject& o, const std::string& where, HfConfig& c) {
  const Json* scaling = nullptr;
  std::string name = "rope_scaling";
  if (o.has("rope_scaling")) {
    EXO_ASSIGN_OR_RETURN(scaling, o.object("rope_scaling"));
  } else if (o.has("rope_parameters")) {
    name = "rope_parameters";
    EXO_ASSIGN_OR_RETURN(scaling, o.object("rope_parameters"));
  }
  double theta = 10000;
  if (scaling != nullptr) {
    EXO_ASSIGN_OR_RETURN(theta, JsonObject(*scaling, where).number_or("rope_theta", theta));
  }
  EXO_ASSIGN_OR_RETURN(c.rope_theta, o.number_or("rope_theta", theta));
  if (!(c.rope_theta > 1 && c.rope_theta <= 1e15))
    return invalid_argument(
        fmt::format("{}: rope_theta is {}, expected in (1, 1e15]", where, c.rope_theta));
  EXO_ASSIGN_OR_RETURN(const bool interleave, o.boolean_or("rope_interleave", true));
  if (!interleave)
    return refuse(where, "rope_interleave false: this build rotates neighbouring pairs only");
  if (scaling == nullptr) return ok_status();

  const JsonObject s(*scaling, where + ": " + name);
  EXO_ASSIGN_OR_RETURN(const std::string old_type, s.string_or("type", "default"));
  EXO_ASSIGN_OR_RETURN(const std::string type, s.string_or("rope_type", old_type));
  if (type == "default") return ok_status();
  if (type != "yarn")
    return refuse(where, fmt::format("{} of type '{}' is not run by this build: yarn is", name,
                                     type.substr(0, 100)));
  for (const char* field : {"attention_factor", "truncate"}) {
    if (s.has(field))
      return refuse(where, fmt::format("{}.{} is not known to DeepSeek's YaRN", name, field));
  }
  YarnConfig y;
  EXO_ASSIGN_OR_RETURN(y.factor, s.number("factor"));
  EXO_ASSIGN_OR_RETURN(y.original_max_position_embeddings,
                       s.integer_or("original_max_position_embeddings", 4096, 1, 1 << 30));
  EXO_ASSIGN_OR_RETURN(y.beta_fast, s.number_or("beta_fast", 32));
  EXO_ASSIGN_OR_RETURN(y.beta_slow, s.number_or("beta_slow", 1));
  EXO_ASSIGN_OR_RETURN(y.mscale, s.number_or("mscale", 1));
  EXO_ASSIGN_OR_RETURN(y.mscale_all_dim, s.number_or("mscale_all_dim", 0));
  const auto in_range = [](double v, double min) { return v >= min && v <= 1e6; };
  if (!in_range(y.factor, 1) || !in_range(y.beta_fast, 1e-6) || !in_range(y.beta_slow, 1e-6) ||
      !in_range(y.mscale, 0) || !in_range(y.mscale_all_dim, 0))
    return invalid_argument(
        fmt::format("{}: {}: factor must be in [1, 1e6], beta_fast and beta_slow in [1e-6, 1e6], "
                    "mscale and mscale_all_dim in [0, 1e6]",
                    where, name));
  c.yarn = y;
  return ok_status();
}

Status parse_quantization(const JsonObject& o, const std::string& where, HfConfig& c) {
  if (!o.has("quantization_config")) return ok_status();
  EXO_ASSIGN_OR_RETURN(const Json* json, o.object("quantization_config"));
  const std::string here = where + ": quantization_config";
  const JsonObject q(*json, here);
  EXO_ASSIGN_OR_RETURN(const std::string method, q.string("quant_method"));
  EXO_ASSIGN_OR_RETURN(const std::string fmt_name, q.string_or("fmt", "e4m3"));
  if (method != "fp8" || fmt_name != "e4m3" || !q.has("weight_block_size"))
    return refuse(here, fmt::format("quant_method '{}' (fmt '{}'{}) is not read by this build: use "
                                    "the official checkpoint, fp8 e4m3 with weight_block_size, or "
                                    "bf16",
                                    method.substr(0, 100), fmt_name.substr(0, 100),
                                    q.has("weight_block_size") ? "" : ", no weight_block_size"));
  EXO_ASSIGN_OR_RETURN(const Json* block, q.array("weight_block_size"));
  const auto size_at = [&](size_t i) {
    return is_integer_in((*block)[i], 1, kMaxWidth) ? (*block)[i].get<int64_t>() : 0;
  };
  if (block->size() != 2 || size_at(0) == 0 || size_at(1) == 0)
    return invalid_argument(
        fmt::format("{}: weight_block_size: expected two integers in [1, {}]", here, kMaxWidth));
  c.fp8_block_rows = size_at(0);
  c.fp8_block_cols = size_at(1);
  return ok_status();
}

Status parse_token_ids(const JsonObject& o, const Json& json, const std::string& where,
                       HfConfig& c) {
  const int64_t last = c.vocab_size - 1;
  EXO_ASSIGN_OR_RETURN(const int64_t bos, o.integer_or("bos_token_id", -1, -1, last));
  c.bos_token_id = static_cast<int32_t>(bos);
  if (!o.has("eos_token_id")) return ok_status();
  const Json& eos = json["eos_token_id"];
  if (!eos.is_array()) {
    EXO_ASSIGN_OR_RETURN(const int64_t id, o.integer("eos_token_id", 0, last));
    c.eos_token_ids = {static_cast<int32_t>(id)};
    return ok_status();
  }
  for (const Json& id : eos) {
    if (!is_integer_in(id, 0, last) || c.eos_token_ids.size() >= 64)
      return invalid_argument(
          fmt::format("{}: field 'eos_token_id': expected at most 64 ids in [0, {}]", where, last));
    c.eos_token_ids.push_back(id.get<int32_t>());
  }
  return ok_status();
}

Status parse_rest(const JsonObject& o, const std::string& where, HfConfig& c) {
  EXO_ASSIGN_OR_RETURN(c.rms_norm_eps, o.number_or("rms_norm_eps", 1e-6));
  if (!(c.rms_norm_eps >= 0 && c.rms_norm_eps <= 1))
    return invalid_argument(
        fmt::format("{}: rms_norm_eps is {}, expected in [0, 1]", where, c.rms_norm_eps));
  EXO_ASSIGN_OR_RETURN(c.max_position_embeddings,
                       o.integer_or("max_position_embeddings", 4096, 1, 1 << 30));
  EXO_ASSIGN_OR_RETURN(c.tie_word_embeddings, o.boolean_or("tie_word_embeddings", false));
  EXO_ASSIGN_OR_RETURN(const bool bias, o.boolean_or("attention_bias", false));
  if (bias) return refuse(where, "attention_bias true is not run by this build");
  std::string act;  // declared apart: GCC 12 sees it uninitialised inside the macro
  EXO_ASSIGN_OR_RETURN(act, o.string_or("hidden_act", "silu"));
  if (act != "silu")
    return refuse(where, fmt::format("hidden_act '{}' is not run by this build: silu is",
                                     act.substr(0, 100)));
  // transformers 5 writes "dtype".
  EXO_ASSIGN_OR_RETURN(const std::string dtype, o.string_or("dtype", "bfloat16"));
  EXO_ASSIGN_OR_RETURN(const std::string torch_dtype, o.string_or("torch_dtype", dtype));
  if (torch_dtype == "bfloat16") {
    c.torch_dtype = DType::bf16;
  } else if (torch_dtype == "float16") {
    c.torch_dtype = DType::f16;
  } else if (torch_dtype == "float32") {
    c.torch_dtype = DType::f32;
  } else {
    return refuse(where,
                  fmt::format("torch_dtype '{}' is not read by this build: bfloat16, float16 "
                              "and float32 are",
                              torch_dtype.substr(0, 100)));
  }
  return ok_status();
}

}  // namespace

Result<HfConfig> parse_config(const Json& json, const std::string& where) {
  const JsonObject o(json, where);
  HfConfig c;
  EXO_ASSIGN_OR_RETURN(c.model_type, o.string("model_type"));
  const Defaults& defaults = c.model_type == "deepseek_v2" ? kV2Defaults : kV3Defaults;
  EXO_RETURN_IF_ERROR(parse_sizes(o, json, where, c));
  EXO_RETURN_IF_ERROR(parse_router(o, where, defaults, c));
  EXO_RETURN_IF_ERROR(parse_rope(o, where, c));
  EXO_RETURN_IF_ERROR(parse_quantization(o, where, c));
  EXO_RETURN_IF_ERROR(parse_token_ids(o, json, where, c));
  EXO_RETURN_IF_ERROR(parse_rest(o, where, c));
  return c;
}

}  // namespace exo::model::deepseek
