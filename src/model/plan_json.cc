/// A plan as JSON and back. What is read back is config, format, placement and limits; the rest is
/// made again by make_plan and must come out the same, field by field.
#include <fmt/core.h>

#include "model/plan.h"

namespace exo::model {
namespace {

using J = OrderedJson;

std::string name_of(const Device& d) {
  return d.kind == DeviceKind::cpu ? "cpu" : fmt::format("cuda:{}", d.index);
}

J to_json(const LinearConfig& l) {
  J j{{"path", l.path},
      {"n_out", l.n_out},
      {"n_in", l.n_in},
      {"count", l.count},
      {"weight", to_string(l.weight)},
      {"activation", to_string(l.activation)},
      {"accumulate", to_string(l.accumulate)},
      {"device", name_of(l.device)},
      {"tile", {kPanelRows, tile_cols(l.weight)}}};
  if (l.weight == WeightFormat::fp8) j["k_block"] = l.k_block;
  j["weight_bytes"] = l.weight_bytes;
  return j;
}
J to_json(const NormConfig& n) { return {{"path", n.path}, {"n", n.n}, {"eps", n.eps}}; }
J to_json(const MulConfig& m) { return {{"n", m.n}, {"silu", m.silu}, {"out", to_string(m.out)}}; }
J to_json(const AllReduceConfig& a) {
  return {{"axis", a.axis},
          {"topology", a.topology == AllReduceConfig::Topology::ring ? "ring" : "linear"},
          {"dtype", to_string(a.dtype)},
          {"n_links", a.n_links}};
}
void add_all_reduce(const std::optional<AllReduceConfig>& all_reduce, J& j) {
  if (all_reduce) j["all_reduce"] = to_json(*all_reduce);
}

J to_json(const MlaConfig& m) {
  J j{{"form", m.form == ops::AttentionForm::expanded ? "expanded" : "absorbed"},
      {"n_heads", m.n_heads},
      {"kv_lora_rank", m.kv_lora_rank},
      {"qk_nope_head_dim", m.qk_nope_head_dim},
      {"qk_rope_head_dim", m.qk_rope_head_dim},
      {"v_head_dim", m.v_head_dim},
      {"softmax_scale", m.softmax_scale},
      {"cache", to_string(m.cache)},
      {"input_norm", to_json(m.input_norm)}};
  if (m.q_a) j["q_a"] = to_json(*m.q_a);
  if (m.q_a_norm) j["q_a_norm"] = to_json(*m.q_a_norm);
  j["q_b"] = to_json(m.q_b);
  j["kv_a"] = to_json(m.kv_a);
  j["kv_a_norm"] = to_json(m.kv_a_norm);
  j["w_k"] = to_json(m.w_k);
  j["w_v"] = to_json(m.w_v);
  j["o"] = to_json(m.o);
  add_all_reduce(m.all_reduce, j);
  return j;
}

J to_json(const MlpConfig& m) {
  J j{{"gate_up", to_json(m.gate_up)}, {"mul", to_json(m.mul)}, {"down", to_json(m.down)}};
  add_all_reduce(m.all_reduce, j);
  return j;
}

J to_json(const MoeConfig& m) {
  J j{{"gate", to_json(m.gate)},       {"n_experts", m.router.n_experts},
      {"top_k", m.router.top_k},       {"bias", m.bias_path.empty() ? J(nullptr) : J(m.bias_path)},
      {"gate_up", to_json(m.gate_up)}, {"mul", to_json(m.mul)},
      {"down", to_json(m.down)}};
  if (m.shared) j["shared"] = to_json(*m.shared);
  add_all_reduce(m.all_reduce, j);
  return j;
}

J to_json(const DecoderLayerConfig& l) {
  J j{{"layer", l.layer},
      {"attention", to_json(l.attention)},
      {"post_attention_norm", to_json(l.post_attention_norm)}};
  if (l.mlp) j["mlp"] = to_json(*l.mlp);
  if (l.moe) j["moe"] = to_json(*l.moe);
  return j;
}

J to_json(const EmbeddingConfig& e) {
  return {{"path", e.path},
          {"vocab_size", e.vocab_size},
          {"hidden_size", e.hidden_size},
          {"dtype", to_string(e.dtype)},
          {"weight_bytes", e.weight_bytes}};
}

J to_json(const MtpConfig& m) {
  J j{{"enorm", to_json(m.enorm)},
      {"hnorm", to_json(m.hnorm)},
      {"eh_proj", to_json(m.eh_proj)},
      {"block", to_json(m.block)},
      {"shared_head_norm", to_json(m.shared_head_norm)}};
  if (m.embedding) j["embedding"] = to_json(*m.embedding);
  return j;
}

J to_json(const PhaseConfig& p) {
  J j{{"max_tokens", p.max_tokens}, {"scratch_bytes", p.scratch_bytes}};
  if (p.embedding) j["embedding"] = to_json(*p.embedding);
  j["layers"] = J::array();
  for (const DecoderLayerConfig& layer : p.layers) j["layers"].push_back(to_json(layer));
  if (p.lm_head)
    j["lm_head"] = {{"final_norm", to_json(p.lm_head->final_norm)},
                    {"linear", to_json(p.lm_head->linear)}};
  j["mtp"] = J::array();
  for (const MtpConfig& mtp : p.mtp) j["mtp"].push_back(to_json(mtp));
  return j;
}

J to_json(const Placement& p) {
  return {{"layer_begin", p.layer_begin},
          {"layer_end", p.layer_end},
          {"tensor_rank", p.tensor_rank},
          {"tensor_size", p.tensor_size},
          {"device", name_of(p.device.front())}};
}

J to_json(const Limits& l) {
  return {{"max_context_tokens", l.max_context_tokens},
          {"max_batch_tokens", l.max_batch_tokens},
          {"max_sequences", l.max_sequences},
          {"n_pages", l.n_pages},
          {"max_logit_rows", l.max_logit_rows},
          {"n_threads", l.n_threads},
          {"fp32_compute", l.fp32_compute},
          {"kv_cache", kv_cache_name(*l.cache)}};
}

Result<Placement> placement_from_json(const Json& json, const std::string& where) {
  constexpr int64_t kMax = 1 << 20;
  const JsonObject o(json, where + ": placement");
  Placement p;
  EXO_ASSIGN_OR_RETURN(p.layer_begin, o.integer("layer_begin", 0, kMax));
  EXO_ASSIGN_OR_RETURN(p.layer_end, o.integer("layer_end", 0, kMax));
  EXO_ASSIGN_OR_RETURN(p.tensor_rank, o.integer("tensor_rank", 0, kMax));
  EXO_ASSIGN_OR_RETURN(p.tensor_size, o.integer("tensor_size", 1, kMax));
  return p;
}

Result<Limits> limits_from_json(const Json& json, const std::string& where) {
  constexpr int64_t kMax = int64_t{1} << 31;
  const JsonObject o(json, where + ": limits");
  Limits l;
  EXO_ASSIGN_OR_RETURN(l.max_context_tokens, o.integer("max_context_tokens", 1, kMax));
  EXO_ASSIGN_OR_RETURN(l.max_batch_tokens, o.integer("max_batch_tokens", 1, kMax));
  EXO_ASSIGN_OR_RETURN(l.max_sequences, o.integer("max_sequences", 1, kMax));
  EXO_ASSIGN_OR_RETURN(l.n_pages, o.integer("n_pages", 1, kMax));
  EXO_ASSIGN_OR_RETURN(l.max_logit_rows, o.integer("max_logit_rows", 1, kMax));
  EXO_ASSIGN_OR_RETURN(const int64_t n_threads, o.integer("n_threads", 1, 4096));
  l.n_threads = static_cast<int>(n_threads);
  EXO_ASSIGN_OR_RETURN(l.fp32_compute, o.boolean_or("fp32_compute", false));
  EXO_ASSIGN_OR_RETURN(const std::string cache, o.string_or("kv_cache", ""));
  EXO_ASSIGN_OR_RETURN(l.cache, parse_kv_cache(cache));
  return l;
}

std::string brief(const Json& json) {
  std::string text = json.dump(-1, ' ', false, Json::error_handler_t::replace);
  return text.size() > 80 ? text.substr(0, 77) + "..." : text;
}

// The first field in which `got` isn't `expected`; "" if none.
std::string first_difference(const Json& expected, const Json& got, const std::string& path) {
  const bool both_objects = expected.is_object() && got.is_object();
  const bool both_arrays = expected.is_array() && got.is_array() && expected.size() == got.size();
  if (both_objects) {
    for (const auto& [key, value] : expected.items()) {
      const std::string here = path.empty() ? key : fmt::format("{}.{}", path, key);
      if (!got.contains(key))
        return fmt::format("{}: expected {}, it is missing", here, brief(value));
      std::string difference = first_difference(value, got[key], here);
      if (!difference.empty()) return difference;
    }
    for (const auto& [key, value] : got.items()) {
      if (!expected.contains(key))
        return fmt::format("{}{}{}: unknown field", path, path.empty() ? "" : ".",
                           key.substr(0, 80));
    }
    return "";
  }
  if (both_arrays) {
    for (size_t i = 0; i < expected.size(); ++i) {
      std::string difference =
          first_difference(expected[i], got[i], fmt::format("{}[{}]", path, i));
      if (!difference.empty()) return difference;
    }
    return "";
  }
  if (expected == got) return "";
  return fmt::format("{}: expected {}, got {}", path, brief(expected), brief(got));
}

}  // namespace

OrderedJson plan_to_json(const Plan& plan) {
  J cache = J::array();
  for (const CacheSpec& spec : plan.cache)
    cache.push_back({{"stream", spec.stream},
                     {"dtype", to_string(spec.dtype)},
                     {"bytes_per_entry", spec.bytes_per_entry},
                     {"tokens_per_entry", spec.tokens_per_entry},
                     {"window_tokens", spec.window_tokens}});
  const J stage{{"layer_begin", plan.placement.layer_begin},
                {"layer_end", plan.placement.layer_end},
                {"weight_bytes", plan.weight_bytes},
                {"mtp_weight_bytes", plan.mtp_weight_bytes},
                {"kv_bytes", plan.kv_bytes},
                {"scratch_bytes", plan.scratch_bytes},
                {"state_bytes", plan.state_bytes},
                {"total_bytes", plan.total_bytes()},
                {"cache", std::move(cache)},
                {"prefill", to_json(plan.prefill)},
                {"decode", to_json(plan.decode)}};
  return {{"parameters", plan.config.n_parameters(false)},
          {"parameters_with_mtp", plan.config.n_parameters(true)},
          {"active_parameters", plan.config.n_active_parameters()},
          {"weight_bytes", plan.weight_bytes},
          {"kv_bytes_per_token", plan.kv_bytes_per_token},
          {"total_bytes", plan.total_bytes()},
          {"format", plan.format.to_string()},
          {"placement", to_json(plan.placement)},
          {"limits", to_json(plan.limits)},
          {"config", config_to_json(plan.config)},
          {"stages", J::array({stage})}};
}

Result<Plan> plan_from_json(const Json& json, const std::string& where) {
  const JsonObject o(json, where);
  EXO_ASSIGN_OR_RETURN(const Json* config_json, o.object("config"));
  EXO_ASSIGN_OR_RETURN(const HfConfig config, parse_config(*config_json, where + ": config"));
  EXO_ASSIGN_OR_RETURN(const std::string format_text, o.string("format"));
  EXO_ASSIGN_OR_RETURN(const FormatChoice format, parse_format(format_text, config));
  EXO_ASSIGN_OR_RETURN(const Json* placement_json, o.object("placement"));
  EXO_ASSIGN_OR_RETURN(const Placement placement, placement_from_json(*placement_json, where));
  EXO_ASSIGN_OR_RETURN(const Json* limits_json, o.object("limits"));
  EXO_ASSIGN_OR_RETURN(const Limits limits, limits_from_json(*limits_json, where));
  EXO_ASSIGN_OR_RETURN(Plan plan, make_plan(config, format, placement, limits));
  const std::string difference = first_difference(Json(plan_to_json(plan)), json, "");
  if (!difference.empty())
    return failed_precondition(
        fmt::format("{}: this plan isn't what this build makes of its config, format, placement "
                    "and limits: {}; "
                    "make it again with `exo plan`",
                    where, difference));
  return plan;
}

}  // namespace exo::model
