/// What create_state allocates, for the plan.
#pragma once

#include "model/model.h"

namespace exo::model {

/// Pages of the latent cache that these limits ask for.
int64_t n_pages_of(const Limits& limits);
/// Bytes of State::run_memory.
int64_t run_memory_bytes(const HfConfig& config, const Placement& placement, const Limits& limits);

}  // namespace exo::model
