#include "kernels/cpu/matmul.h"

#include "kernels/cpu/matmul_generic.h"
#include "kernels/cpu/matmul_x86.h"

namespace exo::kernels::cpu {

MatmulKernel find_matmul(Isa isa, DType activation, WeightFormat format) {
#if defined(__x86_64__)
  if (MatmulKernel by_hand = find_matmul_x86(isa, activation, format)) return by_hand;
#endif
  return generic_matmul(isa, activation, format);
}

}  // namespace exo::kernels::cpu
