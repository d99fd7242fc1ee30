/// Attention over the latent: a task is one row, blocks of 16 of its heads (all that there are, as
/// long as every thread has work: they share each page), and a range of its pages. A row's pages
/// are cut into at most 8 ranges by their number alone; each range is summed for itself and the
/// ranges are merged in order: by one thread, or, when there are few rows, by several threads with
/// the same arithmetic.
#include <algorithm>
#include <limits>

#include "kernels/cpu/attention_tiles.h"
#include "kernels/cpu/bodies.h"
#include "kernels/cpu/latent.h"
#include "kernels/cpu/schedule.h"
#include "kernels/cpu/vector.h"
#include "ops/checks.h"

namespace exo::kernels::cpu {
namespace {

static_assert(ops::kPageTokens == 64 && ops::kLatentPartCols == 128);  // attention_*_avx512.h

constexpr int64_t kHeads = kPageHeads;  // of a block
constexpr int64_t kMostRanges = 8;      // of a row's pages
constexpr int64_t kFewestPages = 8;     // of a range
constexpr int64_t kTasksPerThread = 2;  // for threads to share evenly
constexpr int64_t kUnitsPerThread = 4;  // rows x blocks; from here on ranges need not be shared out

int64_t pages_of(int64_t position) { return position / ops::kPageTokens + 1; }
int64_t pages_per_range(int64_t n_pages) {
  return std::max(kFewestPages, ceil_div(n_pages, kMostRanges));
}
int64_t n_ranges(int64_t n_pages) { return ceil_div(n_pages, pages_per_range(n_pages)); }

// n columns of a sum (n a multiple of 4) to where they belong: out[c] = sum[interleaved_column(c)].
void copy_in_order(const float* sum, int64_t n, int64_t n_columns, int64_t n_vectors, float* out) {
  const int64_t apart = n_columns / n_vectors;  // from a vector's columns to the next one's
  for (int64_t c = 0; c < n; sum += n_columns) {
    for (int64_t at = 0; at < apart; at += 4) {
      for (int64_t i = 0; i < n_vectors && c < n; ++i, c += 4)
        std::copy_n(sum + at + i * apart, 4, out + c);
    }
  }
}

// A range's (or several ranges') softmax-weighted sum for a block of heads, not yet divided.
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
  const AbsorbedAttention* tiles;  // for pages of 16 and 8 bits: on tiles, or codes as bytes
  bool words = false;              // or are they attended to in words?
  int64_t rank, rank_padded, entry, entry_padded, n_blocks;
  int64_t group = 1, n_groups = 1;  // blocks of heads of a task, and how many such a row has
  int64_t state_bytes = 0;
  int64_t page_bytes = 0;   // a page in f32 or words, or the tiles' scratch
  int64_t query_bytes = 0;  // of a block
  std::byte* thread_memory = nullptr;
  int64_t thread_bytes = 0;

  Body(Isa isa, const ops::MlaAbsorbedArgs& a)
      : args(a),
        v(vector_kernels(isa)),
        tiles(absorbed_attention(isa, a.pages.dtype, a.pages.kv_lora_rank + a.pages.rope_dim,
                                 a.pages.kv_lora_rank)),
        rank(a.pages.kv_lora_rank),
        rank_padded(align_up(rank, 16)),
        entry(rank + a.pages.rope_dim),
        entry_padded(align_up(entry, 16)),
        n_blocks(ceil_div(a.out.dim(1), kHeads)),
        state_bytes(State::bytes(rank_padded)) {
    words = tiles == nullptr && a.pages.dtype != DType::f32 && v.attend_words != nullptr &&
            rank % 32 == 0 && entry % 2 == 0 && entry <= kHeads * ops::kPageTokens * 2;
    page_bytes =
        tiles != nullptr ? absorbed_scratch_bytes(entry) : ops::kPageTokens * entry_padded * 4;
    query_bytes = tiles != nullptr ? absorbed_query_bytes(entry) : kHeads * entry_padded * 4;
  }

  // Tasks of so many blocks that there are at least `wanted` of them, if there can be.
  void cut(int64_t n_rows_and_ranges, int64_t wanted) {
    group = std::clamp<int64_t>(n_rows_and_ranges * n_blocks / wanted, 1, n_blocks);
    n_groups = ceil_div(n_blocks, group);
    thread_bytes = page_bytes + kHeads * (entry_padded + ops::kPageTokens) * 4 +
                   group * (query_bytes + 2 * state_bytes);
  }

