#include "kernels/cpu/vector.h"

#include "kernels/cpu/vector_parts.h"

namespace exo::kernels::cpu {
namespace {

VectorKernels make(Isa isa) {
  VectorKernels k;
  set_row_kernels(isa, k);
  set_attention_kernels(isa, k);
  return k;
}

}  // namespace

const VectorKernels& vector_kernels(Isa isa) {
  // Each made only when asked for: even filling the table runs that instruction set's code.
  if (isa == Isa::avx2) {
    static const VectorKernels kNarrow = make(Isa::avx2);
    return kNarrow;
  }
  // AMX has no vector instructions of its own.
  static const VectorKernels kWide = make(isa == Isa::neon ? Isa::neon : Isa::avx512);
  return kWide;
}

}  // namespace exo::kernels::cpu
