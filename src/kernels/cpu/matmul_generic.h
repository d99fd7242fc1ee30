/// The portable matrix kernels (Highway): every pair of activation and format on every instruction
/// set. Hand-written ones replace them pair by pair in find_matmul.
#pragma once

#include "kernels/cpu/matmul.h"

namespace exo::kernels::cpu {

/// Null for pairs that ops::LinearArgs doesn't allow. Precondition: isa is not `reference`.
MatmulKernel generic_matmul(Isa isa, DType activation, WeightFormat format);

}  // namespace exo::kernels::cpu
