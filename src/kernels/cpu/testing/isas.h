/// The instruction sets that tests of threads and numbers run on.
#pragma once

#include <algorithm>
#include <vector>

#include "kernels/cpu/isa.h"

namespace exo::kernels::cpu {

/// The best and the best without units for bf16, whose attention is another.
inline std::vector<Isa> best_isas() {
  const auto all = supported_isas();
  std::vector<Isa> best = {all.back()};
  const auto plain = std::find_if(all.rbegin(), all.rend(), [](Isa i) { return !has_bf16(i); });
  if (*plain != all.back() && *plain != Isa::reference) best.push_back(*plain);
  return best;
}

/// All of this machine's. Under the thread sanitizer, which slows them thirtyfold, the best: the
/// bodies that share work among threads are the same for all, and the reference has no threads.
inline std::vector<Isa> isas_to_test() {
#if defined(__SANITIZE_THREAD__)
  return best_isas();
#else
  const auto all = supported_isas();
  return {all.begin(), all.end()};
#endif
}

}  // namespace exo::kernels::cpu
