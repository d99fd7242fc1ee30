#include "cli/model_setup.h"

#include <fmt/core.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <optional>
#include <set>

#include "base/json.h"
#include "base/log.h"
#include "base/os.h"
#include "cli/console.h"
#include "model/convert.h"
#include "weights/checkpoint.h"
#include "weights/weight_config.h"

namespace exo::cli {
namespace {

constexpr uint64_t kMaxConfigBytes = 16 << 20;
constexpr int64_t kDefaultChunk = 2048;

std::string join(const std::string& folder, std::string_view name) {
  return fmt::format("{}/{}", folder, name);
}

bool names_source(const hub::CacheInfo& cache, const std::string& folder) {
  return std::find(cache.sources.begin(), cache.sources.end(), folder) != cache.sources.end();
}

/// The whole cache that was made from a folder whose checkpoint is gone. With several formats:
/// `format` decides (canonical), empty takes the only one. Of one format it is the one that was
/// used last: the others are of weights or of a config.json that the folder had before.
Result<hub::CacheInfo> cache_of_gone_checkpoint(const Context& context, const std::string& folder,
                                                const std::string& format) {
  std::vector<hub::CacheInfo> found;
  for (hub::CacheInfo& cache : hub::list_caches(context.paths))
    if (cache.complete && names_source(cache, folder) && (format.empty() || cache.format == format))
      found.push_back(std::move(cache));
  if (found.empty())
    return not_found(fmt::format(
        "{}: no checkpoint (model.safetensors or model.safetensors.index.json) there{}, and no "
        "weight cache{} in {} was made from it",
        folder, hub::folder_exists(folder) ? "" : " (no such folder)",
        format.empty() ? "" : fmt::format(" of format {}", format), context.paths.cache));
  std::set<std::string> formats;
  for (const hub::CacheInfo& cache : found) formats.insert(cache.format);
  if (formats.size() > 1)
    return invalid_argument(
        fmt::format("{}: its checkpoint is gone and there are caches of several "
                    "formats: choose one with --format ({})",
                    folder, fmt::join(formats, ", ")));
  return *std::max_element(found.begin(), found.end(),
                           [](const auto& a, const auto& b) { return a.last_used < b.last_used; });
}

/// Fills config_json, files_folder and, where a cache is all there is, cache_folder.
Status find_config(const Context& context, const std::string& format, PlannedModel& planned) {
  const hub::ModelLocation& at = planned.location;
  if (at.folder.empty()) {  // a registry entry with nothing on disk
    EXO_ASSIGN_OR_RETURN(const std::string_view json, hub::config_of(*at.entry));
    planned.config_json = json;
    return ok_status();
  }
  planned.files_folder = at.folder;
  if (at.is_cache) planned.cache_folder = at.folder;
  if (!hub::file_exists(join(at.folder, "config.json"))) {
    EXO_ASSIGN_OR_RETURN(const hub::CacheInfo cache,
                         cache_of_gone_checkpoint(context, at.folder, format));
    planned.cache_folder = planned.files_folder = cache.folder;
  }
  EXO_ASSIGN_OR_RETURN(planned.config_json,
                       read_file(join(planned.files_folder, "config.json"), kMaxConfigBytes));
  return ok_status();
}

std::string config_name(const PlannedModel& planned) {
  return planned.files_folder.empty() ? fmt::format("{} (registry)", planned.location.entry->id)
                                      : join(planned.files_folder, "config.json");
}

/// --format, else the format of the cache that MODEL is, else the checkpoint's own.
std::string format_asked(const PlannedModel& planned, const ModelOptions& options) {
  if (!options.format.empty() || planned.cache_folder.empty()) return options.format;
  auto manifest = read_json_file(join(planned.cache_folder, "weights.json"));
  if (!manifest.ok()) return "";
  auto format = JsonObject(*manifest, "weights.json").string_or("format", "");
  return format.ok() ? *format : "";
}

Result<model::Limits> make_limits(const model::HfConfig& config, const ModelOptions& options,
                                  const RunNeeds& needs) {
  model::Limits limits;
  const int64_t longest =
      config.max_position_embeddings > 0 ? config.max_position_embeddings : kDefaultContextTokens;
  const int64_t wanted = options.context > 0 ? options.context : needs.context_tokens;
  if (wanted > longest)
    return invalid_argument(
        fmt::format("a context of {} tokens is asked for, and this model's positions end at {} "
                    "(max_position_embeddings)",
                    wanted, longest));
  limits.max_context_tokens = wanted > 0 ? wanted : std::min(longest, kDefaultContextTokens);
  const int64_t chunk = options.chunk.value_or(kDefaultChunk);
  limits.max_batch_tokens = std::min(
      limits.max_context_tokens,
      chunk > 0 ? chunk
                : (needs.one_shot_rows > 0 ? needs.one_shot_rows : limits.max_context_tokens));
  limits.max_sequences = needs.max_sequences;
  limits.max_batch_tokens = std::max(limits.max_batch_tokens, needs.max_sequences);
  limits.max_logit_rows =
      std::max(needs.max_sequences, std::min(needs.max_logit_rows, limits.max_batch_tokens));
  limits.n_threads = options.threads > 0 ? options.threads : usable_cpus();
  limits.fp32_compute = options.fp32_compute.value_or(false);
  EXO_ASSIGN_OR_RETURN(limits.cache, model::parse_kv_cache(options.kv_cache));
  return limits;
}

Status plan_refused(const std::string& path, std::string_view what, const auto& planned,
                    std::string_view whose, const auto& wanted) {
  return failed_precondition(
      fmt::format("{}: its {} is {}, {} {}; make the plan with the matching "
                  "flags of `exo plan`",
                  path, what, planned, whose, wanted));
}

/// A given plan must be able to do what the command needs.
Status check_plan_serves(const model::Limits& limits, const ModelOptions& options,
                         const RunNeeds& needs) {
  const auto at_least = [&](std::string_view what, int64_t planned, int64_t needed) {
    return planned >= needed
               ? ok_status()
               : plan_refused(options.plan_file, what, planned, "this command needs", needed);
  };
  EXO_RETURN_IF_ERROR(
      at_least("max_context_tokens", limits.max_context_tokens, needs.context_tokens));
  EXO_RETURN_IF_ERROR(at_least("max_sequences", limits.max_sequences, needs.max_sequences));
  return at_least("max_batch_tokens", limits.max_batch_tokens,
                  options.chunk == 0 ? needs.one_shot_rows : 0);
}

/// A flag beside --plan may only say what the plan says: nothing is overridden in silence.
Status check_flags_agree(const model::Plan& plan, const ModelOptions& options) {
  const model::Limits& limits = plan.limits;
  const auto agree = [&](std::string_view flag, const auto& planned, const auto& asked) {
    return planned == asked
               ? ok_status()
               : plan_refused(options.plan_file, flag, planned, "the command line says", asked);
  };
  if (!options.format.empty()) {
    EXO_ASSIGN_OR_RETURN(const model::FormatChoice format,
                         model::parse_format(options.format, plan.config));
    EXO_RETURN_IF_ERROR(agree("format", plan.format.to_string(), format.to_string()));
  }
  if (options.context > 0)
    EXO_RETURN_IF_ERROR(agree("max_context_tokens", limits.max_context_tokens, options.context));
  if (options.threads > 0)
    EXO_RETURN_IF_ERROR(agree("n_threads", limits.n_threads, options.threads));
  if (options.chunk.value_or(0) > 0)
    EXO_RETURN_IF_ERROR(
        agree("max_batch_tokens", limits.max_batch_tokens,
              std::max(limits.max_sequences, std::min(*options.chunk, limits.max_context_tokens))));
  if (options.fp32_compute)
    EXO_RETURN_IF_ERROR(agree("fp32_compute", limits.fp32_compute, *options.fp32_compute));
  if (!options.kv_cache.empty())
    EXO_RETURN_IF_ERROR(
        agree("kv_cache", std::string(model::kv_cache_name(*limits.cache)), options.kv_cache));
  return ok_status();
}

/// The plan of a file, which must be of this model and of what is asked.
Result<model::Plan> check_given_plan(model::Plan plan, const PlannedModel& planned,
                                     const ModelOptions& options, const RunNeeds& needs) {
  const std::string where = config_name(planned);
  EXO_ASSIGN_OR_RETURN(const Json json, parse_json(planned.config_json, where));
  EXO_ASSIGN_OR_RETURN(const model::HfConfig config, model::parse_config(json, where));
  if (model::config_to_json(config) != model::config_to_json(plan.config))
    return failed_precondition(fmt::format(
        "{}: this plan is of another model's config.json than {}", options.plan_file, where));
  EXO_RETURN_IF_ERROR(check_flags_agree(plan, options));
  EXO_RETURN_IF_ERROR(check_plan_serves(plan.limits, options, needs));
  return plan;
}

/// Why a conversion is needed, for people.
std::string conversion_reason(const Context& context, const std::string& folder,
                              const std::string& format, const std::string& cache) {
  if (hub::file_exists(join(cache, "source.json")))
    return "its weight cache is not whole: going on with it";
  for (const hub::CacheInfo& other : hub::list_caches(context.paths))
    if (other.complete && other.format == format && names_source(other, folder))
      return fmt::format(
          "its weight cache is stale (the checkpoint has changed; the old one is {})",
          other.folder);
  return fmt::format("there is no weight cache of format {} for it yet", format);
}

}  // namespace

Status check_inference_engine(const Context& context) {
  if (context.exo.inference_engine == "mlx") {
#if defined(__APPLE__) && defined(__aarch64__)
    return unimplemented(
        "--inference-engine mlx: this build has no MLX; use --inference-engine tinygrad, the "
        "native "
        "engine");
#else
    return unimplemented(
        "--inference-engine mlx: MLX runs on Apple silicon, and this machine is none; use "
        "--inference-engine tinygrad, the native engine (the default)");
#endif
  }
  if (context.exo.inference_engine == "dummy")
    return invalid_argument(
        "--inference-engine dummy: it has no weights and no numbers, so that only `exo run` can "
        "use it; leave it out for this command");
  const std::string& cuda = context.environment.cuda;
  if (!cuda.empty() && cuda != "0")
    return unavailable(fmt::format(
        "CUDA={}: this build of exo has no CUDA kernels (it runs on the processor alone); unset "
        "CUDA, or set CLANG=1 instead, to run on the processor",
        cuda));
  return ok_status();
}

Result<model::Plan> plan_config(const std::string& config_json, const std::string& where,
                                const ModelOptions& options, const RunNeeds& needs) {
  EXO_ASSIGN_OR_RETURN(const Json json, parse_json(config_json, where));
  EXO_ASSIGN_OR_RETURN(const model::HfConfig config, model::parse_config(json, where));
  EXO_ASSIGN_OR_RETURN(const model::FormatChoice format,
                       model::parse_format(options.format, config));
  EXO_ASSIGN_OR_RETURN(const model::Limits limits, make_limits(config, options, needs));
  return model::make_plan(config, format, model::whole_model(config), limits);
}

Result<PlannedModel> plan_model(const Context& context, const ModelOptions& options,
                                const RunNeeds& needs) {
  PlannedModel planned;
  EXO_ASSIGN_OR_RETURN(planned.location, hub::locate(context.paths, options.model));
  if (!options.plan_file.empty()) {
    EXO_ASSIGN_OR_RETURN(const Json json, read_json_file(options.plan_file));
    EXO_ASSIGN_OR_RETURN(model::Plan given, model::plan_from_json(json, options.plan_file));
    EXO_RETURN_IF_ERROR(find_config(context, given.format.to_string(), planned));
    EXO_ASSIGN_OR_RETURN(planned.plan, check_given_plan(std::move(given), planned, options, needs));
    return planned;
  }
  EXO_RETURN_IF_ERROR(find_config(context, options.format, planned));
  ModelOptions with_format = options;
  with_format.format = format_asked(planned, options);
  EXO_ASSIGN_OR_RETURN(planned.plan,
                       plan_config(planned.config_json, config_name(planned), with_format, needs));
  return planned;
}

Result<std::string> ensure_cache(const Context& context, const PlannedModel& planned, bool force) {
  if (!planned.cache_folder.empty()) return planned.cache_folder;
  const hub::ModelLocation& at = planned.location;
  const std::string format = planned.plan.format.to_string();
  if (at.folder.empty())
    return not_found(fmt::format(
        "{}: known, but not on this machine; download {} with Hugging Face's own tools (`hf "
        "download {}`), or give the checkpoint's folder",
        at.name, at.entry->hf_repo, at.entry->hf_repo));
  if (!hub::has_checkpoint(at.folder)) {
    EXO_ASSIGN_OR_RETURN(const hub::CacheInfo cache,
                         cache_of_gone_checkpoint(context, at.folder, format));
    return cache.folder;
  }
  EXO_ASSIGN_OR_RETURN(const weights::Checkpoint checkpoint, weights::Checkpoint::open(at.folder));
  const model::Placement& placement = planned.plan.placement;
  const std::string folder = hub::cache_folder(
      context.paths, {planned.plan.config.model_type, checkpoint.header_hash(), planned.config_json,
                      format, placement.layer_begin, placement.layer_end, weights::kCacheVersion});
  const bool whole = hub::file_exists(join(folder, "weights.json"));
  if (whole && !force) {
    EXO_RETURN_IF_ERROR(hub::record_source(folder, at.name, format, at.folder));
    return folder;
  }
  if (force) {
    std::error_code ignored;
    std::filesystem::remove_all(folder, ignored);
    say(fmt::format("exo: converting {} to {} again, into {}", at.name, format, folder));
  } else {
    say(fmt::format("exo: converting {} to {}: {}; into {}", at.name, format,
                    conversion_reason(context, at.folder, format, folder), folder));
  }
  ThreadPool pool(planned.plan.limits.n_threads);
  ProgressBar bar("converting", ProgressBar::Unit::bytes, context.exo.disable_tui);
  // Recorded when the work begins, that is once checkpoint and disk were found good: what is
  // refused leaves no cache to be listed.
  std::optional<Status> recorded;
  EXO_RETURN_IF_ERROR(model::convert_weights(
      planned.plan, checkpoint, folder, pool, [&](const model::ConvertProgress& p) {
        if (!recorded) recorded = hub::record_source(folder, at.name, format, at.folder);
        bar.update(p.done_bytes, p.total_bytes);
      }));
  EXO_RETURN_IF_ERROR(recorded.value_or(ok_status()));
  bar.finish();
  return folder;
}

Status check_memory(const model::Plan& plan, const ModelOptions& options) {
  const auto needed = static_cast<uint64_t>(plan.total_bytes());
  const uint64_t available = available_memory_bytes();
  if (needed <= available || options.overcommit) return ok_status();
  std::string fitting;
  for (const char* text : {"bf16", "fp8", "int8", "int4"}) {
    auto format = model::parse_format(text, plan.config);
    if (!format.ok()) continue;
    auto other = model::make_plan(plan.config, *format, plan.placement, plan.limits);
    if (!other.ok() || static_cast<uint64_t>(other->total_bytes()) > available) continue;
    fitting += fmt::format("{}--format {} ({})", fitting.empty() ? "" : ", ", text,
                           format_bytes(static_cast<uint64_t>(other->total_bytes())));
  }
  const uint64_t machine = std::max<uint64_t>(total_memory_bytes(), 1);
  return resource_exhausted(fmt::format(
      "not enough memory: this run needs about {} (weights {}, cache of {} tokens {}, scratch {}) "
      "and {} of {} are free. {}; or share it: --wait-for-peers {} machines like this one; or a "
      "shorter --context; or --overcommit to read weights from the disk as they are needed (slow)",
      format_bytes(needed), format_bytes(static_cast<uint64_t>(plan.weight_bytes)),
      plan.limits.max_context_tokens, format_bytes(static_cast<uint64_t>(plan.kv_bytes)),
      format_bytes(static_cast<uint64_t>(plan.scratch_bytes + plan.state_bytes)),
      format_bytes(available), format_bytes(total_memory_bytes()),
      fitting.empty() ? "No format of it would fit" : fmt::format("These would fit: {}", fitting),
      std::max<uint64_t>(2, (needed + machine - 1) / machine)));
}

Result<std::unique_ptr<engine::Engine>> start_engine(const PlannedModel& planned,
                                                     const ModelOptions& options,
                                                     kernels::cpu::Isa isa, ops::Capture* capture) {
  engine::EngineOptions engine_options;
  engine_options.cache_folder = planned.cache_folder;
  engine_options.plan = planned.plan;
  engine_options.isa = isa;
  engine_options.capture = capture;
  engine_options.warm = options.warm;
  const auto needed = static_cast<uint64_t>(planned.plan.total_bytes());
  const uint64_t available = available_memory_bytes();
  if (needed > available) {
    engine_options.stream_experts = true;
    say(
        fmt::format("exo: this run needs {} and {} are free: weights stay on the disk as far as "
                    "they don't fit; "
                    "a layer's chosen experts are read together, others not",
                    format_bytes(needed), format_bytes(available)));
  }
  return engine::Engine::create(std::move(engine_options));
}

Result<LoadedModel> load_model(const Context& context, const ModelOptions& options,
                               const RunNeeds& needs) {
  EXO_RETURN_IF_ERROR(check_inference_engine(context));
  EXO_ASSIGN_OR_RETURN(const kernels::cpu::Isa isa, kernels::cpu::parse_isa(options.isa));
  LoadedModel loaded;
  EXO_ASSIGN_OR_RETURN(loaded.planned, plan_model(context, options, needs));
  EXO_RETURN_IF_ERROR(check_memory(loaded.planned.plan, options));
  EXO_ASSIGN_OR_RETURN(loaded.planned.cache_folder, ensure_cache(context, loaded.planned, false));
  const auto begin = std::chrono::steady_clock::now();
  EXO_ASSIGN_OR_RETURN(loaded.engine, start_engine(loaded.planned, options, isa, needs.capture));
  loaded.load_s = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  log_info("loaded {} from {} in {}", loaded.planned.location.name, loaded.planned.cache_folder,
           format_duration(loaded.load_s));
  return loaded;
}

}  // namespace exo::cli
