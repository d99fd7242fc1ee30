/// The matrix micro-kernels behind ops::linear, ops::head_linear, ops::experts and the expanded
/// attention: one function per (activation type, weight format, instruction set), each in its own
/// file matmul_<activation>_<isa>.cc. Whoever schedules (linear.cc, experts.cc, mla_expanded.cc)
/// cuts the work into MatmulTasks; a kernel never threads.
#pragma once

#include <cstdint>

#include "kernels/cpu/isa.h"
#include "tensor/packed.h"

namespace exo::kernels::cpu {

/// Panels of a matrix.
struct Panels {
  const PackedMatrix* w = nullptr;
  int64_t begin = 0;
  int64_t count = 0;
};

/// Finished products: [n_rows, 16 * n_panels], `stride` floats between rows.
struct Products {
  const float* data = nullptr;
  int64_t stride = 0;
  int64_t row = 0, n_rows = 0;  ///< of x
  int64_t panel = 0, n_panels = 0;
};

/// out[r - row_begin, n - 16 * panel_begin] (=, or += with accumulate) sum_k x[r, k] * w[n, k]
/// for r in [row_begin, row_begin + n_rows), n in the panels [panel_begin, panel_begin + n_panels),
/// n < w->n_out.
struct MatmulTask {
  const PackedRows* x = nullptr;
  int64_t row_begin = 0;  ///< a multiple of 16
  int64_t n_rows = 0;
  const PackedMatrix* w = nullptr;
  int64_t panel_begin = 0;
  int64_t n_panels = 0;
  float* out = nullptr;
  int64_t out_stride = 0;  ///< floats between rows of out
  bool accumulate = false;
  /// If set, all products are given to it, block by block and each once, while the cache has them:
  /// take(taker, block), an even number of panels each as far as there are. `out` is a buffer then
  /// that a kernel may use for them (Matmul::needs_buffer). Not with accumulate.
  void (*take)(const void* taker, const Products& block) = nullptr;
  const void* taker = nullptr;
  std::byte* scratch = nullptr;  ///< this thread's, kMatmulScratchBytes, 64-aligned
  /// What this thread multiplies with next, as far as known (of the same format; w null: not): its
  /// first bytes are asked for while the last of this task are used, so that the memory never
  /// waits.
  Panels next = {};
};
inline constexpr int64_t kMatmulScratchBytes = ops::kThreadScratchBytes;

using MatmulKernel = void (*)(const MatmulTask& task);

/// A task's product: the kernel's, of the rows as they are packed, and what the wide values of i8
/// rows add to it (ops/wide_columns.h).
struct Matmul {
  MatmulKernel kernel = nullptr;
  MatmulKernel add_wide = nullptr;  ///< null where there can be none
  /// Tasks of more rows are the kernel's alone: it adds their wide values and gives their products.
  int64_t most_plain_rows = INT64_MAX;

  void operator()(const MatmulTask& task) const;
  /// Whether a task of so many rows with `take` needs `out`.
  bool needs_buffer(int64_t n_rows) const { return n_rows <= most_plain_rows; }
};

/// The product of these operands on this instruction set; its kernel is never null for the pairs
/// that ops::LinearArgs allows.
Matmul find_matmul(Isa isa, DType activation, WeightFormat format);

/// out += the wide values of a task's rows times their columns of int8 or int4 panels
/// (wide_columns.cc).
MatmulKernel find_add_wide(Isa isa);

}  // namespace exo::kernels::cpu
