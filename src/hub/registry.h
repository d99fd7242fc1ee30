/// The models that exo knows by name: typed facts, each with its source (registry/SOURCES.md). A
/// field that isn't established is empty; a model without a config can only be run from a
/// checkpoint folder that brings its own.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "base/status.h"

namespace exo::hub {

struct EmbeddedConfig {
  std::string_view name;
  std::string_view json;  ///< a config.json
};
/// registry/*.json.
std::span<const EmbeddedConfig> embedded_configs();

struct RegistryEntry {
  std::string_view id;       ///< "deepseek-v3"
  std::string_view hf_repo;  ///< "deepseek-ai/DeepSeek-V3"; empty for the shipped model
  std::string_view config;   ///< of embedded_configs(); empty: not established
  /// text::ChatFormat's name; empty: a base model, or a format that isn't established (the
  /// checkpoint's own template decides then).
  std::string_view chat_format;
  std::string_view parameters;         ///< "671B"
  std::string_view active_parameters;  ///< "37B"
  uint64_t checkpoint_bytes = 0;       ///< tensor data of the official checkpoint; 0: unknown
  std::string_view licence;
  std::string_view note;
  std::string_view source;  ///< where parameters and licence were read; empty for the shipped model

  /// Can be planned with nothing on disk.
  bool has_config() const { return !config.empty(); }
};

std::span<const RegistryEntry> registry();

/// By id or by HF repo id, letters' case ignored; nullptr if it isn't known.
const RegistryEntry* find_entry(std::string_view id_or_repo);
/// The embedded config.json of an entry. failed_precondition when it has none.
Result<std::string_view> config_of(const RegistryEntry& entry);
/// Where that config.json was copied from, and whether verbatim; empty when there is none.
std::string_view config_source(const RegistryEntry& entry);
/// The id nearest to a misspelt one, empty if none is near.
std::string_view nearest_id(std::string_view id);

}  // namespace exo::hub
