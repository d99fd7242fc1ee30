/// Gated MLPs in two waves of tasks, dynamically shared: (expert, block of gate and up panels) with
/// SiLU fused, then blocks of output columns, each running its experts in ascending order and the
/// shared one last, so that nothing is added by two threads and the order never changes.
///
/// Where there are several experts of several rows for each thread, a task of the first wave is all
/// of an expert's panels: the thread gathers the expert's rows, multiplies and packs them while its
/// own second-level cache has them.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <new>

#include "kernels/cpu/bodies.h"
#include "kernels/cpu/matmul.h"
#include "kernels/cpu/schedule.h"
#include "kernels/cpu/vector.h"
#include "ops/checks.h"

namespace exo::kernels::cpu {
namespace {

// What a thread's products are written to before they are used: 512 rows of 256 outputs.
constexpr int64_t kThreadBufferBytes = ops::kThreadScratchBytes;
constexpr int64_t kBufferFloats = kThreadBufferBytes / 4;
// Panel pairs of a product of many rows: a block of 512 fits the buffer.
constexpr int64_t kMostPairs = 4;
static_assert(kMaxTaskRows * kMostPairs * 2 * kPanelRows <= kBufferFloats);
constexpr int64_t kJobsForEachThread = 6;
// Jobs of at most so many rows are packed by the thread that finishes their hidden values.
constexpr int64_t kMaxRowsPackedAtOnce = 32;

// One expert with the rows that chose it (or the shared expert with all rows).
struct Job {
  const PackedMatrix* gate_up = nullptr;
  const PackedMatrix* down = nullptr;
  const int32_t* tokens = nullptr;  // [n_rows], null: row i is token i
  const float* weights = nullptr;   // [n_rows], null: 1
  PackedRows x;
  float* hidden = nullptr;  // [n_rows, hidden_stride]
  int64_t hidden_stride = 0;
  PackedRows packed_hidden;
  Blocks rows;                         // of the first wave's tasks
  bool alone = false;                  // a task is all pairs: it gathers and packs by itself
  int64_t first_task = 0;              // of packing
  std::atomic<int64_t> tasks_left{0};  // of the first wave
};

// A task of the first wave: rows of a job with panel pairs.
struct HiddenTask {  // 16 bytes: ops::experts_scratch_bytes
  int32_t job = 0, row = 0;
  int32_t pair = 0, n_pairs = 0;
};

struct Plan {
  Job* jobs = nullptr;  // routed ascending, then shared
  int64_t n_jobs = 0;
  int64_t n_routed_jobs = 0;
  HiddenTask* tasks = nullptr;
  int64_t n_tasks = 0;
  int n_threads = 1;
  std::byte* scratch = nullptr;  // per thread: the kernel's, then the buffer
  Matmul kernel;

