#include <algorithm>

#include "kernels/cpu/bodies.h"
#include "kernels/cpu/matmul.h"
#include "kernels/cpu/schedule.h"
#include "ops/checks.h"

namespace exo::kernels::cpu {

Status linear(Isa isa, const ops::LinearArgs& args, ops::OpContext& ctx) {
  ArenaScope scope(*ctx.arena);
  const int n_threads = ctx.pool->n_threads();
  std::byte* scratch = ctx.arena->take_bytes(n_threads * kMatmulScratchBytes);
  if (scratch == nullptr)
    return ops::scratch_exhausted("linear", ops::linear_scratch_bytes(n_threads), *ctx.arena);
  const Matmul kernel = find_matmul(isa, args.x.dtype, args.w->format);
  const Blocks rows = row_blocks(args.x.n_rows);
  const Rounds panels = panel_tasks(*args.w, args.x.n_rows, n_threads);
  const int64_t n_tasks = rows.count * panels.count();
  const auto panels_of = [&](int64_t task) {
    if (task >= n_tasks) return Panels();
    const auto [begin, size] = panels.task(task / rows.count);
    return Panels{args.w, begin, size};
  };
  // Panels outermost: the tasks that run at one time share weights.
  ctx.pool->parallel_for(n_tasks, [&](int64_t task, int thread) {
    const int64_t row = task % rows.count * rows.size;
    const auto [w, panel, n_panels] = panels_of(task);
    kernel({.x = &args.x,
            .row_begin = row,
            .n_rows = std::min(rows.size, args.x.n_rows - row),
            .w = w,
            .panel_begin = panel,
            .n_panels = n_panels,
            .out = args.out.row<float>(row) + panel * kPanelRows,
            .out_stride = args.out.stride(0),
            .accumulate = args.accumulate,
            .scratch = scratch + thread * kMatmulScratchBytes,
            .next = panels_of(task + n_threads)});
  });
  return ok_status();
}

}  // namespace exo::kernels::cpu
