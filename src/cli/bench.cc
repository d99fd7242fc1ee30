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

/// The config of --random-weights, cut to --layers (one of experts at least, no MTP). Asked for
/// fp8, a model that has none gets DeepSeek-V3's blocks of 128 x 128.
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
  const bool fp8 = options.model.format.find("fp8") != std::string::npos;
  if (fp8 && !json.contains("quantization_config"))
    json["quantization_config"] = {
        {"quant_method", "fp8"}, {"fmt", "e4m3"}, {"weight_block_size", {128, 128}}};
  if (options.layers == 0 && !options.dense) return fp8 ? json.dump() : text;
  const int64_t n_layers = options.layers > 0 ? options.layers : config.num_hidden_layers;
  if (n_layers > config.num_hidden_layers)
    return invalid_argument(fmt::format("--layers {}: {} has {}", n_layers, options.random_weights,
                                        config.num_hidden_layers));
  const int64_t n_dense =
      options.dense.value_or(std::min(config.first_k_dense_replace, n_layers - 1));
  if (n_dense > n_layers)
    return invalid_argument(fmt::format("--dense {}: there are {} layers", n_dense, n_layers));
  json["num_hidden_layers"] = n_layers;
  json["num_nextn_predict_layers"] = 0;
  json["first_k_dense_replace"] = n_dense;
  return json.dump();
}

/// A model of random weights, planned, and written once into a cache of its own.
Result<PlannedModel> prepare_random(const Context& context, const BenchCommandOptions& options,
                                    const RunNeeds& needs) {
  PlannedModel planned;
  EXO_ASSIGN_OR_RETURN(planned.config_json, random_config(options));
  EXO_ASSIGN_OR_RETURN(
      planned.plan, plan_config(planned.config_json, options.random_weights, options.model, needs));
  EXO_RETURN_IF_ERROR(check_memory(planned.plan, options.model));
  const model::Plan& plan = planned.plan;
  const std::string format = plan.format.to_string();
  constexpr uint64_t kSeed = 2;  // another for every change of what is written
  planned.cache_folder =
      hub::cache_folder(context.paths, {"random-" + plan.config.model_type, kSeed,
                                        planned.config_json, format, plan.placement.layer_begin,
                                        plan.placement.layer_end, weights::kCacheVersion});
  planned.location.name = fmt::format("{} of random weights, {} layers", options.random_weights,
                                      plan.config.num_hidden_layers);
  if (hub::file_exists(planned.cache_folder + "/weights.json")) return planned;
  const std::string name = fmt::format("random:{}", options.random_weights);
  say(fmt::format("exo: writing {} into {} (`exo models rm {}` removes it)", planned.location.name,
                  planned.cache_folder, name));
  EXO_RETURN_IF_ERROR(hub::record_source(planned.cache_folder, name, format, "random weights"));
  ThreadPool pool(plan.limits.n_threads);
  ProgressBar bar("writing", ProgressBar::Unit::bytes, context.exo.disable_tui);
  EXO_RETURN_IF_ERROR(model::write_random_cache(
      plan, planned.cache_folder, kSeed, pool,
      [&](const model::ConvertProgress& p) { bar.update(p.done_bytes, p.total_bytes); }));
  return planned;
}

Result<PlannedModel> prepare(const Context& context, const BenchCommandOptions& options,
                             const RunNeeds& needs) {
  if (!options.random_weights.empty()) return prepare_random(context, options, needs);
  EXO_ASSIGN_OR_RETURN(PlannedModel planned, plan_model(context, options.model, needs));
  EXO_RETURN_IF_ERROR(check_memory(planned.plan, options.model));
  EXO_ASSIGN_OR_RETURN(planned.cache_folder, ensure_cache(context, planned, false));
  return planned;
}

/// A start, timed: until the engine takes work, and until it has done the first of it.
struct Start {
  std::unique_ptr<engine::Engine> engine;
  double load_s = 0;
  double first_prefill_s = 0;  ///< from the beginning of the load to the end of 16 tokens
};

Result<Start> start(const PlannedModel& planned, const ModelOptions& options) {
  Start s;
  EXO_ASSIGN_OR_RETURN(const kernels::cpu::Isa isa, kernels::cpu::parse_isa(options.isa));
  const auto begin = std::chrono::steady_clock::now();
  const auto seconds = [&] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  };
  EXO_ASSIGN_OR_RETURN(s.engine, start_engine(planned, options, isa));
  s.load_s = seconds();
  const std::vector<int32_t> tokens(
      static_cast<size_t>(std::min<int64_t>(16, planned.plan.limits.max_context_tokens)), 1);
  const int32_t last = static_cast<int32_t>(tokens.size()) - 1;
  EXO_ASSIGN_OR_RETURN(const engine::SequenceId id, s.engine->add_sequence());
  EXO_RETURN_IF_ERROR(s.engine->prefill(id, tokens, {&last, 1},
                                        [](auto, const TensorView&) { return ok_status(); }));
  s.first_prefill_s = seconds();
  s.engine->remove_sequence(id);
  return s;
}

