#include "kernels/cpu/matmul.h"

#include <algorithm>

#include "kernels/cpu/matmul_generic.h"
#include "kernels/cpu/matmul_x86.h"
#include "kernels/cpu/vector.h"

namespace exo::kernels::cpu {

void Matmul::operator()(const MatmulTask& task) const {
  kernel(task);
  if (task.n_rows > most_plain_rows) return;
  if (add_wide != nullptr) {
    const int32_t* n_wide = task.x->n_wide + task.row_begin;
    if (std::any_of(n_wide, n_wide + task.n_rows, [](int32_t n) { return n > 0; })) add_wide(task);
  }
  const Epilogue& e = task.epilogue;
  const int64_t row = task.row_begin, column = task.panel_begin * kPanelRows;
  if (e.kind == Epilogue::Kind::silu_mul) {
    v->silu_mul(task.out, task.out_stride, task.n_rows, task.n_panels / 2,
                e.to + row * e.stride + column / 2, e.stride);
  } else if (e.kind == Epilogue::Kind::add_scaled_rows) {
    v->add_scaled_rows(e.scales + row, task.out, task.out_stride, e.rows + row, task.n_rows,
                       std::min(task.n_panels * kPanelRows, task.w->n_out - column), e.to + column,
                       e.stride);
  }
}

Matmul find_matmul(Isa isa, DType activation, WeightFormat format) {
  const VectorKernels* v = &vector_kernels(isa);
  const MatmulKernel add_wide = activation == DType::i8 ? find_add_wide(isa) : nullptr;
#if defined(__x86_64__)
  if (MatmulKernel by_hand = find_matmul_x86(isa, activation, format))
    return {by_hand, add_wide, v, isa == Isa::amx ? amx_rows(format) - 1 : INT64_MAX};
#endif
  return {generic_matmul(isa, activation, format), add_wide, v};
}

}  // namespace exo::kernels::cpu
