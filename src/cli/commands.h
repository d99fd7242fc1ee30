/// The commands, one file each. Each returns the first error, already said in full; what goes to
/// stdout has been written. A command whose result is "no" (verify found a difference) says so by
/// failed_precondition.
#pragma once

#include "base/status.h"
#include "cli/options.h"

namespace exo::cli {

Status run_command(const Context& context, const RunOptions& options);
Status convert_command(const Context& context, const ConvertOptions& options);
Status plan_command(const Context& context, const PlanOptions& options);
Status logits_command(const Context& context, const LogitsOptions& options);
Status tokenize_command(const Context& context, const TokenizeOptions& options);
Status render_command(const Context& context, const RenderOptions& options);
Status models_command(const Context& context, const ModelsOptions& options);
Status perplexity_command(const Context& context, const PerplexityOptions& options);
Status verify_command(const Context& context, const VerifyOptions& options);
Status random_checkpoint_command(const Context& context, const RandomCheckpointOptions& options);
Status bench_command(const Context& context, const BenchCommandOptions& options);

}  // namespace exo::cli
