/// What args.cc and args_commands.cc share.
#pragma once

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>

#include "cli/options.h"

namespace exo::cli {

void add_exo_flags(CLI::App& app, ExoFlags& flags);
/// All commands, as subcommands of `app`.
void add_commands(CLI::App& app, Invocation& invocation);

}  // namespace exo::cli
