#if defined(__x86_64__)
#include <immintrin.h>

#include "kernels/cpu/roofline_loops.h"

namespace exo::kernels::cpu {

// Twelve chains cover the latency of 4 to 5 cycles on two units.
double int8_loop_avxvnni(int64_t n, const LoopOperands& operands) {
#define EXO_DOT(acc) "%{vex%} vpdpbusd %[b], %[a], %%ymm" #acc "\n\t"
  const auto vector = [](const int8_t* p) {
    return _mm256_load_si256(reinterpret_cast<const __m256i*>(p));
  };
  const __m256i a = vector(operands.i8[0]), b = vector(operands.i8[1]);
  asm volatile("1:\n\t" EXO_DOT(0) EXO_DOT(1) EXO_DOT(2) EXO_DOT(3) EXO_DOT(4) EXO_DOT(5) EXO_DOT(6)
                   EXO_DOT(7) EXO_DOT(8) EXO_DOT(9) EXO_DOT(10) EXO_DOT(11) "dec %[n]\n\tjnz 1b"
               : [n] "+r"(n)
               : [a] "x"(a), [b] "x"(b)
               : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8",
                 "xmm9", "xmm10", "xmm11");
#undef EXO_DOT
  return 12 * 32 * 2;
}

}  // namespace exo::kernels::cpu
#endif
