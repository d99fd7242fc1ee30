#include "engine/bench.h"

#include <fmt/core.h>

#include <algorithm>
#include <chrono>

#include "base/json.h"
#include "base/os.h"
#include "cli/commands.h"
#include "cli/console.h"
#include "cli/model_setup.h"
#include "kernels/cpu/roofline.h"
#include "model/convert.h"
#include "weights/weight_config.h"

namespace exo::cli {
namespace {

/// The config of --random-weights, cut to --layers (one of experts at least, no MTP).
Result<std::string> random_config(const BenchCommandOptions& options) {
  std::string text;
  if (hub::file_exists(options.random_weights)) {
    EXO_ASSIGN_OR_RETURN(text, read_file(options.random_weights, 16 << 20));
  } else if (const hub::RegistryEntry* entry = hub::find_entry(options.random_weights)) {
    EXO_ASSIGN_OR_RETURN(const std::string_view embedded, hub::config_of(*entry));
    text = embedded;
  } else {
    return not_found(fmt::format(
        "--random-weights {}: expected a registry id (`exo models list`) or a config.json",
        options.random_weights));
  }
  EXO_ASSIGN_OR_RETURN(Json json, parse_json(text, options.random_weights));
  EXO_ASSIGN_OR_RETURN(const model::HfConfig config,
                       model::parse_config(json, options.random_weights));
  if (options.layers == 0) return text;
  if (options.layers > config.num_hidden_layers)
    return invalid_argument(fmt::format("--layers {}: {} has {}", options.layers,
                                        options.random_weights, config.num_hidden_layers));
  json["num_hidden_layers"] = options.layers;
  json["num_nextn_predict_layers"] = 0;
  json["first_k_dense_replace"] = std::min(config.first_k_dense_replace, options.layers - 1);
  return json.dump();
}

/// A model of random weights, written once into a cache of its own.
Result<LoadedModel> load_random(const Context& context, const BenchCommandOptions& options,
                                const RunNeeds& needs) {
  EXO_ASSIGN_OR_RETURN(const kernels::cpu::Isa isa, kernels::cpu::parse_isa(options.model.isa));
  LoadedModel loaded;
  PlannedModel& planned = loaded.planned;
  EXO_ASSIGN_OR_RETURN(planned.config_json, random_config(options));
  EXO_ASSIGN_OR_RETURN(
      planned.plan, plan_config(planned.config_json, options.random_weights, options.model, needs));
  EXO_RETURN_IF_ERROR(check_memory(planned.plan, options.model));
  const model::Plan& plan = planned.plan;
  const std::string format = plan.format.to_string();
  constexpr uint64_t kSeed = 1;
  planned.cache_folder =
      hub::cache_folder(context.paths, {"random-" + plan.config.model_type, kSeed,
                                        planned.config_json, format, plan.placement.layer_begin,
                                        plan.placement.layer_end, weights::kCacheVersion});
  planned.location.name = fmt::format("{} of random weights, {} layers", options.random_weights,
                                      plan.config.num_hidden_layers);
  if (!hub::file_exists(planned.cache_folder + "/weights.json")) {
    const std::string name = fmt::format("random:{}", options.random_weights);
    say(fmt::format("exo: writing {} into {} (`exo models rm {}` removes it)",
                    planned.location.name, planned.cache_folder, name));
    EXO_RETURN_IF_ERROR(hub::record_source(planned.cache_folder, name, format, "random weights"));
    ThreadPool pool(plan.limits.n_threads);
    ProgressBar bar("writing", ProgressBar::Unit::bytes, context.exo.disable_tui);
    EXO_RETURN_IF_ERROR(model::write_random_cache(
        plan, planned.cache_folder, kSeed, pool,
        [&](const model::ConvertProgress& p) { bar.update(p.done_bytes, p.total_bytes); }));
  }
  const auto begin = std::chrono::steady_clock::now();
  EXO_ASSIGN_OR_RETURN(loaded.engine, engine::Engine::create({.cache_folder = planned.cache_folder,
                                                              .plan = plan,
                                                              .isa = isa,
                                                              .warm = options.model.warm}));
  loaded.load_s = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return loaded;
}

engine::BenchLimits bench_limits(const kernels::cpu::MachineLimits& machine) {
  engine::BenchLimits limits;
  limits.read_bytes = machine.read_gb_per_s * 1e9;
  limits.int8_ops = machine.int8_tops * 1e12;
  limits.f32_ops = machine.fp32_gflops * 1e9;
  // Without bf16 units its products run at the rate of fp32's.
  limits.bf16_ops = machine.amx_bf16_tflops > 0 ? machine.amx_bf16_tflops * 1e12 : limits.f32_ops;
  return limits;
}

OrderedJson to_json(const kernels::cpu::MachineLimits& m, int n_threads) {
  return {{"read_gb_per_s", m.read_gb_per_s},
          {"amx_int8_tops", m.amx_int8_tops},
          {"amx_bf16_tflops", m.amx_bf16_tflops},
          {"vnni_tops", m.vnni_tops},
          {"fp32_gflops", m.fp32_gflops},
          {"n_threads", n_threads},
          {"features", kernels::cpu::describe_features()}};
}

OrderedJson to_json(const engine::BenchLine& line, const model::Plan& plan) {
  OrderedJson json = {{"test", line.test},
                      {"format", plan.format.to_string()},
                      {"threads", plan.limits.n_threads},
                      {"n_tokens", line.n_tokens},
                      {"depth", line.depth},
                      {"batch", line.batch},
                      {"tokens_per_s", line.tokens_per_s},
                      {"slowest_tokens_per_s", line.slowest_tokens_per_s},
                      {"fastest_tokens_per_s", line.fastest_tokens_per_s},
                      {"bytes_per_token", line.bytes_per_token},
                      {"ops_per_token", line.ops_per_token},
                      {"limit_tokens_per_s", line.limit_tokens_per_s},
                      {"share_of_limit", line.share_of_limit}};
  OrderedJson profile = OrderedJson::object();
  for (size_t i = 0; i < ops::kOpCount; ++i)
    if (const auto& entry = line.profile.by_op[i]; entry.n_calls > 0)
      profile[std::string(to_string(static_cast<ops::Op>(i)))] = {
          {"calls", entry.n_calls}, {"seconds", static_cast<double>(entry.time.count()) * 1e-9}};
  if (!profile.empty()) json["profile"] = profile;
  return json;
}

std::string profile_text(const ops::Profile& profile) {
  double total = 0;
  for (const auto& entry : profile.by_op) total += static_cast<double>(entry.time.count());
  std::string text;
  for (size_t i = 0; i < ops::kOpCount; ++i)
    if (const auto& entry = profile.by_op[i]; entry.n_calls > 0)
      text += fmt::format("      {:<16}{:>9} calls  {:>8}  {:5.1f}%\n",
                          to_string(static_cast<ops::Op>(i)), entry.n_calls,
                          format_duration(static_cast<double>(entry.time.count()) * 1e-9),
                          100 * static_cast<double>(entry.time.count()) / total);
  return text;
}

std::string line_text(const engine::BenchLine& line) {
  const std::string what = line.test == "prefill"
                               ? fmt::format("prefill {} tokens", line.n_tokens)
                               : fmt::format("decode after {}, batch {}", line.depth, line.batch);
  return fmt::format("  {:<28}{:>10.2f} tok/s ({:.2f} to {:.2f})  limit {:.2f}: {:.0f}%\n", what,
                     line.tokens_per_s, line.slowest_tokens_per_s, line.fastest_tokens_per_s,
                     line.limit_tokens_per_s, 100 * line.share_of_limit) +
         profile_text(line.profile);
}

std::string machine_text(const kernels::cpu::MachineLimits& m, int n_threads) {
  return fmt::format(
      "machine: {} threads, reads {:.1f} GB/s, int8 {:.2f} TOPS, bf16 {:.2f} TFLOPS (AMX), fp32 "
      "{:.0f} GFLOPS\n  {}\n",
      n_threads, m.read_gb_per_s, m.int8_tops, m.amx_bf16_tflops, m.fp32_gflops,
      kernels::cpu::describe_features());
}

template <typename T>
T largest(const std::vector<T>& values) {
  return *std::max_element(values.begin(), values.end());
}

Status check_sizes(std::string_view flag, const std::vector<int64_t>& values, int64_t least) {
  for (int64_t value : values)
    if (value < least || value > (1 << 20))
      return invalid_argument(fmt::format("{} {}: expected {} to {}", flag, value, least, 1 << 20));
  return ok_status();
}

}  // namespace

Status bench_command(const Context& context, const BenchCommandOptions& options) {
  EXO_RETURN_IF_ERROR(check_inference_engine(context));
  engine::BenchOptions bench;
  if (!options.prefill_tokens.empty()) bench.prefill_tokens = options.prefill_tokens;
  if (!options.depths.empty()) bench.depths = options.depths;
  if (!options.batches.empty()) bench.batches = options.batches;
  bench.n_decode_steps = options.decode_steps;
  bench.profile = options.profile;
  EXO_RETURN_IF_ERROR(check_sizes("--prefill", bench.prefill_tokens, 1));
  EXO_RETURN_IF_ERROR(check_sizes("--depth", bench.depths, 0));
  EXO_RETURN_IF_ERROR(check_sizes("--batch", bench.batches, 1));
  RunNeeds needs;
  constexpr int64_t kWarmUpTokens = 8;
  needs.context_tokens = std::max(largest(bench.prefill_tokens),
                                  largest(bench.depths) + bench.n_decode_steps + kWarmUpTokens);
  needs.max_sequences = largest(bench.batches);
  EXO_ASSIGN_OR_RETURN(const LoadedModel loaded, options.random_weights.empty()
                                                     ? load_model(context, options.model, needs)
                                                     : load_random(context, options, needs));
  const model::Plan& plan = loaded.engine->plan();
  EXO_ASSIGN_OR_RETURN(const kernels::cpu::Isa isa, kernels::cpu::parse_isa(options.model.isa));
  kernels::cpu::MachineLimits machine;
  {
    ThreadPool pool(plan.limits.n_threads);
    EXO_ASSIGN_OR_RETURN(machine, kernels::cpu::measure_limits(pool, isa));
  }
  OrderedJson json = {{"machine", to_json(machine, plan.limits.n_threads)},
                      {"model", loaded.planned.location.name},
                      {"load_s", loaded.load_s},
                      {"results", OrderedJson::array()}};
  if (!options.json)
    EXO_RETURN_IF_ERROR(
        write_out(machine_text(machine, plan.limits.n_threads) +
                  fmt::format("{} as {}, loaded in {}\n", loaded.planned.location.name,
                              plan.format.to_string(), format_duration(loaded.load_s))));
  Status written;
  EXO_RETURN_IF_ERROR(
      run_bench(*loaded.engine, bench_limits(machine), bench, [&](const engine::BenchLine& line) {
        json["results"].push_back(to_json(line, plan));
        if (!options.json && written.ok()) written = write_out(line_text(line));
      }));
  if (!options.json) return written;
  return write_out(json.dump(1) + "\n");
}

}  // namespace exo::cli
