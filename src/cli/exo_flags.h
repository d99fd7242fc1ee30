/// What exo's own flags mean to a command: those whose machinery this build lacks are refused where
/// they would have to act, and never ignored in silence. docs/flags.md is the table.
#pragma once

#include "cli/options.h"

namespace exo::cli {

/// Errors for flags that ask for peers; a line on stderr for those that only set a node up, since a
/// command that runs alone has no use for them.
Status check_exo_flags(const Context& context, Command command);

/// `exo` alone: a node. Says what there is instead.
Status node_command(const Context& context);

}  // namespace exo::cli
