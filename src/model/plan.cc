#include "model/plan.h"

#include <fmt/core.h>

#include <algorithm>

#include "model/family.h"
#include "model/modules/decoder_layer.h"
#include "model/modules/lm_head.h"
#include "model/recipe.h"
#include "model/state.h"

namespace exo::model {
namespace {

constexpr std::array<std::string_view, kRoleCount> kRoleNames = {
    "embedding", "attention", "dense", "experts", "shared", "lm_head"};

// Absorbed rows that any forward may hold: enough for a batch of sequences, and for generated
// tokens that are computed again.
constexpr int64_t kMinDecodeTokens = 64;

Result<WeightFormat> format_by_name(std::string_view name) {
  for (WeightFormat f : {WeightFormat::f32, WeightFormat::bf16, WeightFormat::fp8,
                         WeightFormat::int8, WeightFormat::int4}) {
    if (to_string(f) == name) return f;
  }
  return invalid_argument(
      fmt::format("format '{}' is unknown: expected bf16, fp8, int8, int4 or f32, or parts like "
                  "\"int4,attention=int8,lm_head=bf16\"",
                  std::string(name.substr(0, 50))));
}

// One part of a format: "int8", or "lm_head=int8".
Status apply_format(std::string_view part, const HfConfig& config, FormatChoice& choice) {
  const size_t equals = part.find('=');
  EXO_ASSIGN_OR_RETURN(const WeightFormat format,
                       format_by_name(equals == part.npos ? part : part.substr(equals + 1)));
  if (format == WeightFormat::fp8 && config.fp8_block_rows == 0)
    return invalid_argument(
        "format fp8 keeps a checkpoint's own FP8 weights, and this checkpoint has none: use bf16, "
        "int8 or int4");
  if (equals == part.npos) {
    choice.by_role.fill(format);
    choice.by_role[static_cast<size_t>(Role::embedding)] = WeightFormat::bf16;
    if (format == WeightFormat::fp8)
      choice.by_role[static_cast<size_t>(Role::lm_head)] = WeightFormat::bf16;
    return ok_status();
  }
  const std::string role(part.substr(0, equals));
  const auto at = std::find(kRoleNames.begin(), kRoleNames.end(), role);
  if (at == kRoleNames.end() || role == "embedding")
    return invalid_argument(fmt::format(
        "format '{}': expected attention, dense, experts, shared or lm_head before '=' (the "
        "embedding is always bf16)",
        std::string(part.substr(0, 80))));
  if (role == "lm_head" && format == WeightFormat::fp8)
    return invalid_argument("format lm_head=fp8: FP8 checkpoints store the head in bf16");
  choice.by_role[static_cast<size_t>(at - kRoleNames.begin())] = format;
  return ok_status();
}

Status check_placement(const HfConfig& c, const Placement& p) {
  if (p.layer_begin < 0 || p.layer_begin >= p.layer_end || p.layer_end > c.num_hidden_layers)
    return invalid_argument(fmt::format("placement: layers [{}, {}) of a model that has {}",
                                        p.layer_begin, p.layer_end, c.num_hidden_layers));
  if (p.tensor_size != 1 || p.tensor_rank != 0)
    return unimplemented("placement: this build doesn't split tensors over ranks");
  for (const Device& device : p.device) {
    if (device.kind != DeviceKind::cpu)
      return unimplemented("placement: this build computes every role on the CPU");
  }
  return ok_status();
}

Status check_limits(const HfConfig& c, Limits& l) {
  const auto in = [](std::string_view name, int64_t value, int64_t min, int64_t max) {
    if (value >= min && value <= max) return ok_status();
    return invalid_argument(
        fmt::format("limits: {} is {}, expected in [{}, {}]", name, value, min, max));
  };
  EXO_RETURN_IF_ERROR(in("max_context_tokens", l.max_context_tokens, 1, c.max_position_embeddings));
  EXO_RETURN_IF_ERROR(in("max_batch_tokens", l.max_batch_tokens, 1, 1 << 20));
  EXO_RETURN_IF_ERROR(in("max_sequences", l.max_sequences, 1, 1 << 20));
  EXO_RETURN_IF_ERROR(in("n_pages", l.n_pages, 0, (int64_t{1} << 31) - 1));
  EXO_RETURN_IF_ERROR(in("max_logit_rows", l.max_logit_rows, 1, l.max_batch_tokens));
  EXO_RETURN_IF_ERROR(in("n_threads", l.n_threads, 1, 4096));
  l.n_pages = n_pages_of(l);
  if (!l.cache) l.cache = l.fp32_compute ? DType::f32 : DType::bf16;
  return in("n_pages (for every sequence's whole context)", l.n_pages, 1, (int64_t{1} << 31) - 1);
}

// Arena bytes of a forward of n_tokens rows, n_absorbed of them absorbed.
int64_t scratch_bytes(const Plan& plan, const PhaseConfig& phase, int64_t n_absorbed) {
  const Limits& l = plan.limits;
  int64_t n = 0;
  for (const DecoderLayerConfig& layer : phase.layers)
    n = std::max(n, decoder_layer::scratch_bytes(layer, plan.config.hidden_size, phase.max_tokens,
                                                 n_absorbed, l.n_threads));
  if (phase.lm_head)
    n = std::max(n, lm_head::scratch_bytes(*phase.lm_head, l.max_logit_rows, l.n_threads));
  return n;
}

}  // namespace

std::string FormatChoice::to_string() const {
  // The most common format of the roles that have a choice, then the others by name.
  std::array<int, 5> n_uses{};
  for (size_t role = 1; role < kRoleCount; ++role) ++n_uses[static_cast<size_t>(by_role[role])];
  const auto most =
      static_cast<WeightFormat>(std::max_element(n_uses.begin(), n_uses.end()) - n_uses.begin());
  std::string text(exo::to_string(most));
  for (size_t role = 1; role < kRoleCount; ++role) {
    const bool implied = by_role[role] == most ||
                         (most == WeightFormat::fp8 && role == static_cast<size_t>(Role::lm_head) &&
                          by_role[role] == WeightFormat::bf16);
    if (!implied) text += fmt::format(",{}={}", kRoleNames[role], exo::to_string(by_role[role]));
  }
  return text;
}

Result<FormatChoice> parse_format(const std::string& text, const HfConfig& config) {
  FormatChoice choice;
  EXO_RETURN_IF_ERROR(apply_format(config.fp8_block_rows > 0 ? "fp8" : "bf16", config, choice));
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    const std::string_view part = std::string_view(text).substr(begin, end - begin);
    if (begin > 0 && part.find('=') == part.npos)
      return invalid_argument(fmt::format("format '{}': only the first part may be without a role",
                                          text.substr(0, 80)));
    EXO_RETURN_IF_ERROR(apply_format(part, config, choice));
    begin = end + 1;
  }
  return choice;
}

