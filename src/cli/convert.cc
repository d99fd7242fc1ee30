#include <fmt/core.h>

#include "base/os.h"
#include "cli/commands.h"
#include "cli/console.h"
#include "cli/model_setup.h"
#include "weights/weight_config.h"

namespace exo::cli {

Status convert_command(const Context& context, const ConvertOptions& options) {
  EXO_ASSIGN_OR_RETURN(const PlannedModel planned, plan_model(context, options.model, {}));
  EXO_ASSIGN_OR_RETURN(const std::string folder, ensure_cache(context, planned, options.force));
  if (options.verify) {
    EXO_ASSIGN_OR_RETURN(const weights::WeightCache cache, weights::WeightCache::open(folder));
    EXO_RETURN_IF_ERROR(cache.verify());
    say("exo: every checksum is as it was written");
  }
  say(fmt::format("exo: {} as {}: {}, peak memory {}", planned.location.name,
                  planned.plan.format.to_string(), format_bytes(hub::folder_bytes(folder)),
                  format_bytes(peak_resident_bytes())));
  return write_out(folder + "\n");
}

}  // namespace exo::cli
