#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <iostream>
#include <optional>

#include "base/json.h"
#include "base/os.h"
#include "cli/commands.h"
#include "cli/console.h"
#include "cli/model_setup.h"

namespace exo::cli {
namespace {

constexpr int64_t kListedContextTokens = 4096;

/// What a model needs in one format, and how many machines hold it.
struct Fit {
  std::string format;
  uint64_t n_bytes = 0;
  uint64_t n_machines = 0;
  bool fits_here = false;
};

/// Memory of the machines that are counted: --memory, else this one's.
uint64_t counted_machine_bytes(const ModelsOptions& options) {
  if (options.memory_gb > 0)
    return std::max<uint64_t>(static_cast<uint64_t>(options.memory_gb * 1e9), 1);
  return std::max<uint64_t>(total_memory_bytes(), 1);
}

struct Known {
  const hub::RegistryEntry* entry = nullptr;
  std::optional<model::HfConfig> config;
  std::vector<Fit> fits;
  std::string folder;  ///< of the checkpoint on this machine
  std::vector<hub::CacheInfo> caches;
};

std::vector<Fit> fits_of(const model::HfConfig& config, uint64_t machine_bytes) {
  std::vector<Fit> fits;
  model::Limits limits;
  limits.max_context_tokens = std::min(kListedContextTokens, config.max_position_embeddings);
  limits.n_threads = usable_cpus();
  for (const char* text : {"bf16", "fp8", "int8", "int4"}) {
    auto format = model::parse_format(text, config);
    if (!format.ok()) continue;  // fp8 of a checkpoint that has none
    auto plan = model::make_plan(config, *format, model::whole_model(config), limits);
    if (!plan.ok()) continue;
    const auto needed = static_cast<uint64_t>(plan->total_bytes());
    fits.push_back({text, needed, (needed + machine_bytes - 1) / machine_bytes,
                    needed <= available_memory_bytes()});
  }
  return fits;
}

bool belongs_to(const hub::CacheInfo& cache, const Known& known) {
  if (cache.model == known.entry->id || cache.model == known.entry->hf_repo) return true;
  return !known.folder.empty() &&
         std::find(cache.sources.begin(), cache.sources.end(), known.folder) != cache.sources.end();
}

Known look_up(const Context& context, const hub::RegistryEntry& entry, uint64_t machine_bytes,
              const std::vector<hub::CacheInfo>& caches) {
  Known known;
  known.entry = &entry;
  const auto at = hub::locate(context.paths, std::string(entry.id));
  if (at.ok() && at->folder_exists) known.folder = at->folder;
  std::string text, where(entry.id);
  if (!known.folder.empty()) {
    where = known.folder + "/config.json";
    text = read_file(where, 16 << 20).ok() ? *read_file(where, 16 << 20) : "";
  } else if (auto embedded = hub::config_of(entry); embedded.ok()) {
    text = *embedded;
  }
  if (auto json = parse_json(text, where); json.ok())
    if (auto config = model::parse_config(*json, where); config.ok()) known.config = *config;
  if (known.config) known.fits = fits_of(*known.config, machine_bytes);
  for (const hub::CacheInfo& cache : caches)
    if (belongs_to(cache, known)) known.caches.push_back(cache);
  return known;
}

OrderedJson to_json(const hub::CacheInfo& cache) {
  return {{"folder", cache.folder},
          {"format", cache.format},
          {"bytes", cache.n_bytes},
          {"whole", cache.complete},
          {"sources", cache.sources}};
}

OrderedJson to_json(const Known& known) {
  const hub::RegistryEntry& e = *known.entry;
  const auto text_or_null = [](std::string_view text) {
    return text.empty() ? OrderedJson(nullptr) : OrderedJson(text);
  };
  OrderedJson json = {{"id", e.id},
                      {"hf_repo", text_or_null(e.hf_repo)},
                      {"runnable", known.config.has_value()},
                      {"parameters", text_or_null(e.parameters)},
                      {"active_parameters", text_or_null(e.active_parameters)},
                      {"checkpoint_bytes", e.checkpoint_bytes > 0 ? OrderedJson(e.checkpoint_bytes)
                                                                  : OrderedJson(nullptr)},
                      {"licence", text_or_null(e.licence)},
                      {"chat_format", text_or_null(e.chat_format)},
                      {"note", text_or_null(e.note)},
                      {"source", text_or_null(e.source)},
                      {"config_source", text_or_null(hub::config_source(e))},
                      {"folder", text_or_null(known.folder)}};
  if (known.config) {
    json["model_type"] = known.config->model_type;
    json["context"] = known.config->max_position_embeddings;
  }
  json["memory"] = OrderedJson::array();
  for (const Fit& fit : known.fits)
    json["memory"].push_back({{"format", fit.format},
                              {"bytes", fit.n_bytes},
                              {"machines", fit.n_machines},
                              {"fits_here", fit.fits_here}});
  json["caches"] = OrderedJson::array();
  for (const hub::CacheInfo& cache : known.caches) json["caches"].push_back(to_json(cache));
  return json;
}

/// `memory_gb`: as --memory was given; 0: against this machine.
std::string memory_line(const std::vector<Fit>& fits, double memory_gb) {
  std::string text;
  for (const Fit& fit : fits) {
    text +=
        fmt::format("{}{} {}", text.empty() ? "" : " | ", fit.format, format_bytes(fit.n_bytes));
    if (memory_gb <= 0 && fit.fits_here)
      text += " fits";
    else if (memory_gb <= 0 && fit.n_machines == 1)
      text += " more than is free";
    else
      text += fmt::format(" {} machine{}", fit.n_machines, fit.n_machines == 1 ? "" : "s");
  }
  return text;
}

std::string here_line(const Known& known) {
  std::string text = known.folder.empty() ? "" : known.folder;
  for (const hub::CacheInfo& cache : known.caches)
    text += fmt::format("{}cache {} {}{}", text.empty() ? "" : ", ", cache.format,
                        format_bytes(cache.n_bytes), cache.complete ? "" : " (not whole)");
  return text.empty() ? "not here" : text;
}

std::string list_row(std::string_view id, std::string_view parameters, std::string_view context,
                     std::string_view checkpoint, std::string_view licence, std::string_view here) {
  return fmt::format("{:<28}{:<13}{:>9}{:>12}  {:<23} {}\n", id, parameters, context, checkpoint,
                     licence, here);
}

std::string list_text(const std::vector<Known>& models, const std::vector<hub::CacheInfo>& others,
                      const ModelsOptions& options) {
  std::string text = list_row("model", "parameters", "context", "checkpoint", "licence", "here");
  std::string unknown;
  for (const Known& known : models) {
    const hub::RegistryEntry& e = *known.entry;
    if (!known.config) {
      unknown += fmt::format("  {:<33}{}\n", e.id, e.hf_repo);
      continue;
    }
    text += list_row(
        e.id, e.parameters.empty() ? "" : fmt::format("{} ({})", e.parameters, e.active_parameters),
        format_count(known.config->max_position_embeddings),
        e.checkpoint_bytes > 0 ? format_bytes(e.checkpoint_bytes) : "",
        e.licence.empty() ? "not established" : e.licence, here_line(known));
    text += fmt::format("  {}\n", memory_line(known.fits, options.memory_gb));
  }
  for (const hub::CacheInfo& cache : others)
    text += fmt::format("{}  cache {} {}{}  {}\n", cache.model, cache.format,
                        format_bytes(cache.n_bytes), cache.complete ? "" : " (not whole)",
                        cache.folder);
  text +=
      fmt::format("\nMemory of a run: weights, cache of {} tokens and scratch; machines of {}{}.\n",
                  format_count(kListedContextTokens), format_bytes(counted_machine_bytes(options)),
                  options.memory_gb > 0 ? ""
                                        : fmt::format(" (as this one, which has {} free)",
                                                      format_bytes(available_memory_bytes())));
  if (!unknown.empty())
    text +=
        "\nKnown, but not by their config.json: run them from their checkpoint's folder, which has "
        "it.\n" +
        unknown;
  return text;
}

Status list(const Context& context, const ModelsOptions& options) {
  const uint64_t machine_bytes = counted_machine_bytes(options);
  const std::vector<hub::CacheInfo> caches = hub::list_caches(context.paths);
  std::vector<Known> models;
  for (const hub::RegistryEntry& entry : hub::registry())
    models.push_back(look_up(context, entry, machine_bytes, caches));
  std::vector<hub::CacheInfo> others;
  for (const hub::CacheInfo& cache : caches)
    if (std::none_of(models.begin(), models.end(),
                     [&](const Known& known) { return belongs_to(cache, known); }))
      others.push_back(cache);
  if (!options.json) return write_out(list_text(models, others, options));
  OrderedJson json = {{"machine_bytes", machine_bytes}, {"context", kListedContextTokens}};
  json["models"] = OrderedJson::array();
  for (const Known& known : models) json["models"].push_back(to_json(known));
  json["other_caches"] = OrderedJson::array();
  for (const hub::CacheInfo& cache : others) json["other_caches"].push_back(to_json(cache));
  return write_out(json.dump(1, ' ', false, OrderedJson::error_handler_t::replace) + "\n");
}

std::string info_text(const Known& known, double memory_gb) {
  const hub::RegistryEntry& e = *known.entry;
  const auto line = [](std::string_view name, std::string_view value) {
    return value.empty() ? std::string() : fmt::format("  {:<18}{}\n", name, value);
  };
  std::string text = fmt::format("{}\n", e.id);
  text += line("Hugging Face", e.hf_repo);
  text += line("licence", e.licence.empty() ? "not established" : e.licence);
  if (!e.parameters.empty())
    text += line("parameters", fmt::format("{}, {} active", e.parameters, e.active_parameters));
  if (e.checkpoint_bytes > 0) text += line("checkpoint", format_bytes(e.checkpoint_bytes));
  if (known.config) {
    const model::HfConfig& c = *known.config;
    text += line("model_type", c.model_type);
    text += line(
        "exact",
        fmt::format("{} parameters, {} with MTP, {} active", format_count(c.n_parameters(false)),
                    format_count(c.n_parameters(true)), format_count(c.n_active_parameters())));
    text += line("context", fmt::format("{} tokens", format_count(c.max_position_embeddings)));
  }
  text += line("chat format", e.chat_format.empty() ? "the checkpoint's own" : e.chat_format);
  text += line("memory", memory_line(known.fits, memory_gb));
  text += line("config", e.config.empty()
                             ? "the checkpoint's own"
                             : fmt::format("embedded: {}'s, {}", e.config, hub::config_source(e)));
  text += line("facts from", e.source);
  text += line("here", here_line(known));
  text += line("note", e.note);
  return text;
}

Status info(const Context& context, const ModelsOptions& options) {
  const uint64_t machine_bytes = counted_machine_bytes(options);
  const std::vector<hub::CacheInfo> caches = hub::list_caches(context.paths);
  const hub::RegistryEntry* entry = hub::find_entry(options.model);
  if (entry != nullptr) {
    const Known known = look_up(context, *entry, machine_bytes, caches);
    return write_out(options.json ? to_json(known).dump(1) + "\n"
                                  : info_text(known, options.memory_gb));
  }
  // A folder or an unknown repo: what its own files say.
  ModelOptions model;
  model.model = options.model;
  EXO_ASSIGN_OR_RETURN(const PlannedModel planned, plan_model(context, model, {}));
  static constexpr hub::RegistryEntry kUnlisted = {};
  Known known;
  known.entry = &kUnlisted;
  known.config = planned.plan.config;
  known.folder = planned.location.folder;
  known.fits = fits_of(*known.config, machine_bytes);
  for (const hub::CacheInfo& cache : caches)
    if (belongs_to(cache, known)) known.caches.push_back(cache);
  if (options.json) return write_out(to_json(known).dump(1) + "\n");
  return write_out(planned.location.name + info_text(known, options.memory_gb));
}

/// Asks on the terminal; without one the answer is no.
bool confirmed(std::string_view question) {
  if (!is_terminal(0)) return false;
  fmt::print(stderr, "{} [y/N] ", question);
  std::string line;
  return std::getline(std::cin, line) && (line == "y" || line == "Y" || line == "yes");
}

Status remove(const Context& context, const ModelsOptions& options) {
  hub::ModelLocation at;
  at.name = options.model;
  if (auto located = hub::locate(context.paths, options.model); located.ok()) at = *located;
  std::vector<hub::CacheInfo> found;
  for (const hub::CacheInfo& cache : hub::list_caches(context.paths)) {
    const bool same_folder =
        !at.folder.empty() &&
        (cache.folder == at.folder ||
         std::find(cache.sources.begin(), cache.sources.end(), at.folder) != cache.sources.end());
    if (same_folder || cache.model == at.name) found.push_back(cache);
  }
  if (found.empty())
    return not_found(fmt::format("{}: no weight cache of it in {}", at.name, context.paths.cache));
  uint64_t n_bytes = 0;
  for (const hub::CacheInfo& cache : found) {
    say(fmt::format("exo: {} ({}, {})", cache.folder, cache.format, format_bytes(cache.n_bytes)));
    n_bytes += cache.n_bytes;
  }
  if (!options.yes && !confirmed(fmt::format("remove {}?", format_bytes(n_bytes))))
    return failed_precondition("nothing was removed: --yes removes without asking");
  for (const hub::CacheInfo& cache : found) {
    std::error_code error;
    // The manifest first: what is left of an interrupted removal is no whole cache.
    std::filesystem::remove(cache.folder + "/weights.json", error);
    const auto name = std::filesystem::path(cache.folder).filename();
    std::filesystem::remove_all(context.paths.cache / std::filesystem::path("verify") / name,
                                error);
    std::filesystem::remove_all(cache.folder, error);
    if (error)
      return failed_precondition(
          fmt::format("{}: cannot remove: {}", cache.folder, error.message()));
  }
  say(fmt::format("exo: removed {}", format_bytes(n_bytes)));
  return ok_status();
}

}  // namespace

Status models_command(const Context& context, const ModelsOptions& options) {
  switch (options.action) {
    case ModelsOptions::Action::list:
      return list(context, options);
    case ModelsOptions::Action::info:
      return info(context, options);
    case ModelsOptions::Action::remove:
      return remove(context, options);
  }
  return internal_error("models: an unknown action");
}

}  // namespace exo::cli
