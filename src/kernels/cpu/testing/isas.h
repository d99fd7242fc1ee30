/// The instruction sets that tests of threads and numbers run on.
#pragma once

#include <vector>

#include "kernels/cpu/isa.h"

namespace exo::kernels::cpu {

/// All of this machine's; under the thread sanitizer, which slows them thirtyfold, the reference
/// and the best: the bodies that share work among threads are the same for all.
inline std::vector<Isa> isas_to_test() {
  const auto all = supported_isas();
#if defined(__SANITIZE_THREAD__)
  if (all.size() > 2) return {all.front(), all.back()};
#endif
  return {all.begin(), all.end()};
}

}  // namespace exo::kernels::cpu
