/// The environment, read once: the only getenv of exo.cpp is in env.cc.
#pragma once

#include <string>

#include "base/status.h"
#include "hub/store.h"

namespace exo::cli {

struct Environment {
  std::string home;
  std::string exo_home;
  std::string hf_home;
  std::string cache;          ///< DEEPSEEK_V3_CACHE
  std::string default_model;  ///< DEEPSEEK_V3_HF_MODEL
  std::string debug;          ///< DEBUG
  std::string tinygrad_debug;
  std::string cuda;
  std::string clang;
  std::string no_color;  ///< no-color.org
};

Environment read_environment();

/// Where models and caches lie; `executable` is the folder of the binary (the shipped model lies
/// beside it: in the source tree, or under share/ of an installation).
hub::StorePaths store_paths(const Environment& environment, const std::string& executable);

/// Sets the log level from DEBUG (0 to 9) and TINYGRAD_DEBUG (0 to 6): docs/flags.md. Anything else
/// is invalid_argument.
Status apply_log_level(const Environment& environment);

}  // namespace exo::cli