constexpr std::array<std::pair<std::string_view, DType>, 4> kCacheNames = {
    {{"bf16", DType::bf16}, {"int8", DType::i8}, {"fp8", DType::f8_e4m3}, {"fp32", DType::f32}}};

Result<std::optional<DType>> parse_kv_cache(const std::string& text) {
  if (text.empty()) return std::optional<DType>();
  for (const auto& [name, dtype] : kCacheNames) {
    if (name == text) return std::optional(dtype);
  }
  return invalid_argument(
      fmt::format("KV cache '{}': expected bf16, int8, fp8 or fp32", text.substr(0, 50)));
}

std::string_view kv_cache_name(DType cache) {
  for (const auto& [name, dtype] : kCacheNames) {
    if (dtype == cache) return name;
  }
  return exo::to_string(cache);
}

Placement whole_model(const HfConfig& config) {
  Placement p;
  p.layer_end = config.num_hidden_layers;
  return p;
}

Result<Plan> make_plan(const HfConfig& config, const FormatChoice& format,
                       const Placement& placement, const Limits& limits) {
  Plan plan{.config = config, .format = format, .placement = placement, .limits = limits};
  EXO_RETURN_IF_ERROR(check_placement(config, placement));
  EXO_RETURN_IF_ERROR(check_limits(config, plan.limits));
  const Limits& l = plan.limits;

  const Family& family = family_of(config);
  plan.prefill = family.make_phase(plan, Phase::prefill);
  plan.decode = family.make_phase(plan, Phase::decode);
  plan.prefill.max_tokens = l.max_batch_tokens;
  plan.decode.max_tokens =
      std::min(l.max_batch_tokens, std::max(l.max_sequences, kMinDecodeTokens));
  // A batch of prompts may carry generated tokens too.
  plan.prefill.scratch_bytes = scratch_bytes(plan, plan.prefill, plan.decode.max_tokens);
  plan.decode.scratch_bytes = scratch_bytes(plan, plan.decode, plan.decode.max_tokens);
  plan.scratch_bytes = std::max(plan.prefill.scratch_bytes, plan.decode.scratch_bytes);

  const ops::LatentPages pages{.dtype = *l.cache,
                               .n_pages = l.n_pages,
                               .kv_lora_rank = config.kv_lora_rank,
                               .rope_dim = config.qk_rope_head_dim};
  const int64_t n_layers = placement.layer_end - placement.layer_begin;
  plan.cache = {{.stream = "latent", .dtype = pages.dtype, .bytes_per_entry = pages.token_bytes()}};
  plan.kv_bytes_per_token = n_layers * pages.token_bytes();
  plan.kv_bytes = n_layers * pages.page_bytes() * l.n_pages;
  plan.state_bytes = run_memory_bytes(config, placement, l);
  for (const RecipeUnit& unit : make_recipe(plan))
    (unit.mtp ? plan.mtp_weight_bytes : plan.weight_bytes) += unit.n_bytes();
  return plan;
}

}  // namespace exo::model
