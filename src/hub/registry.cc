#include "hub/registry.h"

#include <fmt/core.h>

#include <algorithm>
#include <string>
#include <vector>

namespace exo::hub {
namespace {

constexpr std::string_view kDeepSeekLicence = "DeepSeek Model License";
constexpr std::string_view kNoConfig =
    "its config.json is not established here: give the checkpoint's folder, which has it";

constexpr uint64_t kV3Bytes = 688'574'839'360;
constexpr uint64_t kV2Bytes = 471'482'869'760;
constexpr uint64_t kV2LiteBytes = 31'412'968'448;

constexpr std::string_view kV3Readme = "README of github.com/deepseek-ai/DeepSeek-V3";
constexpr std::string_view kR1Readme = "README of github.com/deepseek-ai/DeepSeek-R1";
constexpr std::string_view kV2Readme = "README of github.com/deepseek-ai/DeepSeek-V2";
constexpr std::string_view kCoderReadme = "README of github.com/deepseek-ai/DeepSeek-Coder-V2";
constexpr std::string_view kMoonlightReadme = "README of github.com/MoonshotAI/Moonlight";
constexpr std::string_view kKimiReadme = "README of github.com/MoonshotAI/Kimi-K2";

// The first three fields, then chat format, parameters, active ones, bytes, licence, note, source.
// Models that share a config name it explicitly.
constexpr RegistryEntry kRegistry[] = {
    {"tiny", "", "", "", "", "", 0, "Apache-2.0",
     "the small model that comes with exo; its config.json lies beside it", ""},
    {"deepseek-v3", "deepseek-ai/DeepSeek-V3", "deepseek-v3", "deepseek-v3", "671B", "37B",
     kV3Bytes, kDeepSeekLicence, "", kV3Readme},
    {"deepseek-v3-base", "deepseek-ai/DeepSeek-V3-Base", "", "", "671B", "37B", 0, kDeepSeekLicence,
     kNoConfig, kV3Readme},
    {"deepseek-v3-0324", "deepseek-ai/DeepSeek-V3-0324", "deepseek-v3", "deepseek-v3", "671B",
     "37B", 0, "",
     "architecture as DeepSeek-V3's (seen in a requantised copy); that its FP8 blocks are V3's too "
     "is inferred",
     "config.json of NVIDIA's requantised copy"},
    {"deepseek-r1", "deepseek-ai/DeepSeek-R1", "deepseek-r1", "deepseek-r1", "671B", "37B",
     kV3Bytes, "MIT", "", kR1Readme},
    {"deepseek-r1-zero", "deepseek-ai/DeepSeek-R1-Zero", "", "deepseek-r1", "671B", "37B", 0, "MIT",
     kNoConfig, kR1Readme},
    {"deepseek-r1-0528", "deepseek-ai/DeepSeek-R1-0528", "deepseek-r1", "deepseek-r1-0528", "671B",
     "37B", 0, "", "config as DeepSeek-R1's, its own chat format", "inferred from its config.json"},
    {"deepseek-v3.1", "deepseek-ai/DeepSeek-V3.1", "deepseek-v3.1", "deepseek-v3.1", "671B", "37B",
     kV3Bytes, "MIT", "thinks with --think", "the model's card on Hugging Face (an excerpt)"},
    {"deepseek-v3.1-terminus", "deepseek-ai/DeepSeek-V3.1-Terminus", "", "", "671B", "37B", 0,
     "MIT", kNoConfig, "the model's card on Hugging Face"},
    {"deepseek-v2", "deepseek-ai/DeepSeek-V2", "deepseek-v2", "deepseek-v2", "236B", "21B",
     kV2Bytes, kDeepSeekLicence, "config transcribed from a test's fixture", kV2Readme},
    {"deepseek-v2-chat", "deepseek-ai/DeepSeek-V2-Chat", "", "deepseek-v2", "236B", "21B", kV2Bytes,
     kDeepSeekLicence, kNoConfig, kV2Readme},
    {"deepseek-v2-lite", "deepseek-ai/DeepSeek-V2-Lite", "deepseek-v2-lite", "deepseek-v2", "16B",
     "2.4B", kV2LiteBytes, kDeepSeekLicence, "", kV2Readme},
    {"deepseek-v2-lite-chat", "deepseek-ai/DeepSeek-V2-Lite-Chat", "deepseek-v2-lite",
     "deepseek-v2", "16B", "2.4B", kV2LiteBytes, kDeepSeekLicence, "config as DeepSeek-V2-Lite's",
     kV2Readme},
    {"deepseek-coder-v2-instruct", "deepseek-ai/DeepSeek-Coder-V2-Instruct", "", "", "236B", "21B",
     kV2Bytes, kDeepSeekLicence, kNoConfig, kCoderReadme},
    {"deepseek-coder-v2-lite-instruct", "deepseek-ai/DeepSeek-Coder-V2-Lite-Instruct", "", "",
     "16B", "2.4B", kV2LiteBytes, kDeepSeekLicence, kNoConfig, kCoderReadme},
    {"deepseek-v2.5", "deepseek-ai/DeepSeek-V2.5", "deepseek-v2.5", "", "236B", "21B", kV2Bytes,
     kDeepSeekLicence, "config transcribed from a script; chat format not established", kV2Readme},
    {"moonlight-16b-a3b-instruct", "moonshotai/Moonlight-16B-A3B-Instruct",
     "moonlight-16b-a3b-instruct", "", "16B", "3B", 31'920'220'416, "",
     "config transcribed from a test; its tokenizer is not a tokenizer.json, so text needs "
     "--tokenizer",
     kMoonlightReadme},
    {"moonlight-16b-a3b", "moonshotai/Moonlight-16B-A3B", "", "", "16B", "3B", 0, "", kNoConfig,
     kMoonlightReadme},
    {"kimi-k2-instruct", "moonshotai/Kimi-K2-Instruct", "kimi-k2-instruct", "", "1T", "32B",
     1'029'173'249'888, "Modified MIT",
     "its tokenizer is not a tokenizer.json, so text needs --tokenizer", kKimiReadme},
    {"kimi-k2-base", "moonshotai/Kimi-K2-Base", "", "", "1T", "32B", 0, "Modified MIT", kNoConfig,
     kKimiReadme},
    {"kimi-k2-instruct-0905", "moonshotai/Kimi-K2-Instruct-0905", "", "", "1T", "32B", 0,
     "Modified MIT", kNoConfig, kKimiReadme},
    {"kimi-k2-thinking", "moonshotai/Kimi-K2-Thinking", "", "", "1T", "32B", 0, "",
     "its config.json is established in part alone: give the checkpoint's folder, which has it",
     "an excerpt of its config.json"},
};

struct ConfigSource {
  std::string_view name;
  std::string_view source;
};
// registry/SOURCES.md in short.
constexpr ConfigSource kConfigSources[] = {
    {"deepseek-v3", "verbatim, from github ai-dynamo/aiconfigurator @ 095f58a5"},
    {"deepseek-r1", "verbatim, from github ai-dynamo/aiconfigurator @ 095f58a5"},
    {"deepseek-v3.1", "verbatim, from github ai-dynamo/aiconfigurator @ 39033e8c"},
    {"deepseek-v2-lite", "verbatim, from github kvcache-ai/ktransformers @ 95009ea6"},
    {"deepseek-v2", "transcribed from a test of NVIDIA Megatron-Bridge (ds_v2_config)"},
    {"deepseek-v2.5", "transcribed from a parameter-counting script (config_v2_5_236_b)"},
    {"moonlight-16b-a3b-instruct", "transcribed from a test that quotes revision 4e735b07"},
    {"kimi-k2-instruct", "verbatim, from github ai-dynamo/aiconfigurator @ 095f58a5"},
};

bool same_ignoring_case(std::string_view a, std::string_view b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](char x, char y) {
    const auto lower = [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; };
    return lower(x) == lower(y);
  });
}

