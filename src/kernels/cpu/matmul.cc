#include "kernels/cpu/matmul.h"

#include "kernels/cpu/matmul_generic.h"

namespace exo::kernels::cpu {

MatmulKernel find_matmul(Isa isa, DType activation, WeightFormat format) {
  return generic_matmul(isa, activation, format);
}

}  // namespace exo::kernels::cpu
