/// exo: parses the command line, runs one command, turns its error into an exit code.
///   0 done, 1 failed, 2 wrong usage, 130 interrupted.
#include <fmt/core.h>

#include "base/os.h"
#include "cli/args.h"
#include "cli/commands.h"
#include "cli/console.h"
#include "cli/exo_flags.h"

namespace exo::cli {
namespace {

constexpr int kFailedExit = 1, kUsageExit = 2, kInterruptedExit = 130;

Status dispatch(const Context& context, const Invocation& invocation) {
  switch (invocation.command) {
    case Command::run:
      return run_command(context, invocation.run);
    case Command::convert:
      return convert_command(context, invocation.convert);
    case Command::plan:
      return plan_command(context, invocation.plan);
    case Command::logits:
      return logits_command(context, invocation.logits);
    case Command::tokenize:
      return tokenize_command(context, invocation.tokenize);
    case Command::render:
      return render_command(context, invocation.render);
    case Command::models:
      return models_command(context, invocation.models);
    case Command::perplexity:
      return perplexity_command(context, invocation.perplexity);
    case Command::verify:
      return verify_command(context, invocation.verify);
    case Command::random_checkpoint:
      return random_checkpoint_command(context, invocation.random_checkpoint);
    case Command::bench:
      return bench_command(context, invocation.bench);
    case Command::version:
      return write_out(fmt::format("exo {}\n", EXO_VERSION));
    case Command::node:
      return node_command(context);
  }
  return internal_error("an unknown command");
}

int run(int argc, const char* const* argv) {
  exit_on_interrupt();
  const ParsedArgs parsed = parse_args(argc, argv);
  if (parsed.exit_code) return *parsed.exit_code;
  Context context;
  context.environment = read_environment();
  context.paths = store_paths(context.environment, executable_dir());
  context.exo = parsed.invocation.exo;
  Status status = apply_log_level(context.environment);
  const bool usage_error = !status.ok();
  if (status.ok()) status = check_exo_flags(context, parsed.invocation.command);
  if (status.ok()) status = dispatch(context, parsed.invocation);
  if (status.ok()) return 0;
  if (!status.message().empty()) say(fmt::format("exo: {}", status.message()));
  if (status.code() == StatusCode::cancelled) return kInterruptedExit;
  return usage_error || parsed.invocation.command == Command::node ? kUsageExit : kFailedExit;
}

}  // namespace
}  // namespace exo::cli

int main(int argc, char** argv) { return exo::cli::run(argc, argv); }