/// Levenshtein's distance.
size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t replace = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, replace});
    }
  }
  return row[b.size()];
}

}  // namespace

std::span<const RegistryEntry> registry() { return kRegistry; }

const RegistryEntry* find_entry(std::string_view id_or_repo) {
  if (id_or_repo.empty()) return nullptr;
  for (const RegistryEntry& entry : kRegistry)
    if (same_ignoring_case(entry.id, id_or_repo) || same_ignoring_case(entry.hf_repo, id_or_repo))
      return &entry;
  return nullptr;
}

Result<std::string_view> config_of(const RegistryEntry& entry) {
  for (const EmbeddedConfig& config : embedded_configs())
    if (!entry.config.empty() && config.name == entry.config) return config.json;
  return failed_precondition(fmt::format("{}: {}", entry.id, entry.note));
}

std::string_view config_source(const RegistryEntry& entry) {
  for (const ConfigSource& known : kConfigSources)
    if (!entry.config.empty() && known.name == entry.config) return known.source;
  return {};
}

std::string_view nearest_id(std::string_view id) {
  if (id.size() > 100) return {};
  std::string_view nearest;
  size_t least = std::max<size_t>(2, id.size() / 4) + 1;
  for (const RegistryEntry& entry : kRegistry) {
    const size_t distance = edit_distance(entry.id, id);
    if (distance < least) {
      least = distance;
      nearest = entry.id;
    }
  }
  return nearest;
}

}  // namespace exo::hub
