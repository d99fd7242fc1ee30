/// The registry: which model_type is run by which family, and which relatives are known but not
/// run. Adding a model is one line of the table in family.cc and, for a new architecture, one
/// folder with the functions below.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "model/convert.h"
#include "model/recipe.h"

namespace exo::model {

/// What a family of models brings to the three stages. Everything is driven by HfConfig's fields,
/// so the model_types of one family share all of it; what doesn't depend on the family (totals,
/// checks, JSON, files) is around it.
struct Family {
  std::string_view name;
  Result<HfConfig> (*parse_config)(const Json& json, const std::string& where);
  /// Stage 2: the configs of one phase of plan.placement. `plan` has config to limits filled in.
  PhaseConfig (*make_phase)(const Plan& plan, Phase phase);
  /// Stage 1: the cache's entries, from the plan's phases.
  std::vector<RecipeUnit> (*make_recipe)(const Plan& plan);
  /// The tensors of an official checkpoint, in its order.
  std::vector<CheckpointTensor> (*checkpoint_tensors)(const HfConfig& config);
};

struct KnownModel {
  std::string_view model_type;
  const Family* family;     ///< null: recognised, and not run by this build
  std::string_view models;  ///< what carries this model_type, for people
  std::string_view why_not;
};

std::span<const KnownModel> known_models();

/// The family of a config that was parsed.
const Family& family_of(const HfConfig& config);

/// The family of `model_type`. Recognised relatives are unimplemented, in one sentence; anything
/// else is invalid_argument and lists the model_types that run.
Result<const Family*> find_family(std::string_view model_type, const std::string& where);

}  // namespace exo::model