/// The same with nothing of the cache in memory.
Result<Start> start_cold(const PlannedModel& planned, const ModelOptions& options) {
  {
    EXO_ASSIGN_OR_RETURN(const auto cache, weights::WeightCache::open(planned.cache_folder));
    cache.evict();
  }
  return start(planned, options);
}

OrderedJson to_json(const Start& s) {
  return {{"load_s", s.load_s}, {"first_prefill_s", s.first_prefill_s}};
}

engine::BenchLimits bench_limits(const kernels::cpu::MachineLimits& machine) {
  engine::BenchLimits limits;
  limits.read_bytes = machine.read_gb_per_s * 1e9;
  limits.int8_ops = machine.int8_tops * 1e12;
  limits.int4_ops = machine.int4_tops * 1e12;
  limits.f32_ops = machine.fp32_gflops * 1e9;
  limits.bf16_ops = machine.bf16_tflops * 1e12;
  return limits;
}

OrderedJson to_json(const kernels::cpu::MachineLimits& m, int n_threads) {
  return {{"read_gb_per_s", m.read_gb_per_s},
          {"amx_int8_tops", m.amx_int8_tops},
          {"amx_bf16_tflops", m.amx_bf16_tflops},
          {"vnni_tops", m.vnni_tops},
          {"int8_tops", m.int8_tops},
          {"int4_tops", m.int4_tops},
          {"bf16_tflops", m.bf16_tflops},
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
                      {"read_gb_per_s", line.limits.read_bytes * 1e-9},
                      {"int8_tops", line.limits.int8_ops * 1e-12},
                      {"int4_tops", line.limits.int4_ops * 1e-12},
                      {"bf16_tflops", line.limits.bf16_ops * 1e-12},
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
  return fmt::format(
             "  {:<28}{:>10.2f} tok/s ({:.2f} to {:.2f})  limit {:.2f} at {:.1f} GB/s: {:.0f}%\n",
             what, line.tokens_per_s, line.slowest_tokens_per_s, line.fastest_tokens_per_s,
             line.limit_tokens_per_s, line.limits.read_bytes * 1e-9, 100 * line.share_of_limit) +
         profile_text(line.profile);
}

std::string machine_text(const kernels::cpu::MachineLimits& m, int n_threads) {
  return fmt::format(
      "machine: {} thread{}, reads {:.1f} GB/s, int8 {:.2f} TOPS, int4 {:.2f} TOPS, bf16 {:.2f} "
      "TFLOPS, fp32 {:.0f} GFLOPS (VNNI {:.2f}, AMX {:.2f} TOPS)\n",
      n_threads, n_threads == 1 ? "" : "s", m.read_gb_per_s, m.int8_tops, m.int4_tops,
      m.bf16_tflops, m.fp32_gflops, m.vnni_tops, m.amx_int8_tops);
}

Result<kernels::cpu::MachineLimits> limits_of(int n_threads, const ModelOptions& options,
                                              Buffer& memory) {
  EXO_ASSIGN_OR_RETURN(const kernels::cpu::Isa isa, kernels::cpu::parse_isa(options.isa));
  ThreadPool pool(n_threads);
  return kernels::cpu::measure_limits(pool, isa, memory);
}

/// The thread counts asked for, or all processors.
std::vector<int> thread_counts(const BenchCommandOptions& options) {
  std::vector<int> counts;
  for (int64_t n : options.threads) counts.push_back(static_cast<int>(n));
  if (counts.empty()) counts.push_back(usable_cpus());
  return counts;
}

/// `--roofline`: 1, 2, 4, ... threads and all, or those asked for.
Status roofline(const BenchCommandOptions& options) {
  std::vector<int> counts = thread_counts(options);
  if (options.threads.empty()) {
    counts.clear();
    for (int n = 1; n < usable_cpus(); n *= 2) counts.push_back(n);
    counts.push_back(usable_cpus());
  }
  OrderedJson json = {{"machine", nullptr}, {"by_threads", OrderedJson::array()}};
  Buffer memory;
  for (int n : counts) {
    EXO_ASSIGN_OR_RETURN(const kernels::cpu::MachineLimits machine,
                         limits_of(n, options.model, memory));
    json["by_threads"].push_back(to_json(machine, n));
    if (!options.json) EXO_RETURN_IF_ERROR(write_out(machine_text(machine, n)));
  }
  json["machine"] = json["by_threads"].back();
  if (options.json) return write_out(json.dump(1) + "\n");
  return write_out(fmt::format("  {}\n", kernels::cpu::describe_features()));
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

namespace {

/// Everything with one number of threads, added to `json`.
Status bench_threads(PlannedModel& planned, const BenchCommandOptions& options,
                     const engine::BenchOptions& bench, int n_threads, OrderedJson& json) {
  planned.plan.limits.n_threads = n_threads;
  EXO_ASSIGN_OR_RETURN(planned.plan, model::make_plan(planned.plan.config, planned.plan.format,
                                                      planned.plan.placement, planned.plan.limits));
  const model::Plan& plan = planned.plan;
  Buffer memory;
  EXO_ASSIGN_OR_RETURN(const kernels::cpu::MachineLimits machine,
                       limits_of(n_threads, options.model, memory));
  json["machine"] = to_json(machine, n_threads);
  json["model"] = planned.location.name;
  std::string text = machine_text(machine, n_threads);
  if (options.cold) {
    EXO_ASSIGN_OR_RETURN(const Start cold, start_cold(planned, options.model));
    json["cold"] = to_json(cold);
    text += fmt::format("cold start: loaded in {}, first prefill after {}\n",
                        format_duration(cold.load_s), format_duration(cold.first_prefill_s));
    // What the first prefill didn't touch: the warm start below is to be warm.
    EXO_ASSIGN_OR_RETURN(const auto cache, weights::WeightCache::open(planned.cache_folder));
    ThreadPool pool(n_threads);
    cache.read_all(pool);
  }
  EXO_ASSIGN_OR_RETURN(const Start warm, start(planned, options.model));
  json["load_s"] = warm.load_s;
  json["warm"] = to_json(warm);
  text += fmt::format("{} as {}, cache as {}: loaded in {}, first prefill after {}\n",
                      planned.location.name, plan.format.to_string(),
                      model::kv_cache_name(*plan.limits.cache), format_duration(warm.load_s),
                      format_duration(warm.first_prefill_s));
  Status written;
  if (!options.json) written = write_out(text);
  const auto measure_limits = [&]() -> Result<engine::BenchLimits> {
    EXO_ASSIGN_OR_RETURN(const kernels::cpu::MachineLimits now,
                         limits_of(n_threads, options.model, memory));
    return bench_limits(now);
  };
  EXO_RETURN_IF_ERROR(
      run_bench(*warm.engine, measure_limits, bench, [&](const engine::BenchLine& line) {
        json["results"].push_back(to_json(line, plan));
        if (!options.json && written.ok()) written = write_out(line_text(line));
      }));
  return written;
}

}  // namespace

Status bench_command(const Context& context, const BenchCommandOptions& options) {
  EXO_RETURN_IF_ERROR(check_inference_engine(context));
  if (options.roofline) return roofline(options);
  engine::BenchOptions bench;
  if (!options.prefill_tokens.empty()) bench.prefill_tokens = options.prefill_tokens;
  if (!options.depths.empty()) bench.depths = options.depths;
  if (!options.batches.empty()) bench.batches = options.batches;
  bench.n_decode_steps = options.decode_steps;
  bench.n_repeats = options.repeats;
  bench.profile = options.profile;
  EXO_RETURN_IF_ERROR(check_sizes("--prefill", bench.prefill_tokens, 1));
  EXO_RETURN_IF_ERROR(check_sizes("--depth", bench.depths, 0));
  EXO_RETURN_IF_ERROR(check_sizes("--batch", bench.batches, 1));
  RunNeeds needs;
  constexpr int64_t kWarmUpTokens = 8;
  needs.context_tokens = std::max(largest(bench.prefill_tokens),
                                  largest(bench.depths) + bench.n_decode_steps + kWarmUpTokens);
  needs.max_sequences = largest(bench.batches);
  if (!options.model.plan_file.empty() && options.threads.size() > 1)
    return invalid_argument("--threads with several numbers doesn't go with --plan, which has one");
  BenchCommandOptions of_plan = options;
  if (options.threads.size() == 1) of_plan.model.threads = static_cast<int>(options.threads[0]);
  EXO_ASSIGN_OR_RETURN(PlannedModel planned, prepare(context, of_plan, needs));
  const std::vector<int> counts = options.model.plan_file.empty()
                                      ? thread_counts(options)
                                      : std::vector<int>{planned.plan.limits.n_threads};
  OrderedJson json = {{"machine", nullptr}, {"model", nullptr}, {"load_s", nullptr}};
  json["results"] = OrderedJson::array();
  for (int n_threads : counts)
    EXO_RETURN_IF_ERROR(bench_threads(planned, options, bench, n_threads, json));
  if (options.json) return write_out(json.dump(1) + "\n");
  return write_out(fmt::format("  {}\n", kernels::cpu::describe_features()));
}

}  // namespace exo::cli
