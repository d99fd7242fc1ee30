/// Attention over keys and values expanded from the latent, a page at a time: a task is a sequence,
/// up to 4 heads (they share the packed latents) and a block of query rows; it runs over the pages
/// in order, expands each once for a head and updates every row that may see it. A row's arithmetic
/// depends on its position alone.
#include <algorithm>
#include <limits>

#include "kernels/cpu/bodies.h"
#include "kernels/cpu/latent.h"
#include "kernels/cpu/matmul.h"
#include "kernels/cpu/schedule.h"
#include "kernels/cpu/vector.h"
#include "ops/checks.h"

namespace exo::kernels::cpu {
namespace {

using ops::kPageTokens;

constexpr int64_t kMostHeads = 4;    // of a task
constexpr int64_t kFewestRows = 64;  // of a task, when rows are shared out
constexpr int64_t kRowsAtOnce = 4;   // what the vector kernels compute together

struct Task {
  const ops::SequenceRows* sequence = nullptr;
  int64_t row = 0, n_rows = 0;  // within the sequence
  int64_t head = 0, n_heads = 0;
};

struct Body {
  const ops::MlaExpandedArgs& args;
  const VectorKernels& v;
  Matmul kernel_k, kernel_v;
  int64_t rank, rope, nope, value, entry_padded, nope_padded, value_padded;
  int64_t most_rows = 0;
  std::byte* memory = nullptr;
  int64_t thread_bytes = 0;

  Body(Isa isa, const ops::MlaExpandedArgs& a)
      : args(a),
        v(vector_kernels(isa)),
        kernel_k(find_matmul(isa, a.activation, a.w_k[0].format)),
        kernel_v(find_matmul(isa, a.activation, a.w_v[0].format)),
        rank(a.pages.kv_lora_rank),
        rope(a.pages.rope_dim),
        nope(a.q.dim(2) - rope),
        value(a.out.dim(2)),
        entry_padded(align_up(rank + rope, 16)),
        nope_padded(align_up(nope, 16)),
        value_padded(align_up(value, 16)) {
    for (const ops::SequenceRows& s : a.sequences)
      most_rows = std::max<int64_t>(most_rows, s.n_rows);
    thread_bytes = kMatmulScratchBytes + kPageTokens * 4 * (entry_padded + nope_padded) +
                   kPageTokens * 4 * (nope + rope + value_padded) +
                   ops::packed_rows_bytes(a.activation, kPageTokens, rank) +
                   align_up(kMostHeads * most_rows * static_cast<int64_t>(sizeof(SoftmaxState)));
  }

  struct ThreadMemory {
    std::byte* matmul;
    float* entries;         // [64, entry_padded]
    float* k;               // [64, nope_padded]
    float* v;               // [64, value_padded]
    float* k_t;             // [nope + rope, 64]
    SoftmaxState* softmax;  // [kMostHeads, most_rows]
    std::byte* packed;
  };
  ThreadMemory memory_of(int thread) const {
    ThreadMemory m;
    m.matmul = memory + thread * thread_bytes;
    m.entries = reinterpret_cast<float*>(m.matmul + kMatmulScratchBytes);
    m.k = m.entries + kPageTokens * entry_padded;
    m.v = m.k + kPageTokens * nope_padded;
    m.k_t = m.v + kPageTokens * value_padded;
    m.packed = reinterpret_cast<std::byte*>(m.k_t + kPageTokens * (nope + rope));
    m.softmax = reinterpret_cast<SoftmaxState*>(
        m.packed + ops::packed_rows_bytes(args.activation, kPageTokens, rank));
    return m;
  }

  float* out_row(const Task& t, int64_t r, int64_t head) const {
    return args.out.row<float>(t.sequence->row_begin + r) + head * args.out.stride(1);
  }

  // The page's entries in f32 and their latents packed, which all heads share.
  PackedRows load_page(const Task& t, int64_t page, int64_t n, const ThreadMemory& m) const {
    const int32_t number = t.sequence->pages[static_cast<size_t>(page)];
    Arena arena(m.packed, ops::packed_rows_bytes(args.activation, kPageTokens, rank));
    const PackedRows packed = *ops::take_packed_rows(args.activation, n, rank, arena);
    for (int64_t i = 0; i < n; ++i) {
      float* to = m.entries + i * entry_padded;
      load_entry(v, args.pages, number, i, to);
      v.pack_row(to, i, packed);
    }
    return packed;
  }

  void expand(const PackedMatrix& w, const Matmul& kernel, const PackedRows& latents, float* out,
              int64_t stride, const ThreadMemory& m) const {
    kernel({.x = &latents,
            .row_begin = 0,
            .n_rows = latents.n_rows,
            .w = &w,
            .panel_begin = 0,
            .n_panels = w.n_panels(),
            .out = out,
            .out_stride = stride,
            .accumulate = false,
            .scratch = m.matmul});
  }

