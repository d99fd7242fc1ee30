/// The instruction sets that tests of threads and numbers run on.
#pragma once

#include <algorithm>
#include <vector>

#include "kernels/cpu/isa.h"

namespace exo::kernels::cpu {

/// All of this machine's. Under the thread sanitizer, which slows them thirtyfold, the best and the
/// best without units for bf16, whose attention is another: beside that the bodies that share work
/// among threads are the same for all, and the reference has no threads.
inline std::vector<Isa> isas_to_test() {
  const auto all = supported_isas();
#if defined(__SANITIZE_THREAD__)
  std::vector<Isa> best = {all.back()};
  const auto plain = std::find_if(all.rbegin(), all.rend(), [](Isa i) { return !has_bf16(i); });
  if (*plain != all.back() && *plain != Isa::reference) best.push_back(*plain);
  return best;
#else
  return {all.begin(), all.end()};
#endif
}

}  // namespace exo::kernels::cpu
