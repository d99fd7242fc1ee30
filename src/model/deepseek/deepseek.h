/// The family of DeepSeek-V2 and V3 (arXiv 2405.04434, 2412.19437) and of what shares their graph:
/// multi-head latent attention, a mixture of experts behind a router, optional MTP layers.
#pragma once

#include "model/family.h"

namespace exo::model::deepseek {

/// config.json of deepseek_v2, deepseek_v3 and kimi_k2. Fields that are missing get the defaults of
/// the published configuration_deepseek.py; sizes have none.
Result<HfConfig> parse_config(const Json& json, const std::string& where);

inline constexpr Family kFamily{"deepseek", &parse_config};

}  // namespace exo::model::deepseek
