#include <algorithm>

#include "kernels/cpu/bodies.h"
#include "kernels/cpu/matmul.h"
#include "kernels/cpu/schedule.h"
#include "kernels/cpu/vector.h"
#include "ops/checks.h"

namespace exo::kernels::cpu {
namespace {

constexpr int64_t kRowsPerTask = 64;

}  // namespace

Status head_linear(Isa isa, const ops::HeadLinearArgs& args, ops::OpContext& ctx) {
  ArenaScope scope(*ctx.arena);
  const VectorKernels& v = vector_kernels(isa);
  const int64_t n_rows = args.x.dim(0), n_heads = args.x.dim(1), n_in = args.x.dim(2);
  const int n_threads = ctx.pool->n_threads();
  const int64_t most = std::min(n_rows, kRowsPerTask);
  const int64_t packed_bytes = ops::packed_rows_bytes(args.activation, most, n_in);
  std::byte* scratch = ctx.arena->take_bytes(n_threads * (kMatmulScratchBytes + packed_bytes));
  if (scratch == nullptr)
    return ops::scratch_exhausted(
        "head_linear",
        ops::head_linear_scratch_bytes(n_rows, n_heads, n_in, args.out.dim(2), n_threads),
        *ctx.arena);
  const Matmul kernel = find_matmul(isa, args.activation, args.w[0].format);
  const int64_t n_blocks = ceil_div(n_rows, kRowsPerTask), n_panels = args.w[0].n_panels();
  // With few heads a head's outputs are shared out too, each task packing the rows for itself.
  const int64_t n_parts =
      std::clamp<int64_t>(ceil_div(2 * n_threads, n_heads * n_blocks), 1, ceil_div(n_panels, 2));
  const int64_t part = align_up(ceil_div(n_panels, n_parts), 2);
  const int64_t n_tasks = n_heads * n_blocks * n_parts;
  const auto panels_of = [&](int64_t task) {
    const int64_t h = task / n_parts % n_heads, panel = task % n_parts * part;
    if (task >= n_tasks || panel >= n_panels) return Panels();
    return Panels{&args.w[static_cast<size_t>(h)], panel, std::min(part, n_panels - panel)};
  };
  ctx.pool->parallel_for(n_tasks, [&](int64_t task, int thread) {
    const int64_t h = task / n_parts % n_heads, row = task / n_parts / n_heads * kRowsPerTask;
    const auto [w, panel, count] = panels_of(task);
    if (count == 0) return;
    std::byte* mine = scratch + thread * (kMatmulScratchBytes + packed_bytes);
    Arena arena(mine + kMatmulScratchBytes, packed_bytes);
    const int64_t n = std::min(kRowsPerTask, n_rows - row);
    const auto x = ops::take_packed_rows(args.activation, n, n_in, arena);
    for (int64_t r = 0; r < n; ++r)
      v.pack_row(args.x.row<float>(row + r) + h * args.x.stride(1), r, *x);
    kernel({.x = &*x,
            .row_begin = 0,
            .n_rows = n,
            .w = w,
            .panel_begin = panel,
            .n_panels = count,
            .out = args.out.row<float>(row) + h * args.out.stride(1) + panel * kPanelRows,
            .out_stride = args.out.stride(0),
            .accumulate = false,
            .scratch = mine,
            .next = panels_of(task + n_threads)});
  });
  return ok_status();
}

}  // namespace exo::kernels::cpu
