/// Attention over the latent: a unit of work is one row and up to 16 heads, which share each page.
/// A row's pages are cut into at most 8 ranges by their number alone; each range is summed for
/// itself and the ranges are merged in order: by one thread, or, when there are few units, by
/// several threads with the same arithmetic.
#include <algorithm>
#include <limits>

#include "kernels/cpu/attention_amx.h"
#include "kernels/cpu/bodies.h"
#include "kernels/cpu/schedule.h"
#include "kernels/cpu/vector.h"
#include "ops/checks.h"

namespace exo::kernels::cpu {
namespace {

constexpr int64_t kHeads = 16;          // of a unit
constexpr int64_t kMostRanges = 8;      // of a row's pages
constexpr int64_t kFewestPages = 8;     // of a range
constexpr int64_t kUnitsPerThread = 4;  // from here on ranges need not be shared out

int64_t pages_of(int64_t position) { return position / ops::kPageTokens + 1; }
int64_t pages_per_range(int64_t n_pages) {
  return std::max(kFewestPages, ceil_div(n_pages, kMostRanges));
}
int64_t n_ranges(int64_t n_pages) { return ceil_div(n_pages, pages_per_range(n_pages)); }

// A range's (or several ranges') softmax-weighted sum, not yet divided.
struct State {
  SoftmaxState* softmax = nullptr;  // [kHeads]
  float* sum = nullptr;             // [kHeads, rank_padded]

  static int64_t bytes(int64_t rank_padded) {
    return align_up(kHeads * (rank_padded * 4 + static_cast<int64_t>(sizeof(SoftmaxState))));
  }
  State(std::byte* memory, int64_t rank_padded)
      : softmax(reinterpret_cast<SoftmaxState*>(memory + kHeads * rank_padded * 4)),
        sum(reinterpret_cast<float*>(memory)) {}
};

struct Body {
  const ops::MlaAbsorbedArgs& args;
  const VectorKernels& v;
  int64_t rank, rank_padded, entry, entry_padded, n_head_blocks;
  std::byte* thread_memory = nullptr;
  int64_t thread_bytes = 0;
  bool tiles = false;  // bf16 pages on AMX

  Body(Isa isa, const ops::MlaAbsorbedArgs& a)
      : args(a),
        v(vector_kernels(isa)),
        rank(a.pages.kv_lora_rank),
        rank_padded(align_up(rank, 16)),
        entry(rank + a.pages.rope_dim),
        entry_padded(align_up(entry, 16)),
        n_head_blocks(ceil_div(a.out.dim(1), kHeads)) {
    tiles = isa == Isa::amx && a.pages.dtype == DType::bf16 && absorbed_fits_amx(entry, rank);
    thread_bytes = ops::kPageTokens * entry_padded * 4 + kHeads * entry_padded * 4 +
                   kHeads * ops::kPageTokens * 4 + 2 * State::bytes(rank_padded);
  }

  struct ThreadMemory {
    float *page, *q, *p;
    State a, b;
  };
  ThreadMemory memory_of(int thread) const {
    std::byte* m = thread_memory + thread * thread_bytes;
    auto* page = reinterpret_cast<float*>(m);
    float* q = page + ops::kPageTokens * entry_padded;
    float* p = q + kHeads * entry_padded;
    auto* states = reinterpret_cast<std::byte*>(p + kHeads * ops::kPageTokens);
    return {page, q, p, State(states, rank_padded),
            State(states + State::bytes(rank_padded), rank_padded)};
  }

  struct Unit {
    const ops::SequenceRows* sequence = nullptr;
    int64_t row = 0, position = 0, head = 0, n_heads = 0;
  };
  Unit unit(int64_t i) const {
    Unit u;
    int64_t r = i / n_head_blocks;
    for (const ops::SequenceRows& s : args.sequences) {
      if (s.form != ops::AttentionForm::absorbed) continue;
      if (r < s.n_rows) {
        u.sequence = &s;
        u.row = s.row_begin + r;
        u.position = s.n_past + r;
        break;
      }
      r -= s.n_rows;
    }
    u.head = i % n_head_blocks * kHeads;
    u.n_heads = std::min(kHeads, args.out.dim(1) - u.head);
    return u;
  }

