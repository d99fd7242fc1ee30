#include <fmt/core.h>

#include "base/json.h"
#include "base/os.h"
#include "cli/commands.h"
#include "cli/console.h"
#include "cli/model_setup.h"

namespace exo::cli {
namespace {

std::string bytes_of(int64_t n) { return format_bytes(static_cast<uint64_t>(n)); }

std::string layers_line(const model::HfConfig& config) {
  int64_t n_moe = 0;
  for (int64_t i = 0; i < config.num_hidden_layers; ++i) n_moe += config.is_moe_layer(i) ? 1 : 0;
  std::string text = fmt::format("{} layers ({} dense, {} of experts", config.num_hidden_layers,
                                 config.num_hidden_layers - n_moe, n_moe);
  if (n_moe > 0)
    text += fmt::format(": {} of {} a token and {} shared", config.router.top_k,
                        config.router.n_experts, config.n_shared_experts);
  return text + ")";
}

std::string describe_plan(const PlannedModel& planned) {
  const model::Plan& plan = planned.plan;
  const model::HfConfig& config = plan.config;
  std::string text =
      fmt::format("{}: {}, {}\n", planned.location.name, config.model_type, layers_line(config));
  const std::string with_mtp =
      config.num_nextn_predict_layers > 0
          ? fmt::format(" ({} with the MTP layer)", format_count(config.n_parameters(true)))
          : "";
  text += fmt::format("  parameters      {}{}, {} active a token\n",
                      format_count(config.n_parameters(false)), with_mtp,
                      format_count(config.n_active_parameters()));
  text += fmt::format("  weights         {} as {}\n", bytes_of(plan.weight_bytes),
                      plan.format.to_string());
  text += fmt::format("  cache           {} a token as {}; {} for {} tokens\n",
                      bytes_of(plan.kv_bytes_per_token), model::kv_cache_name(*plan.limits.cache),
                      bytes_of(plan.kv_bytes), format_count(plan.limits.max_context_tokens));
  text += fmt::format("  scratch         {} (prefill of {} tokens, decode of {})\n",
                      bytes_of(plan.scratch_bytes + plan.state_bytes), plan.prefill.max_tokens,
                      plan.decode.max_tokens);
  const auto total = static_cast<uint64_t>(plan.total_bytes());
  const uint64_t memory = total_memory_bytes(), available = available_memory_bytes();
  text += fmt::format("  together        {}; this machine has {}, {} free: {}\n",
                      format_bytes(total), format_bytes(memory), format_bytes(available),
                      total <= available ? "fits" : "does not fit");
  return text;
}

}  // namespace

Status plan_command(const Context& context, const PlanOptions& options) {
  RunNeeds needs;
  EXO_ASSIGN_OR_RETURN(const PlannedModel planned, plan_model(context, options.model, needs));
  if (options.json) return write_out(model::plan_to_json(planned.plan).dump(1) + "\n");
  return write_out(describe_plan(planned));
}

}  // namespace exo::cli
