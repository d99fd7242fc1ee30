#if defined(__x86_64__)
#include <immintrin.h>

#include "kernels/cpu/roofline_chains.h"
#include "kernels/cpu/roofline_loops.h"

namespace exo::kernels::cpu {

double bf16_loop_avx512bf16(int64_t n, const LoopOperands& operands) {
  const __m512i a = _mm512_load_si512(operands.bf16[0]), b = _mm512_load_si512(operands.bf16[1]);
  EXO_CHAINS("vdpbf16ps", n, a, b);
  return 16 * 32 * 2;
}

}  // namespace exo::kernels::cpu
#endif
