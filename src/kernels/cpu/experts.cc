/// Gated MLPs in two waves of tasks, dynamically shared: (expert, block of gate and up panels) with
/// SiLU fused, then blocks of output columns, each running its experts in ascending order and the
/// shared one last, so that nothing is added by two threads and the order never changes.
///
/// Of few rows, whose time is the weights', both waves are one list: every expert's gate and up,
/// then every expert's down, each in runs as long as they can be. A product of down waits for its
/// expert's hidden values, which are done long before, and goes to memory of its own; the tokens'
/// sums are made of those at the end.
///
/// Where there are several experts of several rows for each thread, a task of the first wave is all
/// of an expert's panels: the thread gathers the expert's rows, multiplies and packs them in memory
/// of its own, the same for each expert, which stays in its second-level cache. In the second wave
/// of many rows threads go through the experts together, each expert's blocks of columns one after
/// the other (lanes.h): its hidden rows, which have to come from the shared cache, come once.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <new>
#include <numeric>

#include "kernels/cpu/bodies.h"
#include "kernels/cpu/lanes.h"
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
// Rows asked for before they are gathered.
constexpr int64_t kGatherAhead = 2;
// Fewer jobs than that aren't one task each.
constexpr int64_t kJobsForEachThread = 6;
// Of many rows' output columns: lanes (as long as each has a pair of panels), and panels of a lane.
constexpr int64_t kLanesForEachThread = 4;
constexpr int64_t kMostLanePanels = 16;
// Products of few rows that one thread adds up; another wouldn't be quicker.
constexpr int64_t kAddTaskBytes = 64 << 10;
// Jobs of at most so many rows are packed by the thread that finishes their hidden values.
constexpr int64_t kMaxRowsPackedAtOnce = 32;

// Rows on their way to an expert's hidden values.
struct Rows {
  PackedRows x;
  float* hidden = nullptr;  // [n_rows, stride]
  int64_t stride = 0;
};
static_assert(sizeof(Rows) <= 128);  // ops::experts_scratch_bytes

// One expert with the rows that chose it (or the shared expert with all rows).
struct Job {
  const PackedMatrix* gate_up = nullptr;
  const PackedMatrix* down = nullptr;
  int64_t n_rows = 0;
  const int32_t* tokens = nullptr;  // [n_rows] whose products are added, times weights; null: there
  const float* weights = nullptr;   //   is no other expert, and the products are the output
  bool alone = false;  // a task is all pairs: it gathers and packs by itself, in its thread's rows
  Rows rows;           // unless alone
  PackedRows packed_hidden;
  float* products = nullptr;           // of few rows with down: [n_rows, hidden size]
  Blocks blocks;                       // of rows: the first wave's tasks
  int64_t first_task = 0;              // of packing
  std::atomic<int64_t> tasks_left{0};  // of the first wave
  std::atomic<bool> packed{false};     // of few rows: the hidden values are
};

// Rows of a job with panels of gate and up, or of few rows with those of down.
struct Task {  // 16 bytes: ops::experts_scratch_bytes
  int32_t job = 0, row = 0;
  int32_t panel = 0, n_panels = 0;
};

// A step of the second wave: rows of a job with some panels of output columns.
struct DownStep {
  int32_t job = 0, row = 0;
};

struct Plan {
  Job* jobs = nullptr;  // routed ascending, then shared
  int64_t n_jobs = 0;
  int64_t n_routed_jobs = 0;
  bool few_rows = false;
  Task* tasks = nullptr;  // of gate and up, then (few_rows) of down
  int64_t n_hidden_tasks = 0, n_down_tasks = 0;
  Rows* thread_rows = nullptr;  // [n_threads], of jobs alone
  int n_threads = 1;
  std::byte* scratch = nullptr;  // per thread: the kernel's, then the buffer
  Matmul kernel;