  void load_query(const Unit& u, float* q) const {
    for (int64_t h = 0; h < u.n_heads; ++h) {
      const float* latent =
          args.q_latent.row<float>(u.row) + (u.head + h) * args.q_latent.stride(1);
      const float* rope = args.q_rope.row<float>(u.row) + (u.head + h) * args.q_rope.stride(1);
      float* to = q + h * entry_padded;
      std::copy_n(latent, rank, to);
      std::copy_n(rope, entry - rank, to + rank);
      std::fill(to + entry, to + entry_padded, 0.0f);
    }
    std::fill(q + u.n_heads * entry_padded, q + kHeads * entry_padded, 0.0f);
  }

  void load_page(const Unit& u, int64_t page, int64_t n, float* to) const {
    const int32_t number = u.sequence->pages[static_cast<size_t>(page)];
    for (int64_t t = 0; t < n; ++t, to += entry_padded) {
      const std::byte* from = args.pages.entry(number, t);
      if (args.pages.dtype == DType::bf16) {
        v.widen_bf16(reinterpret_cast<const bf16*>(from), to, entry);
      } else {
        std::copy_n(reinterpret_cast<const float*>(from), entry, to);
      }
      std::fill(to + entry, to + entry_padded, 0.0f);
    }
  }

  // The page's memory in f32 serves as scratch: it is larger (absorbed_fits_amx).
  void run_pages_amx(const Unit& u, int64_t begin, int64_t end, const ThreadMemory& m,
                     const State& state) const {
#if defined(__x86_64__)
    auto* scratch = reinterpret_cast<std::byte*>(m.page);
    absorbed_query_amx(m.q, entry_padded, entry, rank, scratch);
    const auto page_at = [&](int64_t page) {
      return args.pages.entry(u.sequence->pages[static_cast<size_t>(page)], 0);
    };
    for (int64_t page = begin; page < end; ++page)
      absorbed_page_amx(
          {.page = page_at(page),
           .next = page + 1 < end ? page_at(page + 1) : nullptr,
           .entry_bytes = args.pages.entry_bytes(),
           .entry = entry,
           .rank = rank,
           .n_keys = std::min(ops::kPageTokens, u.position + 1 - page * ops::kPageTokens),
           .scale = args.softmax_scale,
           .scratch = scratch,
           .softmax = state.softmax,
           .sum = state.sum,
           .sum_stride = rank_padded});
#endif
  }

  // The pages of one range into `state`. m.q holds the unit's query.
  void run_range(const Unit& u, int64_t range, const ThreadMemory& m, const State& state) const {
    const int64_t per_range = pages_per_range(pages_of(u.position));
    const int64_t end = std::min((range + 1) * per_range, pages_of(u.position));
    std::fill_n(state.sum, kHeads * rank_padded, 0.0f);
    std::fill_n(state.softmax, kHeads, SoftmaxState{-std::numeric_limits<float>::infinity(), 0.0f});
    if (tiles) return run_pages_amx(u, range * per_range, end, m, state);
    for (int64_t page = range * per_range; page < end; ++page) {
      const int64_t n = std::min(ops::kPageTokens, u.position + 1 - page * ops::kPageTokens);
      load_page(u, page, n, m.page);
      v.score_rows(m.q, entry_padded, u.n_heads, m.page, entry_padded, n, entry, args.softmax_scale,
                   m.p);
      float keep[kHeads];
      int64_t n_keys[kHeads];
      for (int64_t h = 0; h < u.n_heads; ++h) {
        keep[h] = v.softmax_page(m.p + h * ops::kPageTokens, n, state.softmax[h]);
        n_keys[h] = n;
      }
      v.add_values(m.p, keep, n_keys, u.n_heads, m.page, entry_padded, rank, state.sum,
                   rank_padded);
    }
  }

  // into = into followed by next.
  void merge(const Unit& u, const State& into, const State& next) const {
    for (int64_t h = 0; h < u.n_heads; ++h) {
      SoftmaxState& a = into.softmax[h];
      const SoftmaxState& b = next.softmax[h];
      // softmax_page's own arithmetic, with b's maximum as the only score.
      float top[ops::kPageTokens] = {b.largest};
      SoftmaxState both = a;
      const float keep = v.softmax_page(top, 1, both);
      v.mix(keep, into.sum + h * rank_padded, top[0], next.sum + h * rank_padded, rank);
      a = {both.largest, a.sum * keep + b.sum * top[0]};
    }
  }

