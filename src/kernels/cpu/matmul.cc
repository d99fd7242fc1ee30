#include "kernels/cpu/matmul.h"

#include <algorithm>

#include "kernels/cpu/matmul_generic.h"
#include "kernels/cpu/matmul_x86.h"

namespace exo::kernels::cpu {

void Matmul::operator()(const MatmulTask& task) const {
  kernel(task);
  if (task.n_rows > most_plain_rows) return;
  if (add_wide != nullptr) {
    const int32_t* n_wide = task.x->n_wide + task.row_begin;
    if (std::any_of(n_wide, n_wide + task.n_rows, [](int32_t n) { return n > 0; })) add_wide(task);
  }
  if (task.take != nullptr)
    task.take(task.taker, {task.out, task.out_stride, task.row_begin, task.n_rows, task.panel_begin,
                           task.n_panels});
}

Matmul find_matmul(Isa isa, DType activation, WeightFormat format) {
  const MatmulKernel add_wide = activation == DType::i8 ? find_add_wide(isa) : nullptr;
#if defined(__x86_64__)
  if (MatmulKernel by_hand = find_matmul_x86(isa, activation, format))
    return {by_hand, add_wide, isa == Isa::amx ? amx_rows(format) - 1 : INT64_MAX};
#endif
  return {generic_matmul(isa, activation, format), add_wide};
}

}  // namespace exo::kernels::cpu
