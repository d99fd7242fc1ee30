/// The matrix micro-kernels behind ops::linear, ops::head_linear, ops::experts and the expanded
/// attention: one function per (activation type, weight format, instruction set), each in its own
/// file matmul_<activation>_<isa>.cc. Whoever schedules (linear.cc, experts.cc, mla_expanded.cc)
/// cuts the work into MatmulTasks; a kernel never threads.
#pragma once

#include <cstdint>

#include "kernels/cpu/isa.h"
#include "tensor/packed.h"

namespace exo::kernels::cpu {

struct VectorKernels;  // vector.h

/// Panels of a matrix.
struct Panels {
  const PackedMatrix* w = nullptr;
  int64_t begin = 0;
  int64_t count = 0;
};

/// What finished products become while the cache has them, instead of an output (CUTLASS's word).
/// r: rows of x, all of them, whatever rows a task has.
struct Epilogue {
  enum class Kind {
    none,
    silu_mul,         ///< of pairs of panels, gate and up: to[r, 16 * pair + i] = silu(gate) * up
    add_scaled_rows,  ///< to[rows[r], n] += scales[r] * product, n < w->n_out
  };
  Kind kind = Kind::none;
  float* to = nullptr;
  int64_t stride = 0;  ///< floats between rows of `to`
  const int32_t* rows = nullptr;
  const float* scales = nullptr;
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
  /// If there is one, `out` is a buffer that may be used for the products (Matmul::needs_buffer).
  /// Not with accumulate; silu_mul wants an even panel_begin and n_panels.
  Epilogue epilogue = {};
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
  MatmulKernel add_wide = nullptr;   ///< null where there can be none
  const VectorKernels* v = nullptr;  ///< for the epilogue
  /// Tasks of more rows are the kernel's alone, their wide values and epilogue as well.
  int64_t most_plain_rows = INT64_MAX;

  void operator()(const MatmulTask& task) const;
  /// Whether a task of so many rows with an epilogue needs `out`.
  bool needs_buffer(int64_t n_rows) const { return n_rows <= most_plain_rows; }
};

/// The product of these operands on this instruction set; its kernel is never null for the pairs
/// that ops::LinearArgs allows. Precondition: isa is not `reference`.
Matmul find_matmul(Isa isa, DType activation, WeightFormat format);

/// out += the wide values of a task's rows times their columns of int8 or int4 panels
/// (wide_columns.cc).
MatmulKernel find_add_wide(Isa isa);

}  // namespace exo::kernels::cpu
