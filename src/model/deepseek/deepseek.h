/// The family of DeepSeek-V2 and V3 (arXiv 2405.04434, 2412.19437) and of what shares their graph:
/// multi-head latent attention, a mixture of experts behind a router, optional MTP layers.
#pragma once

#include "model/family.h"

namespace exo::model::deepseek {

/// config.json of deepseek_v2, deepseek_v3 and kimi_k2. Fields that are missing get the defaults of
/// the published configuration_deepseek.py; sizes have none.
Result<HfConfig> parse_config(const Json& json, const std::string& where);

/// Stage 2: typed configs of every operation of a phase.
PhaseConfig make_phase(const Plan& plan, Phase phase);

/// Stage 1: which entries the cache has and which checkpoint tensors they are made of.
std::vector<RecipeUnit> make_recipe(const Plan& plan);
std::vector<CheckpointTensor> checkpoint_tensors(const HfConfig& config);

inline constexpr Family kFamily{
    .name = "deepseek",
    .parse_config = &parse_config,
    .make_phase = &make_phase,
    .make_recipe = &make_recipe,
    .checkpoint_tensors = &checkpoint_tensors,
};

}  // namespace exo::model::deepseek
