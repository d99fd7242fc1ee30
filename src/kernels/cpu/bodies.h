/// The bodies of this room's op tables: one function per operation, told the instruction set by
/// table.cc. Each schedules threads; the vector code is behind matmul.h and vector.h.
#pragma once

#include "kernels/cpu/isa.h"
#include "ops/ops.h"

namespace exo::kernels::cpu {

Status linear(Isa isa, const ops::LinearArgs& args, ops::OpContext& ctx);

}  // namespace exo::kernels::cpu