  std::byte* kernel_scratch(int thread) const {
    return scratch + thread * (kMatmulScratchBytes + kThreadBufferBytes);
  }
  float* buffer(int thread) const {
    return reinterpret_cast<float*>(kernel_scratch(thread) + kMatmulScratchBytes);
  }
};

// -- planning -------------------------------------------------------------------------------------

// tokens and weights sorted by expert; counts[e] rows each.
struct Routing {
  int32_t* begin = nullptr;  // [n_experts + 1]
  int32_t* tokens = nullptr;
  float* weights = nullptr;
};

Result<Routing> sort_by_expert(const ops::ExpertsArgs& args, Arena& arena) {
  Routing r;
  const auto n_experts = static_cast<int64_t>(args.down.size());
  const int64_t n = args.ids.n_elements(), n_tokens = args.ids.dim(0), top_k = args.ids.dim(1);
  r.begin = arena.take<int32_t>(n_experts + 1);
  r.tokens = arena.take<int32_t>(n);
  r.weights = arena.take<float>(n);
  if (r.begin == nullptr || r.tokens == nullptr || r.weights == nullptr)
    return ops::scratch_exhausted("experts", n * 8 + n_experts * 4, arena);
  std::fill_n(r.begin, n_experts + 1, 0);
  for (int64_t i = 0; i < n_tokens; ++i) {
    for (int64_t k = 0; k < top_k; ++k) ++r.begin[args.ids.row<int32_t>(i)[k] + 1];
  }
  for (int64_t e = 0; e < n_experts; ++e) r.begin[e + 1] += r.begin[e];
  // begin[e] walks to its end while rows are placed, which is begin[e + 1]: shifted back below.
  for (int64_t i = 0; i < n_tokens; ++i) {
    for (int64_t k = 0; k < top_k; ++k) {
      const int32_t at = r.begin[args.ids.row<int32_t>(i)[k]]++;
      r.tokens[at] = static_cast<int32_t>(i);
      r.weights[at] = args.weights.row<float>(i)[k];
    }
  }
  for (int64_t e = n_experts; e > 0; --e) r.begin[e] = r.begin[e - 1];
  r.begin[0] = 0;
  return r;
}

Status take_hidden(Job& job, Arena& arena) {
  const int64_t n_inter = job.down->n_in;
  job.hidden_stride = align_up(n_inter, kPanelRows);
  job.hidden = arena.take<float>(job.x.n_rows * job.hidden_stride);
  if (job.hidden == nullptr)
    return ops::scratch_exhausted("experts", job.x.n_rows * job.hidden_stride * 4, arena);
  EXO_ASSIGN_OR_RETURN(job.packed_hidden,
                       ops::take_packed_rows(job.x.dtype, job.x.n_rows, n_inter, arena));
  return ok_status();
}

// Panel pairs of which `n_rows` rows' products fit the buffer.
int64_t most_pairs(int64_t n_rows) {
  return n_rows > kFewRows ? kMostPairs : kBufferFloats / (2 * kPanelRows * kFewRows);
}

// Calls f(rows of a job, pairs) for the first wave in the order of its tasks: weights of few rows
// in tasks that shrink (next_task); of many, a few pairs at a time, rows innermost: threads that
// run at one time share weights.
template <typename F>
void cut_first_wave(const Plan& plan, F&& f) {
  int64_t left = 0;
  for (int64_t j = 0; j < plan.n_jobs; ++j) left += plan.jobs[j].gate_up->n_panels() / 2;
  const int64_t fair = std::max<int64_t>(1, left / (4 * plan.n_threads));
  for (int64_t j = 0; j < plan.n_jobs; ++j) {
    const Job& job = plan.jobs[j];
    const int64_t n_rows = job.x.n_rows, n_pairs = job.gate_up->n_panels() / 2;
    for (int64_t pair = 0, n = 0; pair < n_pairs; pair += n, left -= n) {
      if (job.alone) {
        n = n_pairs;
      } else if (n_rows > kFewRows) {
        n = std::min(fair, kMostPairs);
      } else {
        const int64_t least = ceil_div(kTaskWeightBytes, 2 * job.gate_up->panel_bytes());
        n = next_task(left, std::min(least, fair), most_pairs(n_rows), plan.n_threads);
      }
      n = std::min(n, n_pairs - pair);
      for (int64_t row = 0; row < n_rows; row += job.rows.size)
        f(HiddenTask{static_cast<int32_t>(j), static_cast<int32_t>(row), static_cast<int32_t>(pair),
                     static_cast<int32_t>(n)});
    }
  }
}

Status add_job(Plan& plan, const PackedMatrix& gate_up, const PackedMatrix& down,
               const PackedRows& x, Arena& arena) {
  Job& job = *new (plan.jobs + plan.n_jobs++) Job;
  job.gate_up = &gate_up;
  job.down = &down;
  job.x = x;
  return take_hidden(job, arena);
}

Status add_routed_jobs(const ops::ExpertsArgs& args, Plan& plan, ops::OpContext& ctx) {
  EXO_ASSIGN_OR_RETURN(const Routing routing, sort_by_expert(args, *ctx.arena));
  for (size_t e = 0; e < args.down.size(); ++e) {
    const int64_t begin = routing.begin[e], n = routing.begin[e + 1] - begin;
    if (n == 0) continue;
    PackedRows x = args.x;
    if (args.x.n_rows > 1) {
      EXO_ASSIGN_OR_RETURN(x, ops::take_packed_rows(x.dtype, n, x.n_cols, *ctx.arena));
    }
    EXO_RETURN_IF_ERROR(add_job(plan, args.gate_up[e], args.down[e], x, *ctx.arena));
    plan.jobs[plan.n_jobs - 1].tokens = routing.tokens + begin;
    plan.jobs[plan.n_jobs - 1].weights = routing.weights + begin;
  }
  plan.n_routed_jobs = plan.n_jobs;
  return ok_status();
}

Result<Plan> make_plan(Isa isa, const ops::ExpertsArgs& args, ops::OpContext& ctx) {
  Plan plan;
  const int n_threads = plan.n_threads = ctx.pool->n_threads();
  const auto n_experts = static_cast<int64_t>(args.ids.empty() ? 0 : args.down.size());
  const int64_t most_jobs = std::min(n_experts, args.ids.n_elements()) + 1;
  plan.jobs = ctx.arena->take<Job>(most_jobs);
  plan.scratch = ctx.arena->take_bytes(n_threads * (kMatmulScratchBytes + kThreadBufferBytes));
  if (plan.jobs == nullptr || plan.scratch == nullptr)
    return ops::scratch_exhausted("experts", n_threads * (kMatmulScratchBytes + kThreadBufferBytes),
                                  *ctx.arena);
  if (!args.ids.empty()) EXO_RETURN_IF_ERROR(add_routed_jobs(args, plan, ctx));
  if (args.shared_down != nullptr)
    EXO_RETURN_IF_ERROR(add_job(plan, *args.shared_gate_up, *args.shared_down, args.x, *ctx.arena));
  const WeightFormat format = n_experts > 0 ? args.gate_up[0].format : args.shared_gate_up->format;
  plan.kernel = find_matmul(isa, args.x.dtype, format);
  for (int64_t j = 0; j < plan.n_jobs; ++j) {
    Job& job = plan.jobs[j];
    job.rows = row_blocks(job.x.n_rows);
    job.alone = job.tokens != nullptr && job.x.n_rows > 1 && job.rows.count == 1 &&
                plan.n_jobs >= kJobsForEachThread * n_threads;
  }
  cut_first_wave(plan, [&](const HiddenTask&) { ++plan.n_tasks; });
  plan.tasks = ctx.arena->take<HiddenTask>(plan.n_tasks);
  if (plan.tasks == nullptr)
    return ops::scratch_exhausted(
        "experts", plan.n_tasks * static_cast<int64_t>(sizeof(HiddenTask)), *ctx.arena);
  HiddenTask* task = plan.tasks;
  cut_first_wave(plan, [&](const HiddenTask& t) {
    *task++ = t;
    plan.jobs[t.job].tasks_left.fetch_add(1, std::memory_order_relaxed);
  });
  return plan;
}

// -- the rows of each expert ----------------------------------------------------------------------

void gather_row(const PackedRows& from, int64_t from_row, const PackedRows& to, int64_t to_row) {
  if (from.dtype == DType::f32) {
    std::memcpy(to.data + to_row * to.row_bytes(), from.data + from_row * from.row_bytes(),
                static_cast<size_t>(from.row_bytes()));
    return;
  }
  for (int64_t t = 0; t < from.row_bytes() / 64; ++t)
    std::memcpy(to.line(to_row, t), from.line(from_row, t), 64);
  if (from.dtype != DType::i8) return;
  to.scales[to_row] = from.scales[from_row];
  const int64_t n_groups = from.n_cols_padded() / kInt4GroupCols;
  std::copy_n(from.group_sums + from_row * n_groups, n_groups, to.group_sums + to_row * n_groups);
  to.n_wide[to_row] = from.n_wide[from_row];
  std::copy_n(from.wide_of(from_row), from.n_wide[from_row], to.wide_of(to_row));
}

void gather_job(const ops::ExpertsArgs& args, const Job& job) {
  for (int64_t r = 0; r < job.x.n_rows; ++r) gather_row(args.x, job.tokens[r], job.x, r);
}

void gather(const ops::ExpertsArgs& args, const Plan& plan, ThreadPool& pool) {
  if (args.x.n_rows == 1) return;  // jobs use the one row itself
  const bool all_alone = std::all_of(plan.jobs, plan.jobs + plan.n_routed_jobs,
                                     [](const Job& job) { return job.alone; });
  if (all_alone) return;
  pool.parallel_for(plan.n_routed_jobs, [&](int64_t j, int) {
    if (!plan.jobs[j].alone) gather_job(args, plan.jobs[j]);
  });
}

// -- the first wave -------------------------------------------------------------------------------

void pack_hidden(const Job& job, int64_t begin, int64_t end, const VectorKernels& v) {
  for (int64_t r = begin; r < end; ++r)
    v.pack_row(job.hidden + r * job.hidden_stride, r, job.packed_hidden);
}

Panels hidden_panels(const Plan& plan, int64_t task) {
  if (task >= plan.n_tasks) return {};
  const HiddenTask& t = plan.tasks[task];
  return {plan.jobs[t.job].gate_up, 2 * t.pair, 2 * t.n_pairs};
}

// Rows [row, row + n_rows) of the job with some panel pairs, whose products fit the buffer.
void run_hidden_pairs(const Plan& plan, const Job& job, int64_t row, int64_t n_rows, Panels panels,
                      Panels next, int thread, const VectorKernels& v) {
  const int64_t pair = panels.begin / 2, n_pairs = panels.count / 2;
  float* buffer = plan.buffer(thread);
  plan.kernel({.x = &job.x,
               .row_begin = row,
               .n_rows = n_rows,
               .w = panels.w,
               .panel_begin = panels.begin,
               .n_panels = panels.count,
               .out = buffer,
               .out_stride = 32 * n_pairs,
               .accumulate = false,
               .scratch = plan.kernel_scratch(thread),
               .next = next});
  for (int64_t r = 0; r < n_rows; ++r)
    v.silu_mul(buffer + r * 32 * n_pairs, job.hidden + (row + r) * job.hidden_stride + pair * 16,
               n_pairs);
}

void run_hidden_task(const ops::ExpertsArgs& args, const Plan& plan, int64_t task, int thread,
                     const VectorKernels& v) {
  const int64_t row = plan.tasks[task].row;
  Job& job = plan.jobs[plan.tasks[task].job];
  const Panels panels = hidden_panels(plan, task);
  const Panels next = hidden_panels(plan, task + plan.n_threads);
  const int64_t n_rows = std::min(job.rows.size, job.x.n_rows - row);
  if (job.alone) gather_job(args, job);
  const int64_t step = 2 * most_pairs(n_rows), end = panels.begin + panels.count;
  for (int64_t panel = panels.begin; panel < end; panel += step) {
    const int64_t left = end - panel - step;
    run_hidden_pairs(plan, job, row, n_rows, {panels.w, panel, std::min(step, end - panel)},
                     left > 0 ? Panels{panels.w, panel + step, std::min(step, left)} : next, thread,
                     v);
  }
  if (job.tasks_left.fetch_sub(1, std::memory_order_acq_rel) == 1 &&
      (job.alone || job.x.n_rows <= kMaxRowsPackedAtOnce))
    pack_hidden(job, 0, job.x.n_rows, v);
}

// Jobs too large for one thread to pack alone.
void pack_large_jobs(const Plan& plan, ThreadPool& pool, const VectorKernels& v) {
  int64_t n_tasks = 0;
  for (int64_t j = 0; j < plan.n_jobs; ++j) {
    Job& job = plan.jobs[j];
    job.first_task = n_tasks;
    if (!job.alone && job.x.n_rows > kMaxRowsPackedAtOnce) n_tasks += ceil_div(job.x.n_rows, 16);
  }
  pool.parallel_for(n_tasks, [&](int64_t task, int) {
    const Job& job = *(std::upper_bound(plan.jobs, plan.jobs + plan.n_jobs, task,
                                        [](int64_t t, const Job& j) { return t < j.first_task; }) -
                       1);
    const int64_t row = (task - job.first_task) * 16;
    pack_hidden(job, row, std::min(row + 16, job.x.n_rows), v);
  });
}

// -- the second wave ------------------------------------------------------------------------------

// Output columns of the panels [panel, panel + n_panels), all tokens. `next`: the panels of this
// thread's next task.
void run_down_task(const ops::ExpertsArgs& args, const Plan& plan, Panels mine, Panels next,
                   int thread, const VectorKernels& v) {
  const auto [_, panel, n_panels] = mine;
  const int64_t column = panel * kPanelRows;
  const int64_t n_columns = std::min(n_panels * kPanelRows, args.out.dim(1) - column);
  const int64_t stride = n_panels * kPanelRows;
  const int64_t most_rows = kBufferFloats / stride / 16 * 16;
  float* buffer = plan.buffer(thread);
  if (plan.n_routed_jobs > 0) {
    for (int64_t i = 0; i < args.out.dim(0); ++i)
      std::fill_n(args.out.row<float>(i) + column, n_columns, 0.0f);
  }
  for (int64_t j = 0; j < plan.n_jobs; ++j) {
    const Job& job = plan.jobs[j];
    for (int64_t row = 0; row < job.x.n_rows; row += most_rows) {
      const int64_t n_rows = std::min(most_rows, job.x.n_rows - row);
      MatmulTask task = {.x = &job.packed_hidden,
                         .row_begin = row,
                         .n_rows = n_rows,
                         .w = job.down,
                         .panel_begin = panel,
                         .n_panels = n_panels,
                         .scratch = plan.kernel_scratch(thread)};
      task.next = row + most_rows < job.x.n_rows ? Panels{job.down, panel, n_panels}
                  : j + 1 < plan.n_jobs          ? Panels{plan.jobs[j + 1].down, panel, n_panels}
                                                 : next;
      if (job.tokens == nullptr) {
        task.out = args.out.row<float>(row) + column;
        task.out_stride = args.out.stride(0);
        task.accumulate = plan.n_routed_jobs > 0;
        plan.kernel(task);
        continue;
      }
      task.out = buffer;
      task.out_stride = stride;
      plan.kernel(task);
      for (int64_t r = 0; r < n_rows; ++r)
        v.add_scaled(job.weights[row + r], buffer + r * stride,
                     args.out.row<float>(job.tokens[row + r]) + column, n_columns);
    }
  }
}

}  // namespace

Status experts(Isa isa, const ops::ExpertsArgs& args, ops::OpContext& ctx) {
  ArenaScope scope(*ctx.arena);
  const VectorKernels& v = vector_kernels(isa);
  EXO_ASSIGN_OR_RETURN(const Plan plan, make_plan(isa, args, ctx));
  gather(args, plan, *ctx.pool);
  ctx.pool->parallel_for(plan.n_tasks, [&](int64_t task, int thread) {
    run_hidden_task(args, plan, task, thread, v);
  });
  pack_large_jobs(plan, *ctx.pool, v);
  const PackedMatrix& down = *plan.jobs[0].down;
  // A block reads every expert's hidden rows once: wide while much is left.
  const Rounds blocks(down.n_panels(), args.x.n_rows <= kFewRows ? 4 : 2,
                      args.x.n_rows <= kFewRows ? 64 : 16, plan.n_threads);
  const auto panels_of = [&](int64_t b) {
    if (b >= blocks.count()) return Panels();
    const auto [begin, size] = blocks.task(b);
    return Panels{&down, begin, size};
  };
  ctx.pool->parallel_for(blocks.count(), [&](int64_t b, int thread) {
    run_down_task(args, plan, panels_of(b), panels_of(b + plan.n_threads), thread, v);
  });
  return ok_status();
}

}  // namespace exo::kernels::cpu