  struct ThreadMemory {
    std::byte* page;     // page_bytes
    float* q;            // [kHeads, entry_padded], on the way into tiles
    float* p;            // [kPageTokens, kHeads]
    std::byte* queries;  // [group] of query_bytes: tiles, or [entry_padded, kHeads] f32
    std::byte *a, *b;    // [group] of state_bytes
  };
  ThreadMemory memory_of(int thread) const {
    ThreadMemory m;
    m.page = thread_memory + thread * thread_bytes;
    m.q = reinterpret_cast<float*>(m.page + page_bytes);
    m.p = m.q + kHeads * entry_padded;
    m.queries = reinterpret_cast<std::byte*>(m.p + kHeads * ops::kPageTokens);
    m.a = m.queries + group * query_bytes;
    m.b = m.a + group * state_bytes;
    return m;
  }
  State state(std::byte* states, int64_t block) const {
    return State(states + block * state_bytes, rank_padded);
  }

  struct Unit {
    const ops::SequenceRows* sequence = nullptr;
    int64_t row = 0, position = 0;
    int64_t block = 0, n_blocks = 0;
  };
  // Unit i of n_rows * n_groups.
  Unit unit(int64_t i) const {
    Unit u;
    int64_t r = i / n_groups;
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
    u.block = i % n_groups * group;
    u.n_blocks = std::min(group, n_blocks - u.block);
    return u;
  }
  int64_t heads_of(const Unit& u, int64_t block) const {
    return std::min(kHeads, args.out.dim(1) - (u.block + block) * kHeads);
  }

  void load_queries(const Unit& u, const ThreadMemory& m) const {
    for (int64_t block = 0; block < u.n_blocks; ++block) {
      std::byte* to = m.queries + block * query_bytes;
      const int64_t first = (u.block + block) * kHeads, n = heads_of(u, block);
      for (int64_t h = 0; h < n; ++h) {
        float* row = m.q + h * entry_padded;
        std::copy_n(args.q_latent.row<float>(u.row) + (first + h) * args.q_latent.stride(1), rank,
                    row);
        std::copy_n(args.q_rope.row<float>(u.row) + (first + h) * args.q_rope.stride(1),
                    entry - rank, row + rank);
        std::fill(row + entry, row + entry_padded, 0.0f);
      }
      std::fill(m.q + n * entry_padded, m.q + kHeads * entry_padded, 0.0f);
      if (tiles != nullptr) {
        tiles->query(m.q, entry_padded, entry, rank, to);
        continue;
      }
      if (words) {
        round_queries(m, to);
        continue;
      }
      auto* q_t = reinterpret_cast<float*>(to);
      for (int64_t d = 0; d < entry; ++d) {
        for (int64_t h = 0; h < kHeads; ++h) q_t[d * kHeads + h] = m.q[h * entry_padded + d];
      }
    }
  }

  // A block's queries in words, and what they are worth, where their f32 would be.
  struct WordQueries {
    int16_t* codes;  // [entry / 2, kHeads, 2]
    float* scales;   // [kHeads]

    WordQueries(std::byte* memory, int64_t entry_padded)
        : codes(reinterpret_cast<int16_t*>(memory)),
          scales(reinterpret_cast<float*>(memory + kHeads * entry_padded * 2)) {}
  };
  void round_queries(const ThreadMemory& m, std::byte* to) const {
    const WordQueries queries(to, entry_padded);
    auto* row = reinterpret_cast<int16_t*>(m.p);
    for (int64_t h = 0; h < kHeads; ++h) {
      const float scale = v.round_to_words(m.q + h * entry_padded, row, entry);
      queries.scales[h] = scale * args.softmax_scale;
      for (int64_t d = 0; d < entry; d += 2)
        std::copy_n(row + d, 2, queries.codes + d * kHeads + 2 * h);
    }
  }

  struct Page {
    int64_t index = 0, n_keys = 0;
    bool last = false;  // of its range
  };
  // What a block of heads adds a page to; the first asks for the page after it.
  HeadsPage heads_page(const Unit& u, int64_t block, const Page& page, const ThreadMemory& m,
                       std::byte* states) const {
    const State s = state(states, block);
    HeadsPage to = {.n_heads = heads_of(u, block),
                    .stride = entry_padded,
                    .n_keys = page.n_keys,
                    .dim = entry,
                    .rank = rank,
                    .weights = m.p,
                    .softmax = s.softmax,
                    .sum = s.sum,
                    .sum_stride = rank_padded};
    if (block == 0 && !page.last) {
      to.next = args.pages.entry(u.sequence->pages[static_cast<size_t>(page.index + 1)], 0);
      to.next_end = to.next + args.pages.page_bytes();
    }
    return to;
  }