  // One head's rows against the expanded page.
  void attend(const Task& t, int64_t page, int64_t head, SoftmaxState* softmax,
              const ThreadMemory& m) const {
    const int64_t first_position = page * kPageTokens, n_past = t.sequence->n_past;
    const int64_t row_end = t.row + t.n_rows;
    alignas(64) float p[kRowsAtOnce * kPageTokens];
    for (int64_t r = std::max(t.row, first_position - n_past); r < row_end; r += kRowsAtOnce) {
      const int64_t n = std::min(kRowsAtOnce, row_end - r);
      const float* q = args.q.row<float>(t.sequence->row_begin + r) + head * args.q.stride(1);
      v.score_columns(q, args.q.stride(0), n, m.k_t, nope + rope, args.softmax_scale, p);
      float keep[kRowsAtOnce];
      int64_t n_keys[kRowsAtOnce];
      for (int64_t i = 0; i < n; ++i) {
        n_keys[i] = std::min(kPageTokens, n_past + r + i + 1 - first_position);
        keep[i] = v.softmax_page(p + i * kPageTokens, n_keys[i], softmax[r + i - t.row]);
      }
      v.add_values(p, keep, n_keys, n, m.v, value_padded, value, out_row(t, r, head),
                   args.out.stride(0));
    }
  }

  void run(const Task& t, int thread) const {
    const ThreadMemory m = memory_of(thread);
    std::fill_n(m.softmax, kMostHeads * most_rows,
                SoftmaxState{-std::numeric_limits<float>::infinity(), 0.0f});
    for (int64_t h = t.head; h < t.head + t.n_heads; ++h) {
      for (int64_t r = 0; r < t.n_rows; ++r) std::fill_n(out_row(t, t.row + r, h), value, 0.0f);
    }
    const int64_t n_tokens = int64_t{t.sequence->n_past} + t.sequence->n_rows;
    const int64_t last = t.sequence->n_past + t.row + t.n_rows - 1;
    for (int64_t page = 0; page <= last / kPageTokens; ++page) {
      const int64_t n = std::min(kPageTokens, n_tokens - page * kPageTokens);
      const PackedRows latents = load_page(t, page, n, m);
      for (int64_t h = t.head; h < t.head + t.n_heads; ++h) {
        expand(args.w_k[static_cast<size_t>(h)], kernel_k, latents, m.k, nope_padded, m);
        expand(args.w_v[static_cast<size_t>(h)], kernel_v, latents, m.v, value_padded, m);
        SoftmaxState* softmax = m.softmax + (h - t.head) * most_rows;
        v.transpose_page(m.k, nope_padded, n, nope, m.k_t);
        v.transpose_page(m.entries + rank, entry_padded, n, rope, m.k_t + nope * kPageTokens);
        attend(t, page, h, softmax, m);
      }
    }
    for (int64_t h = t.head; h < t.head + t.n_heads; ++h) {
      for (int64_t r = 0; r < t.n_rows; ++r)
        v.divide(out_row(t, t.row + r, h), m.softmax[(h - t.head) * most_rows + r].sum, value);
    }
  }
};

// How the work is cut for so many threads; the values don't depend on it.
struct Cut {
  int64_t heads = 1, n_head_groups = 1, rows = 1;

  Cut(const ops::MlaExpandedArgs& args, int64_t n_sequences, int n_threads) {
    const int64_t n_heads = args.q.dim(1), n_rows = args.q.dim(0), wanted = 2 * n_threads;
    heads = std::clamp<int64_t>(n_heads * n_sequences / wanted, 1, kMostHeads);
    n_head_groups = ceil_div(n_heads, heads);
    const int64_t n_blocks = ceil_div(wanted, n_head_groups * n_sequences);
    rows = std::max(kFewestRows, align_up(ceil_div(n_rows, n_blocks), kRowsAtOnce));
  }
};

}  // namespace

Status mla_expanded(Isa isa, const ops::MlaExpandedArgs& args, ops::OpContext& ctx) {
  // Somebody looks at every probability: the body that has them.
  if (!args.probs.empty()) return ops::reference_table().mla_expanded(args, ctx);
  if (expanded_on_tiles(isa, args)) return mla_expanded_tiles(isa, args, ctx);
  ArenaScope scope(*ctx.arena);
  Body body(isa, args);
  const int n_threads = ctx.pool->n_threads();
  body.memory = ctx.arena->take_bytes(n_threads * body.thread_bytes);
  if (body.memory == nullptr)
    return ops::scratch_exhausted(
        "mla_expanded",
        ops::mla_expanded_scratch_bytes(args.q.dim(0), args.q.dim(1), body.nope, body.rope,
                                        body.value, body.rank, n_threads),
        *ctx.arena);
  int64_t n_sequences = 0;
  for (const ops::SequenceRows& s : args.sequences)
    n_sequences += s.form == ops::AttentionForm::expanded && s.n_rows > 0 ? 1 : 0;
  if (n_sequences == 0) return ok_status();
  const Cut cut(args, n_sequences, n_threads);
  const auto tasks_of = [&](const ops::SequenceRows& s) {
    if (s.form != ops::AttentionForm::expanded) return int64_t{0};
    return ceil_div(s.n_rows, cut.rows) * cut.n_head_groups;
  };
  int64_t n_tasks = 0;
  for (const ops::SequenceRows& s : args.sequences) n_tasks += tasks_of(s);
  ctx.pool->parallel_for(n_tasks, [&](int64_t i, int thread) {
    // The last rows see the most pages: they go first.
    i = n_tasks - 1 - i;
    Task t;
    for (const ops::SequenceRows& s : args.sequences) {
      t.sequence = &s;
      if (i < tasks_of(s)) break;
      i -= tasks_of(s);
    }
    t.row = i / cut.n_head_groups * cut.rows;
    t.n_rows = std::min<int64_t>(cut.rows, t.sequence->n_rows - t.row);
    t.head = i % cut.n_head_groups * cut.heads;
    t.n_heads = std::min(cut.heads, args.q.dim(1) - t.head);
    body.run(t, thread);
  });
  return ok_status();
}

}  // namespace exo::kernels::cpu
