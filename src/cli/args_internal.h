/// What args.cc and args_commands.cc share.
#pragma once

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>

#include "cli/options.h"

namespace exo::cli {

/// Whole numbers from `least` on. CLI11's own checks compare as doubles, cut what overflows, take
/// "" for 0, and say "not in range 0 to 1.79769e+308".
CLI::Validator whole_number(int64_t least);

void add_exo_flags(CLI::App& app, ExoFlags& flags);
/// All commands, as subcommands of `app`.
void add_commands(CLI::App& app, Invocation& invocation);

}  // namespace exo::cli
