#if defined(__x86_64__)
#include "kernels/cpu/roofline_loops.h"

namespace exo::kernels::cpu {

// Twelve chains cover the latency of 4 to 5 cycles on two units.
double int8_loop_avxvnni(int64_t n) {
#define EXO_DOT(acc) "%{vex%} vpdpbusd %%ymm14, %%ymm15, %%ymm" #acc "\n\t"
  for (int64_t i = 0; i < n; ++i)
    asm volatile(EXO_DOT(0) EXO_DOT(1) EXO_DOT(2) EXO_DOT(3) EXO_DOT(4) EXO_DOT(5) EXO_DOT(6)
                     EXO_DOT(7) EXO_DOT(8) EXO_DOT(9) EXO_DOT(10) EXO_DOT(11)::
                         : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8",
                           "xmm9", "xmm10", "xmm11", "xmm14", "xmm15");
#undef EXO_DOT
  return 12 * 32 * 2;
}

}  // namespace exo::kernels::cpu
#endif