  // A page in words where it would be in f32.
  struct WordPage {
    int16_t* codes;  // [64, entry_padded]
    float* scales;   // [64]
    float* row;      // [entry_padded], on the way

    WordPage(std::byte* memory, int64_t entry_padded)
        : codes(reinterpret_cast<int16_t*>(memory)),
          scales(reinterpret_cast<float*>(memory + ops::kPageTokens * entry_padded * 2)),
          row(scales + ops::kPageTokens) {}
  };
  void attend_page_in_words(const Unit& u, const Page& page, const ThreadMemory& m,
                            std::byte* states) const {
    const WordPage to(m.page, entry_padded);
    const int32_t number = u.sequence->pages[static_cast<size_t>(page.index)];
    for (int64_t t = 0; t < page.n_keys; ++t) {
      load_entry(v, args.pages, number, t, to.row);
      to.scales[t] = v.round_to_words(to.row, to.codes + t * entry_padded, entry);
    }
    for (int64_t block = 0; block < u.n_blocks; ++block) {
      const WordQueries queries(m.queries + block * query_bytes, entry_padded);
      v.attend_words({heads_page(u, block, page, m, states), queries.codes, queries.scales,
                      to.codes, to.scales});
    }
  }

  void attend_page(const Unit& u, const Page& page, const ThreadMemory& m,
                   std::byte* states) const {
    auto* entries = reinterpret_cast<float*>(m.page);
    const int32_t number = u.sequence->pages[static_cast<size_t>(page.index)];
    for (int64_t t = 0; t < page.n_keys; ++t)
      load_entry(v, args.pages, number, t, entries + t * entry_padded);
    for (int64_t block = 0; block < u.n_blocks; ++block)
      v.attend_heads({heads_page(u, block, page, m, states),
                      reinterpret_cast<const float*>(m.queries + block * query_bytes), entries,
                      args.softmax_scale});
  }

  void run_pages_on_tiles(const Unit& u, int64_t begin, int64_t end, const ThreadMemory& m,
                          std::byte* states) const {
    const ops::LatentPages& pages = args.pages;
    tiles->pages(
        {.stored = pages.dtype,
         .data = pages.data,
         .page_bytes = pages.page_bytes(),
         .entry_bytes = pages.entry_bytes(),
         .rope_offset = pages.rope_offset(),
         .scales_offset = ops::kPageTokens * pages.entry_bytes(),
         .n_scales = pages.n_scales(),
         .entry = entry,
         .rank = rank,
         .numbers = u.sequence->pages.data() + begin,
         .n_pages = end - begin,
         .n_last_keys = std::min(ops::kPageTokens, u.position + 1 - (end - 1) * ops::kPageTokens),
         .scale = args.softmax_scale,
         .n_blocks = u.n_blocks,
         .queries = m.queries,
         .query_bytes = query_bytes,
         .states = states,
         .state_bytes = state_bytes,
         .sum_stride = rank_padded,
         .scratch = m.page});
  }

  // The pages of one range into `states` [u.n_blocks]. m.queries holds the unit's queries.
  void run_range(const Unit& u, int64_t range, const ThreadMemory& m, std::byte* states) const {
    const int64_t per_range = pages_per_range(pages_of(u.position));
    const int64_t end = std::min((range + 1) * per_range, pages_of(u.position));
    for (int64_t block = 0; block < u.n_blocks; ++block) {
      const State s = state(states, block);
      std::fill_n(s.sum, kHeads * rank_padded, 0.0f);
      std::fill_n(s.softmax, kHeads, SoftmaxState{-std::numeric_limits<float>::infinity(), 0.0f});
    }
    if (tiles != nullptr) return run_pages_on_tiles(u, range * per_range, end, m, states);
    for (int64_t i = range * per_range; i < end; ++i) {
      const Page page = {i, std::min(ops::kPageTokens, u.position + 1 - i * ops::kPageTokens),
                         i + 1 == end};
      if (words) {
        attend_page_in_words(u, page, m, states);
      } else {
        attend_page(u, page, m, states);
      }
    }
  }

