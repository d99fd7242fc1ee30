/// The registry: which model_type is run by which family, and which relatives are known but not
/// run. Adding a model is one line of the table in family.cc and, for a new architecture, one
/// folder with the functions below.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "model/config.h"

namespace exo::model {

/// What a family of models brings: its reading of config.json. The stages after it are driven by
/// HfConfig's fields alone, so model_types of one family share everything.
struct Family {
  std::string_view name;
  Result<HfConfig> (*parse_config)(const Json& json, const std::string& where);
};

struct KnownModel {
  std::string_view model_type;
  const Family* family;     ///< null: recognised, and not run by this build
  std::string_view models;  ///< what carries this model_type, for people
  std::string_view why_not;
};

std::span<const KnownModel> known_models();

/// The family of `model_type`. Recognised relatives are unimplemented, in one sentence; anything
/// else is invalid_argument and lists the model_types that run.
Result<const Family*> find_family(std::string_view model_type, const std::string& where);

}  // namespace exo::model