  std::byte* kernel_scratch(int thread) const {
    return scratch + thread * (kMatmulScratchBytes + kThreadBufferBytes);
  }
  float* buffer(int thread) const {
    return reinterpret_cast<float*>(kernel_scratch(thread) + kMatmulScratchBytes);
  }
  Rows rows_of(const Job& job, int thread) const {
    if (!job.alone) return job.rows;
    Rows rows = thread_rows[thread];
    rows.x.n_rows = job.n_rows;
    return rows;
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

// Panels of gate and up of which `n_rows` rows' products fit the buffer.
int64_t most_panels(int64_t n_rows) {
  return n_rows > kFewRows ? 2 * kMostPairs : kBufferFloats / (kPanelRows * kFewRows);
}

// Calls hidden(task) for the tasks of gate and up in their order, then of few rows down(task) for
// those of down.
//
// Weights of few rows stream best in long runs: tasks are large while there is much to do before a
// thread has to wait for another, and shrink (next_task) before it has, at the end and where the
// first product of down wants hidden values that are still being made. Of many rows, tasks are a
// few pairs of panels, rows innermost: threads that run at one time share weights.
template <typename F, typename G>
void cut(const Plan& plan, F&& hidden, G&& down) {
  int64_t n_bytes = 0;  // to read before somebody waits
  const auto cut_matrix = [&](int64_t j, const PackedMatrix& w, int64_t whole, auto&& f) {
    const Job& job = plan.jobs[j];
    const int64_t n_panels = w.n_panels(), bytes = w.panel_bytes();
    const int64_t fair = std::max<int64_t>(2, n_bytes / bytes / (4 * plan.n_threads) / 2 * 2);
    const int64_t least = std::min(fair, ceil_div(kTaskWeightBytes, bytes));
    for (int64_t panel = 0, n = 0; panel < n_panels; panel += n, n_bytes -= n * bytes) {
      n = whole > 0               ? whole
          : job.n_rows > kFewRows ? std::min(fair, 2 * kMostPairs)
                                  : next_task(n_bytes / bytes, least, n_panels, plan.n_threads);
      n = std::min(n, n_panels - panel);
      for (int64_t row = 0; row < job.n_rows; row += job.blocks.size)
        f(Task{static_cast<int32_t>(j), static_cast<int32_t>(row), static_cast<int32_t>(panel),
               static_cast<int32_t>(n)});
    }
  };
  for (int64_t j = 0; j < plan.n_jobs; ++j) n_bytes += plan.jobs[j].gate_up->weight_bytes();
  for (int64_t j = 0; j < plan.n_jobs; ++j) {
    const Job& job = plan.jobs[j];
    cut_matrix(j, *job.gate_up, job.alone ? job.gate_up->n_panels() : 0, hidden);
    if (plan.few_rows) n_bytes += job.down->weight_bytes();
  }
  if (!plan.few_rows) return;
  for (int64_t j = 0; j < plan.n_jobs; ++j) cut_matrix(j, *plan.jobs[j].down, 0, down);
}

Job& add_job(Plan& plan, const PackedMatrix& gate_up, const PackedMatrix& down, int64_t n_rows) {
  Job& job = *new (plan.jobs + plan.n_jobs++) Job;
  job.gate_up = &gate_up;
  job.down = &down;
  job.n_rows = n_rows;
  job.blocks = row_blocks(n_rows);
  return job;
}

// The shared expert is added to all tokens, once.
Status add_shared_job(const ops::ExpertsArgs& args, Plan& plan, Arena& arena) {
  Job& job = add_job(plan, *args.shared_gate_up, *args.shared_down, args.x.n_rows);
  if (plan.n_routed_jobs == 0) return ok_status();
  auto* tokens = arena.take<int32_t>(job.n_rows);
  auto* weights = arena.take<float>(job.n_rows);
  if (tokens == nullptr || weights == nullptr)
    return ops::scratch_exhausted("experts", job.n_rows * 8, arena);
  std::iota(tokens, tokens + job.n_rows, 0);
  std::fill_n(weights, job.n_rows, 1.0f);
  job.tokens = tokens;
  job.weights = weights;
  return ok_status();
}

Status add_routed_jobs(const ops::ExpertsArgs& args, Plan& plan, Arena& arena) {
  EXO_ASSIGN_OR_RETURN(const Routing routing, sort_by_expert(args, arena));
  for (size_t e = 0; e < args.down.size(); ++e) {
    const int64_t begin = routing.begin[e], n = routing.begin[e + 1] - begin;
    if (n == 0) continue;
    Job& job = add_job(plan, args.gate_up[e], args.down[e], n);
    job.tokens = routing.tokens + begin;
    job.weights = routing.weights + begin;
  }
  plan.n_routed_jobs = plan.n_jobs;
  return ok_status();
}

Status take_hidden(Rows& rows, int64_t n_rows, int64_t n_inter, Arena& arena) {
  rows.stride = align_up(n_inter, kPanelRows);
  rows.hidden = arena.take<float>(n_rows * rows.stride);
  if (rows.hidden == nullptr)
    return ops::scratch_exhausted("experts", n_rows * rows.stride * 4, arena);
  return ok_status();
}

// Which jobs are alone: all of several but not many rows, if there are enough of them and the
// threads' rows need no more memory than theirs.
Status choose_alone(const PackedRows& x, Plan& plan, Arena& arena) {
  if (plan.n_jobs < kJobsForEachThread * plan.n_threads) return ok_status();
  int64_t n_rows = 0, most_rows = 0;
  for (int64_t j = 0; j < plan.n_routed_jobs; ++j) {
    Job& job = plan.jobs[j];
    job.alone = job.n_rows > 1 && job.blocks.count == 1;
    if (!job.alone) continue;
    n_rows += job.n_rows;
    most_rows = std::max(most_rows, job.n_rows);
  }
  if (most_rows == 0 || plan.n_threads * most_rows > n_rows) {
    for (int64_t j = 0; j < plan.n_routed_jobs; ++j) plan.jobs[j].alone = false;
    return ok_status();
  }
  plan.thread_rows = arena.take<Rows>(plan.n_threads);
  if (plan.thread_rows == nullptr)
    return ops::scratch_exhausted("experts", plan.n_threads * static_cast<int64_t>(sizeof(Rows)),
                                  arena);
  for (int t = 0; t < plan.n_threads; ++t) {
    Rows& rows = *new (plan.thread_rows + t) Rows;
    EXO_ASSIGN_OR_RETURN(rows.x, ops::take_packed_rows(x.dtype, most_rows, x.n_cols, arena));
    EXO_RETURN_IF_ERROR(take_hidden(rows, most_rows, plan.jobs[0].down->n_in, arena));
  }
  return ok_status();
}

Status take_rows(const PackedRows& x, bool routed, Job& job, Arena& arena) {
  const int64_t n_inter = job.down->n_in;
  EXO_ASSIGN_OR_RETURN(job.packed_hidden,
                       ops::take_packed_rows(x.dtype, job.n_rows, n_inter, arena));
  if (job.alone) return ok_status();
  job.rows.x = x;
  if (routed && x.n_rows > 1) {
    EXO_ASSIGN_OR_RETURN(job.rows.x, ops::take_packed_rows(x.dtype, job.n_rows, x.n_cols, arena));
  }
  return take_hidden(job.rows, job.n_rows, n_inter, arena);
}

Status take_products(int64_t n_cols, Plan& plan, Arena& arena) {
  for (int64_t j = 0; j < plan.n_jobs; ++j) {
    Job& job = plan.jobs[j];
    job.products = arena.take<float>(job.n_rows * n_cols);
    if (job.products == nullptr)
      return ops::scratch_exhausted("experts", job.n_rows * n_cols * 4, arena);
  }
  return ok_status();
}

Result<Plan> make_plan(Isa isa, const ops::ExpertsArgs& args, ops::OpContext& ctx) {
  Plan plan;
  const int n_threads = plan.n_threads = ctx.pool->n_threads();
  const auto n_experts = static_cast<int64_t>(args.ids.empty() ? 0 : args.down.size());
  const int64_t most_jobs = std::min(n_experts, args.ids.n_elements()) + 1;
  plan.few_rows = args.x.n_rows <= kFewRows;
  plan.jobs = ctx.arena->take<Job>(most_jobs);
  plan.scratch = ctx.arena->take_bytes(n_threads * (kMatmulScratchBytes + kThreadBufferBytes));
  if (plan.jobs == nullptr || plan.scratch == nullptr)
    return ops::scratch_exhausted("experts", n_threads * (kMatmulScratchBytes + kThreadBufferBytes),
                                  *ctx.arena);
  if (!args.ids.empty()) EXO_RETURN_IF_ERROR(add_routed_jobs(args, plan, *ctx.arena));
  if (args.shared_down != nullptr) EXO_RETURN_IF_ERROR(add_shared_job(args, plan, *ctx.arena));
  EXO_RETURN_IF_ERROR(choose_alone(args.x, plan, *ctx.arena));
  for (int64_t j = 0; j < plan.n_jobs; ++j)
    EXO_RETURN_IF_ERROR(take_rows(args.x, j < plan.n_routed_jobs, plan.jobs[j], *ctx.arena));
  if (plan.few_rows && plan.n_routed_jobs > 0)
    EXO_RETURN_IF_ERROR(take_products(args.out.dim(1), plan, *ctx.arena));
  const WeightFormat format = n_experts > 0 ? args.gate_up[0].format : args.shared_gate_up->format;
  plan.kernel = find_matmul(isa, args.x.dtype, format);
  cut(
      plan, [&](const Task&) { ++plan.n_hidden_tasks; }, [&](const Task&) { ++plan.n_down_tasks; });
  const int64_t n_tasks = plan.n_hidden_tasks + plan.n_down_tasks;
  plan.tasks = ctx.arena->take<Task>(n_tasks);
  if (plan.tasks == nullptr)
    return ops::scratch_exhausted("experts", n_tasks * static_cast<int64_t>(sizeof(Task)),
                                  *ctx.arena);
  Task* next = plan.tasks;
  cut(
      plan,
      [&](const Task& task) {
        *next++ = task;
        plan.jobs[task.job].tasks_left.fetch_add(1, std::memory_order_relaxed);
      },
      [&](const Task& task) { *next++ = task; });
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

void gather_job(const ops::ExpertsArgs& args, const Job& job, const PackedRows& to) {
  for (int64_t r = 0; r < job.n_rows; ++r) {
    if (r + kGatherAhead < job.n_rows) {
      const int32_t row = job.tokens[r + kGatherAhead];
      for (int64_t t = 0; t < args.x.row_bytes() / 64; ++t) __builtin_prefetch(args.x.line(row, t));
    }
    gather_row(args.x, job.tokens[r], to, r);
  }
}

void gather(const ops::ExpertsArgs& args, const Plan& plan, ThreadPool& pool) {
  if (args.x.n_rows == 1) return;  // jobs use the one row itself
  const bool all_alone = std::all_of(plan.jobs, plan.jobs + plan.n_routed_jobs,
                                     [](const Job& job) { return job.alone; });
  if (all_alone) return;
  pool.parallel_for(plan.n_routed_jobs, [&](int64_t j, int) {
    if (!plan.jobs[j].alone) gather_job(args, plan.jobs[j], plan.jobs[j].rows.x);
  });
}

// -- the first wave -------------------------------------------------------------------------------

void pack_hidden(const Rows& rows, const Job& job, int64_t begin, int64_t end,
                 const VectorKernels& v) {
  for (int64_t r = begin; r < end; ++r)
    v.pack_row(rows.hidden + r * rows.stride, r, job.packed_hidden);
}

// What a task multiplies with; none where there is no such task.
Panels panels_of(const Plan& plan, int64_t task) {
  if (task >= plan.n_hidden_tasks + plan.n_down_tasks) return {};
  const Task& t = plan.tasks[task];
  const Job& job = plan.jobs[t.job];
  return {task < plan.n_hidden_tasks ? job.gate_up : job.down, t.panel, t.n_panels};
}

void run_hidden_task(const ops::ExpertsArgs& args, const Plan& plan, int64_t task, int thread,
                     const VectorKernels& v) {
  const int64_t row = plan.tasks[task].row;
  Job& job = plan.jobs[plan.tasks[task].job];
  const Panels panels = panels_of(plan, task);
  const Panels next = panels_of(plan, task + plan.n_threads);
  const int64_t n_rows = std::min(job.blocks.size, job.n_rows - row);
  const Rows rows = plan.rows_of(job, thread);
  if (job.alone) gather_job(args, job, rows.x);
  const int64_t end = panels.begin + panels.count;
  const int64_t step = plan.kernel.needs_buffer(n_rows) ? most_panels(n_rows) : panels.count;
  for (int64_t panel = panels.begin; panel < end; panel += step) {
    const int64_t n_panels = std::min(step, end - panel), left = end - panel - n_panels;
    plan.kernel(
        {.x = &rows.x,
         .row_begin = row,
         .n_rows = n_rows,
         .w = panels.w,
         .panel_begin = panel,
         .n_panels = n_panels,
         .out = plan.buffer(thread),
         .out_stride = n_panels * kPanelRows,
         .epilogue = {.kind = Epilogue::Kind::silu_mul, .to = rows.hidden, .stride = rows.stride},
         .scratch = plan.kernel_scratch(thread),
         .next = left > 0 ? Panels{panels.w, panel + step, std::min(step, left)} : next});
  }
  if (job.tasks_left.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
  if (job.alone || job.n_rows <= kMaxRowsPackedAtOnce) {
    pack_hidden(rows, job, 0, job.n_rows, v);
    job.packed.store(true, std::memory_order_release);
    job.packed.notify_all();
  }
}

// Jobs too large for one thread to pack alone.
void pack_large_jobs(const Plan& plan, ThreadPool& pool, const VectorKernels& v) {
  int64_t n_tasks = 0;
  for (int64_t j = 0; j < plan.n_jobs; ++j) {
    Job& job = plan.jobs[j];
    job.first_task = n_tasks;
    if (!job.alone && job.n_rows > kMaxRowsPackedAtOnce) n_tasks += ceil_div(job.n_rows, 16);
  }
  pool.parallel_for(n_tasks, [&](int64_t task, int) {
    const Job& job = *(std::upper_bound(plan.jobs, plan.jobs + plan.n_jobs, task,
                                        [](int64_t t, const Job& j) { return t < j.first_task; }) -
                       1);
    const int64_t row = (task - job.first_task) * 16;
    pack_hidden(job.rows, job, row, std::min(row + 16, job.n_rows), v);
  });
}

// -- down of few rows -----------------------------------------------------------------------------

void run_down_task(const ops::ExpertsArgs& args, const Plan& plan, int64_t task, int thread) {
  const Job& job = plan.jobs[plan.tasks[task].job];
  const Panels panels = panels_of(plan, task);
  const bool added = job.products != nullptr;
  float* out = added ? job.products : args.out.row<float>(0);
  wait_until(job.packed, [](bool packed) { return packed; });
  plan.kernel({.x = &job.packed_hidden,
               .row_begin = 0,
               .n_rows = job.n_rows,
               .w = panels.w,
               .panel_begin = panels.begin,
               .n_panels = panels.count,
               .out = out + panels.begin * kPanelRows,
               .out_stride = added ? args.out.dim(1) : args.out.stride(0),
               .scratch = plan.kernel_scratch(thread),
               .next = panels_of(plan, task + plan.n_threads)});
}

// What is added to these columns of the output begins at zero.
void clear_columns(const ops::ExpertsArgs& args, const Plan& plan, int64_t panel,
                   int64_t n_panels) {
  if (plan.n_routed_jobs == 0) return;
  const int64_t column = panel * kPanelRows;
  const int64_t n = std::min(n_panels * kPanelRows, args.out.dim(1) - column);
  for (int64_t i = 0; i < args.out.dim(0); ++i)
    std::fill_n(args.out.row<float>(i) + column, n, 0.0f);
}

// out[token] = the products of its experts times their weights, in the jobs' order.
void add_products(const ops::ExpertsArgs& args, const Plan& plan, ThreadPool& pool,
                  const VectorKernels& v) {
  if (plan.n_routed_jobs == 0) return;  // it is the shared one's already
  const int64_t n_cols = args.out.dim(1);
  int64_t n_rows = 0;
  for (int64_t j = 0; j < plan.n_jobs; ++j) n_rows += plan.jobs[j].n_rows;
  const int64_t n_blocks =
      std::clamp<int64_t>(n_rows * n_cols * 4 / kAddTaskBytes, 1, plan.n_threads);
  const int64_t size = align_up(ceil_div(n_cols, n_blocks), kPanelRows);
  pool.parallel_for(ceil_div(n_cols, size), [&](int64_t block, int) {
    const int64_t column = block * size, n = std::min(size, n_cols - column);
    clear_columns(args, plan, column / kPanelRows, size / kPanelRows);
    for (int64_t j = 0; j < plan.n_jobs; ++j) {
      const Job& job = plan.jobs[j];
      v.add_scaled_rows(job.weights, job.products + column, n_cols, job.tokens, job.n_rows, n,
                        args.out.row<float>(0) + column, args.out.stride(0));
    }
  });
}

// -- the second wave of many rows -----------------------------------------------------------------

// Rows of the second wave's steps: of experts as many as have their products of `n_panels` in a
// thread's buffer.
int64_t step_rows(const Job& job, int64_t n_panels) {
  if (job.tokens == nullptr) return kMaxTaskRows;
  return kBufferFloats / (n_panels * kPanelRows) / 16 * 16;
}

// Calls f(job, row) for the second wave's steps of `n_panels` in their order.
template <typename F>
void cut_second_wave(const Plan& plan, int64_t n_panels, F&& f) {
  for (int64_t j = 0; j < plan.n_jobs; ++j) {
    const int64_t size = step_rows(plan.jobs[j], n_panels);
    for (int64_t row = 0; row < plan.jobs[j].n_rows; row += size)
      f(DownStep{static_cast<int32_t>(j), static_cast<int32_t>(row)});
  }
}

// A step's product with `panels` of its job, added to those columns of the rows' tokens. `next`:
// what this thread multiplies with then.
void run_down_step(const ops::ExpertsArgs& args, const Plan& plan, const DownStep& step,
                   int64_t n_rows, Panels panels, Panels next, int thread) {
  const Job& job = plan.jobs[step.job];
  const int64_t column = panels.begin * kPanelRows;
  MatmulTask task = {.x = &job.packed_hidden,
                     .row_begin = step.row,
                     .n_rows = std::min(n_rows, job.n_rows - step.row),
                     .w = job.down,
                     .panel_begin = panels.begin,
                     .n_panels = panels.count,
                     .scratch = plan.kernel_scratch(thread),
                     .next = next};
  if (job.tokens == nullptr) {
    task.out = args.out.row<float>(step.row) + column;
    task.out_stride = args.out.stride(0);
    plan.kernel(task);
    return;
  }
  task.out = plan.buffer(thread);
  task.out_stride = panels.count * kPanelRows;
  task.epilogue = {.kind = Epilogue::Kind::add_scaled_rows,
                   .to = args.out.row<float>(0),
                   .stride = args.out.stride(0),
                   .rows = job.tokens,
                   .scales = job.weights};
  plan.kernel(task);
}

// Of many rows: a lane is a block of columns, its steps the jobs in their order.
Status down_of_many_rows(const ops::ExpertsArgs& args, const Plan& plan, ops::OpContext& ctx) {
  const int64_t n_panels = plan.jobs[0].down->n_panels();
  const int64_t width = std::clamp<int64_t>(
      n_panels / (kLanesForEachThread * plan.n_threads) / 2 * 2, 2, kMostLanePanels);
  int64_t n_steps = 0;
  cut_second_wave(plan, width, [&](const DownStep&) { ++n_steps; });
  const int64_t n_lanes = ceil_div(n_panels, width);
  auto* steps = ctx.arena->take<DownStep>(n_steps);
  auto* lane_steps = ctx.arena->take<std::atomic<int64_t>>(n_lanes);
  if (steps == nullptr || lane_steps == nullptr)
    return ops::scratch_exhausted("experts", (n_steps + n_lanes) * 8, *ctx.arena);
  DownStep* to = steps;
  cut_second_wave(plan, width, [&](const DownStep& step) { *to++ = step; });
  for (int64_t i = 0; i < n_lanes; ++i) new (lane_steps + i) std::atomic<int64_t>;
  Lanes lanes(lane_steps, n_lanes, n_steps, plan.n_threads);
  const auto panels_of = [&](int64_t lane, int64_t step) {
    if (step >= n_steps) return Panels();
    return Panels{plan.jobs[steps[step].job].down, lane * width,
                  std::min(width, n_panels - lane * width)};
  };
  ctx.pool->parallel_for(plan.n_threads, [&](int64_t, int thread) {
    for (Lanes::Step at; lanes.take(thread, &at); lanes.done(at)) {
      const DownStep& step = steps[at.step];
      const Panels panels = panels_of(at.lane, at.step);
      if (at.step == 0) clear_columns(args, plan, panels.begin, panels.count);
      // What this thread takes next if all keep their pace.
      const int64_t lane = at.lane + plan.n_threads;
      run_down_step(args, plan, step, step_rows(plan.jobs[step.job], width), panels,
                    panels_of(lane % n_lanes, at.step + lane / n_lanes), thread);
    }
  });
  return ok_status();
}

}  // namespace

Status experts(Isa isa, const ops::ExpertsArgs& args, ops::OpContext& ctx) {
  ArenaScope scope(*ctx.arena);
  const VectorKernels& v = vector_kernels(isa);
  EXO_ASSIGN_OR_RETURN(const Plan plan, make_plan(isa, args, ctx));
  gather(args, plan, *ctx.pool);
  ctx.pool->parallel_for(plan.n_hidden_tasks + plan.n_down_tasks, [&](int64_t task, int thread) {
    task < plan.n_hidden_tasks ? run_hidden_task(args, plan, task, thread, v)
                               : run_down_task(args, plan, task, thread);
  });
  if (plan.few_rows) {
    add_products(args, plan, *ctx.pool, v);
    return ok_status();
  }
  pack_large_jobs(plan, *ctx.pool, v);
  return down_of_many_rows(args, plan, ctx);
}

}  // namespace exo::kernels::cpu
