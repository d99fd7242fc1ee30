/// The instruction sets that tests of threads and numbers run on.
#pragma once

#include <vector>

#include "kernels/cpu/isa.h"

namespace exo::kernels::cpu {

/// All of this machine's; under the thread sanitizer, which slows them thirtyfold, the best alone:
/// the bodies that share work among threads are the same for all, and the reference has none.
inline std::vector<Isa> isas_to_test() {
  const auto all = supported_isas();
#if defined(__SANITIZE_THREAD__)
  return {all.back()};
#else
  return {all.begin(), all.end()};
#endif
}

}  // namespace exo::kernels::cpu
