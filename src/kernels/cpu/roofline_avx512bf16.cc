#if defined(__x86_64__)
#include "kernels/cpu/roofline_chains.h"
#include "kernels/cpu/roofline_loops.h"

namespace exo::kernels::cpu {

double bf16_loop_avx512bf16(int64_t n) {
  for (int64_t i = 0; i < n; ++i) asm volatile(EXO_CHAINS("vdpbf16ps")::: EXO_CLOBBERS);
  return 16 * 32 * 2;
}

}  // namespace exo::kernels::cpu
#endif
