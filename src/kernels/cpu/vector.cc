#include "kernels/cpu/vector.h"

#include "kernels/cpu/vector_parts.h"

namespace exo::kernels::cpu {
namespace {

VectorKernels make(Isa isa) {
  VectorKernels k;
  set_row_kernels(isa, k);
  set_attention_kernels(isa, k);
#if defined(__x86_64__)
  set_word_kernels(isa, k);
#endif
  return k;
}

}  // namespace

const VectorKernels& vector_kernels(Isa isa) {
  // Each made only when asked for: even filling the table runs that instruction set's code.
  // AVX-VNNI and AMX have no other vector instructions of their own.
  if (isa == Isa::avx2 || isa == Isa::avxvnni) {
    static const VectorKernels kNarrow = make(Isa::avx2);
    return kNarrow;
  }
  static const VectorKernels kWide = make(isa == Isa::neon ? Isa::neon : Isa::avx512);
  return kWide;
}

}  // namespace exo::kernels::cpu