  void finish(const Unit& u, const State& state) const {
    for (int64_t h = 0; h < u.n_heads; ++h) {
      float* out = args.out.row<float>(u.row) + (u.head + h) * args.out.stride(1);
      const float* sum = state.sum + h * rank_padded;
      if (tiles) {
        // Groups of four columns as 16-bit interleaving within 128-bit lanes left them.
        for (int64_t c = 0; c < rank; c += 8)
          for (int64_t half = 0; half < 2; ++half)
            std::copy_n(sum + c / 32 * 32 + c % 32 / 2 + 16 * half, 4, out + c + 4 * half);
      } else {
        std::copy_n(sum, rank, out);
      }
      v.divide(out, state.softmax[h].sum, rank);
    }
  }
};

int64_t count_rows(const ops::MlaAbsorbedArgs& args, int64_t* most_ranges) {
  int64_t n = 0;
  *most_ranges = 1;
  for (const ops::SequenceRows& s : args.sequences) {
    if (s.form != ops::AttentionForm::absorbed || s.n_rows == 0) continue;
    n += s.n_rows;
    *most_ranges = std::max(*most_ranges, n_ranges(pages_of(int64_t{s.n_past} + s.n_rows - 1)));
  }
  return n;
}

}  // namespace

Status mla_absorbed(Isa isa, const ops::MlaAbsorbedArgs& args, ops::OpContext& ctx) {
  ArenaScope scope(*ctx.arena);
  Body body(isa, args);
  const int n_threads = ctx.pool->n_threads();
  int64_t most_ranges = 1;
  const int64_t n_rows = count_rows(args, &most_ranges);
  const int64_t n_units = n_rows * body.n_head_blocks;
  const bool shared = most_ranges > 1 && n_threads > 1 && n_units < kUnitsPerThread * n_threads;
  const int64_t state_bytes = State::bytes(body.rank_padded);
  body.thread_memory = ctx.arena->take_bytes(n_threads * body.thread_bytes);
  std::byte* states =
      shared ? ctx.arena->take_bytes(n_units * kMostRanges * state_bytes) : body.thread_memory;
  if (body.thread_memory == nullptr || states == nullptr)
    return ops::scratch_exhausted(
        "mla_absorbed",
        ops::mla_absorbed_scratch_bytes(args.out.dim(0), args.out.dim(1), body.rank,
                                        args.pages.rope_dim, n_threads),
        *ctx.arena);
  if (!shared) {
    ctx.pool->parallel_for(n_units, [&](int64_t i, int thread) {
      const Body::Unit u = body.unit(i);
      const Body::ThreadMemory m = body.memory_of(thread);
      body.load_query(u, m.q);
      body.run_range(u, 0, m, m.a);
      for (int64_t range = 1; range < n_ranges(pages_of(u.position)); ++range) {
        body.run_range(u, range, m, m.b);
        body.merge(u, m.a, m.b);
      }
      body.finish(u, m.a);
    });
    return ok_status();
  }
  const auto state_of = [&](int64_t unit, int64_t range) {
    return State(states + (unit * kMostRanges + range) * state_bytes, body.rank_padded);
  };
  ctx.pool->parallel_for(n_units * most_ranges, [&](int64_t i, int thread) {
    const Body::Unit u = body.unit(i / most_ranges);
    const int64_t range = i % most_ranges;
    if (range >= n_ranges(pages_of(u.position))) return;
    const Body::ThreadMemory m = body.memory_of(thread);
    body.load_query(u, m.q);
    body.run_range(u, range, m, state_of(i / most_ranges, range));
  });
  ctx.pool->parallel_for(n_units, [&](int64_t i, int) {
    const Body::Unit u = body.unit(i);
    for (int64_t range = 1; range < n_ranges(pages_of(u.position)); ++range)
      body.merge(u, state_of(i, 0), state_of(i, range));
    body.finish(u, state_of(i, 0));
  });
  return ok_status();
}

}  // namespace exo::kernels::cpu