  // into = into followed by next.
  void merge(const Unit& u, std::byte* into_states, std::byte* next_states) const {
    for (int64_t i = 0; i < u.n_blocks * kHeads; ++i) {
      const int64_t block = i / kHeads, h = i % kHeads;
      if (h >= heads_of(u, block)) continue;
      const State into = state(into_states, block), next = state(next_states, block);
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

  void finish(const Unit& u, std::byte* states) const {
    for (int64_t i = 0; i < u.n_blocks * kHeads; ++i) {
      const int64_t block = i / kHeads, h = i % kHeads;
      if (h >= heads_of(u, block)) continue;
      const State s = state(states, block);
      float* out = args.out.row<float>(u.row) + (u.block * kHeads + i) * args.out.stride(1);
      const float* sum = s.sum + h * rank_padded;
      if (tiles != nullptr || words) {
        const int64_t n_vectors = tiles != nullptr ? tiles->n_interleaved : 2;
        const int64_t n_columns = tiles != nullptr ? 16 * n_vectors : v.words_interleaved;
        copy_in_order(sum, rank, n_columns, n_vectors, out);
      } else {
        std::copy_n(sum, rank, out);
      }
      v.divide(out, s.softmax[h].sum, rank);
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

// Every unit by one thread, its ranges one after another.
void run_whole(const Body& body, int64_t n_units, ThreadPool& pool) {
  pool.parallel_for(n_units, [&](int64_t i, int thread) {
    const Body::Unit u = body.unit(i);
    const Body::ThreadMemory m = body.memory_of(thread);
    body.load_queries(u, m);
    body.run_range(u, 0, m, m.a);
    for (int64_t range = 1; range < n_ranges(pages_of(u.position)); ++range) {
      body.run_range(u, range, m, m.b);
      body.merge(u, m.a, m.b);
    }
    body.finish(u, m.a);
  });
}

// A unit's ranges by several threads. states: [rows, kMostRanges, n_blocks] of state_bytes.
void run_ranges(const Body& body, int64_t n_units, int64_t most_ranges, std::byte* states,
                ThreadPool& pool) {
  const auto states_of = [&](int64_t unit, int64_t range) {
    const int64_t row = unit / body.n_groups, block = unit % body.n_groups * body.group;
    return states + ((row * kMostRanges + range) * body.n_blocks + block) * body.state_bytes;
  };
  pool.parallel_for(n_units * most_ranges, [&](int64_t i, int thread) {
    const Body::Unit u = body.unit(i / most_ranges);
    const int64_t range = i % most_ranges;
    if (range >= n_ranges(pages_of(u.position))) return;
    const Body::ThreadMemory m = body.memory_of(thread);
    body.load_queries(u, m);
    body.run_range(u, range, m, states_of(i / most_ranges, range));
  });
  pool.parallel_for(n_units, [&](int64_t i, int) {
    const Body::Unit u = body.unit(i);
    for (int64_t range = 1; range < n_ranges(pages_of(u.position)); ++range)
      body.merge(u, states_of(i, 0), states_of(i, range));
    body.finish(u, states_of(i, 0));
  });
}

}  // namespace

Status mla_absorbed(Isa isa, const ops::MlaAbsorbedArgs& args, ops::OpContext& ctx) {
  ArenaScope scope(*ctx.arena);
  Body body(isa, args);
  const int n_threads = ctx.pool->n_threads();
  int64_t most_ranges = 1;
  const int64_t n_rows = count_rows(args, &most_ranges);
  const bool shared = most_ranges > 1 && n_threads > 1 &&
                      (n_rows - 1) * body.n_blocks < kUnitsPerThread * n_threads;
  body.cut(shared ? n_rows * most_ranges : n_rows, kTasksPerThread * n_threads);
  body.thread_memory = ctx.arena->take_bytes(n_threads * body.thread_bytes);
  std::byte* states = body.thread_memory;
  if (shared)
    states = ctx.arena->take_bytes(n_rows * kMostRanges * body.n_blocks * body.state_bytes);
  if (body.thread_memory == nullptr || states == nullptr)
    return ops::scratch_exhausted(
        "mla_absorbed",
        ops::mla_absorbed_scratch_bytes(args.out.dim(0), args.out.dim(1), body.rank,
                                        args.pages.rope_dim, n_threads),
        *ctx.arena);
  const int64_t n_units = n_rows * body.n_groups;
  if (!shared) {
    run_whole(body, n_units, *ctx.pool);
  } else {
    run_ranges(body, n_units, most_ranges, states, *ctx.pool);
  }
  return ok_status();
}

}  // namespace exo::kernels::cpu
