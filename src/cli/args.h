/// The command line, parsed. Only args*.cc know CLI11.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "cli/options.h"

namespace exo::cli {

struct ParsedArgs {
  Invocation invocation;
  /// Set when there is nothing to run: --help was printed (0), or a usage error was (2).
  std::optional<int> exit_code;
};

ParsedArgs parse_args(int argc, const char* const* argv);

/// The names of all commands, in help's order (for completions and tests).
std::vector<std::string> command_names();

}  // namespace exo::cli
