#include "cli/env.h"

#include <fmt/core.h>

#include <algorithm>
#include <cstdlib>

#include "base/log.h"

namespace exo::cli {
namespace {

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

Result<int> level(std::string_view name, const std::string& value, int max) {
  if (value.empty()) return 0;
  if (value.size() == 1 && value[0] >= '0' && value[0] <= '0' + max) return value[0] - '0';
  return invalid_argument(
      fmt::format("{}={}: expected a level from 0 to {} (docs/flags.md)", name, value, max));
}

}  // namespace

Environment read_environment() {
  Environment e;
  e.home = variable("HOME");
  e.exo_home = variable("EXO_HOME");
  e.hf_home = variable("HF_HOME");
  e.cache = variable("DEEPSEEK_V3_CACHE");
  e.default_model = variable("DEEPSEEK_V3_HF_MODEL");
  e.debug = variable("DEBUG");
  e.tinygrad_debug = variable("TINYGRAD_DEBUG");
  e.cuda = variable("CUDA");
  e.clang = variable("CLANG");
  e.no_color = variable("NO_COLOR");
  return e;
}

hub::StorePaths store_paths(const Environment& environment, const std::string& executable) {
  const std::string home = environment.home.empty() ? "." : environment.home;
  hub::StorePaths paths;
  paths.hf_home = environment.hf_home.empty() ? home + "/.cache/huggingface" : environment.hf_home;
  paths.exo_home = environment.exo_home.empty() ? home + "/.cache/exo" : environment.exo_home;
  paths.cache = environment.cache.empty() ? paths.exo_home + "/cache" : environment.cache;
  paths.default_model = environment.default_model;
  if (!executable.empty())
    paths.shipped_models = {hub::absolute_path(executable + "/../../models"),
                            hub::absolute_path(executable + "/../share/exo/models")};
  return paths;
}

Status apply_log_level(const Environment& environment) {
  EXO_ASSIGN_OR_RETURN(const int debug, level("DEBUG", environment.debug, 9));
  EXO_ASSIGN_OR_RETURN(const int engine, level("TINYGRAD_DEBUG", environment.tinygrad_debug, 6));
  const int highest = std::max(debug, engine);
  if (highest == 0) {
    set_log_level(LogLevel::warn);
  } else if (highest == 1) {
    set_log_level(LogLevel::info);
  } else {
    set_log_level(highest < 4 ? LogLevel::debug : LogLevel::trace);
  }
  return ok_status();
}

}  // namespace exo::cli
