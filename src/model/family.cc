#include "model/family.h"

#include <fmt/core.h>

#include <array>

#include "model/deepseek/deepseek.h"

namespace exo::model {
namespace {

constexpr std::array kKnownModels = {
    KnownModel{"deepseek_v2", &deepseek::kFamily, "DeepSeek-V2, V2-Lite, V2.5, Coder-V2", ""},
    KnownModel{"deepseek_v3", &deepseek::kFamily, "DeepSeek-V3, R1, V3-0324, V3.1, Moonlight", ""},
    KnownModel{"kimi_k2", &deepseek::kFamily, "Kimi-K2", ""},
    KnownModel{"deepseek_v32", nullptr, "DeepSeek-V3.2", "its sparse attention needs an indexer"},
    KnownModel{"deepseek_v4", nullptr, "DeepSeek-V4",
               "its compressed attention and hyper-connections are another graph"},
    KnownModel{"deepseek_ref", nullptr, "sgl-project's DeepSeek-V4 in FP8",
               "its compressed attention and hyper-connections are another graph"},
    KnownModel{"deepseek_v41", nullptr, "DeepSeek-V4.1", "it is another graph than V3's"},
    KnownModel{"deepseek", nullptr, "DeepSeek-MoE (V1)", "it has no latent attention"},
    KnownModel{"kimi_k25", nullptr, "Kimi-K2.5",
               "it has a vision tower and 4-bit experts of another format"},
    KnownModel{"kimi_linear", nullptr, "Kimi-Linear and Kimi-K3",
               "its linear attention is another graph"},
    KnownModel{"glm4_moe_lite", nullptr, "GLM-4.7-Flash", "its fields were never checked here"},
    KnownModel{"glm_moe_dsa", nullptr, "GLM-5", "its sparse attention needs an indexer"},
};

}  // namespace

std::span<const KnownModel> known_models() { return kKnownModels; }

const Family& family_of(const HfConfig& config) {
  for (const KnownModel& known : kKnownModels) {
    if (known.model_type == config.model_type && known.family != nullptr) return *known.family;
  }
  return deepseek::kFamily;  // a config that was made by hand, in tests
}

Result<const Family*> find_family(std::string_view model_type, const std::string& where) {
  std::string runs;
  for (const KnownModel& known : kKnownModels) {
    if (known.model_type == model_type) {
      if (known.family != nullptr) return known.family;
      return unimplemented(
          fmt::format("{}: model_type '{}' ({}) is recognised but not run by this "
                      "build: {}",
                      where, model_type, known.models, known.why_not));
    }
    if (known.family != nullptr)
      runs += fmt::format("{}{} ({})", runs.empty() ? "" : ", ", known.model_type, known.models);
  }
  return invalid_argument(fmt::format("{}: unknown model_type '{}'; this build runs {}", where,
                                      std::string(model_type.substr(0, 100)), runs));
}

}  // namespace exo::model
