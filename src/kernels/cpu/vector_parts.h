/// The sources that fill a VectorKernels; vector.cc puts them together.
#pragma once

#include "kernels/cpu/vector.h"

namespace exo::kernels::cpu {

void set_row_kernels(Isa isa, VectorKernels& kernels);
void set_attention_kernels(Isa isa, VectorKernels& kernels);
void set_word_kernels(Isa isa, VectorKernels& kernels);  ///< of x86

}  // namespace exo::kernels::cpu
