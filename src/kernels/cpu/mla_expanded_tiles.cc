/// Expanded attention on tiles (AMX, bf16 vectors) or in 16-bit integers, for bf16 and integer
/// activations. A block of up to 32 pages is expanded to keys and values in tiles once, for up to
/// 16 heads, several pages in one product; then each task, a head and a block of query rows, runs
/// over the block's pages in order, its queries and sums in the second-level cache. A row's
/// arithmetic depends on its position alone.
#include <algorithm>
#include <limits>

#include "kernels/cpu/attention_tiles.h"
#include "kernels/cpu/bodies.h"
#include "kernels/cpu/latent.h"
#include "kernels/cpu/matmul.h"
#include "kernels/cpu/vector.h"
#include "ops/checks.h"

namespace exo::kernels::cpu {

namespace {

using ops::kPageTokens;

constexpr int64_t kBlockPages = 32;
constexpr int64_t kGroupHeads = 16;
constexpr int64_t kExpandPages = 4;  // in one product
constexpr int64_t kMostRows = 512;   // of a task
constexpr int64_t kFewestRows = 64;
constexpr int64_t kSpareRows = 31;  // expanded_rows goes by 32
constexpr int64_t kRowsAtOnce = 4;  // what the vector kernels compute together

struct Body {
  const ops::MlaExpandedArgs& args;
  const VectorKernels& v;
  const ExpandedAttention& on;
  Matmul kernel_k, kernel_v;
  int64_t rank, rope, nope, value, entry_padded, nope_padded, value_padded;
  int64_t n_heads, tile_bytes, query_row_bytes;

  // Of all threads, filled by take().
  std::byte* tiles = nullptr;       // [kBlockPages][kGroupHeads] of tile_bytes
  bool* finite = nullptr;           // [kBlockPages][kGroupHeads]
  PackedRows latents;               // [kBlockPages * kPageTokens, rank]
  float* k_rope = nullptr;          // [kBlockPages * kPageTokens, rope]
  SoftmaxState* softmax = nullptr;  // [kGroupHeads, rows of a sequence]
  int64_t softmax_rows = 0;
  std::byte* thread_memory = nullptr;
  int64_t thread_bytes = 0;

  Body(Isa isa, const ops::MlaExpandedArgs& a)
      : args(a),
        v(vector_kernels(isa)),
        on(*expanded_attention(isa)),
        kernel_k(find_matmul(isa, a.activation, a.w_k[0].format)),
        kernel_v(find_matmul(isa, a.activation, a.w_v[0].format)),
        rank(a.pages.kv_lora_rank),
        rope(a.pages.rope_dim),
        nope(a.q.dim(2) - rope),
        value(a.out.dim(2)),
        entry_padded(align_up(rank + rope, 16)),
        nope_padded(align_up(nope, 16)),
        value_padded(align_up(value, 16)),
        n_heads(a.q.dim(1)),
        tile_bytes(expanded_tile_bytes(nope + rope, value)),
        query_row_bytes(exo::kernels::cpu::query_row_bytes(nope + rope)) {
    for (const ops::SequenceRows& s : a.sequences)
      softmax_rows = std::max<int64_t>(softmax_rows, s.n_rows);
    const int64_t rows = std::min(softmax_rows, kMostRows) + kSpareRows;
    thread_bytes = kMatmulScratchBytes +
                   kExpandPages * kPageTokens * (nope_padded + value_padded) * 4 +
                   align_up(entry_padded * 4) + (nope + rope) * kPageTokens * 4 +
                   expanded_scratch_bytes(nope + rope) + rows * query_row_bytes +
                   align_up(rows * value * 4) + align_up(rows * 4);
  }

  Status take(int n_threads, Arena& arena) {
    tiles = arena.take_bytes(kBlockPages * std::min(n_heads, kGroupHeads) * tile_bytes);
    finite = arena.take<bool>(kBlockPages * kGroupHeads);
    k_rope = arena.take<float>(kBlockPages * kPageTokens * rope);
    softmax = arena.take<SoftmaxState>(kGroupHeads * softmax_rows);
    thread_memory = arena.take_bytes(n_threads * thread_bytes);
    auto rows = ops::take_packed_rows(args.activation, kBlockPages * kPageTokens, rank, arena);
    if (tiles == nullptr || finite == nullptr || k_rope == nullptr || softmax == nullptr ||
        thread_memory == nullptr || !rows.ok())
      return ops::scratch_exhausted("mla_expanded",
                                    ops::mla_expanded_scratch_bytes(args.q.dim(0), n_heads, nope,
                                                                    rope, value, rank, n_threads),
                                    arena);
    latents = *rows;
    return ok_status();
  }

  struct ThreadMemory {
    std::byte* matmul;
    float* k;              // [kExpandPages * 64, nope_padded]
    float* v;              // [kExpandPages * 64, value_padded]
    float* entry;          // [entry_padded]
    float* k_t;            // [nope + rope, 64]
    std::byte* attention;  // expanded_scratch_bytes
    std::byte* queries;
    float* sums;      // [rows, value]
    float* q_scales;  // [rows]
  };
  ThreadMemory memory_of(int thread) const {
    ThreadMemory m;
    m.matmul = thread_memory + thread * thread_bytes;
    m.k = reinterpret_cast<float*>(m.matmul + kMatmulScratchBytes);
    m.v = m.k + kExpandPages * kPageTokens * nope_padded;
    m.entry = m.v + kExpandPages * kPageTokens * value_padded;
    m.k_t = reinterpret_cast<float*>(reinterpret_cast<std::byte*>(m.entry) +
                                     align_up(entry_padded * 4));
    m.attention = reinterpret_cast<std::byte*>(m.k_t + (nope + rope) * kPageTokens);
    m.queries = m.attention + expanded_scratch_bytes(nope + rope);
    const int64_t rows = std::min(softmax_rows, kMostRows) + kSpareRows;
    m.sums = reinterpret_cast<float*>(m.queries + rows * query_row_bytes);
    m.q_scales =
        reinterpret_cast<float*>(reinterpret_cast<std::byte*>(m.sums) + align_up(rows * value * 4));
    return m;
  }

  // Pages [first, first + n_pages) of a sequence and the heads that are worked on together.
  struct Block {
    const ops::SequenceRows* sequence = nullptr;
    int64_t first = 0, n_pages = 0;
    int64_t head = 0, n_heads = 0;

    int64_t n_tokens() const { return int64_t{sequence->n_past} + sequence->n_rows; }
    int64_t tokens_of(int64_t page) const {  // of a page of the block
      return std::min(kPageTokens, n_tokens() - (first + page) * kPageTokens);
    }
  };

  // A page's latents in the products' type and its rotated keys in f32, which all heads share.
  void load_page(const Block& b, int64_t page, const ThreadMemory& m) const {
    const int32_t number = b.sequence->pages[static_cast<size_t>(b.first + page)];
    for (int64_t i = 0; i < b.tokens_of(page); ++i) {
      const int64_t row = page * kPageTokens + i;
      load_entry(v, args.pages, number, i, m.entry);
      v.pack_row(m.entry, row, latents);
      std::copy_n(m.entry + rank, rope, k_rope + row * rope);
    }
  }

  void expand(const PackedMatrix& w, const Matmul& kernel, int64_t page, int64_t n_rows, float* out,
              int64_t stride, const ThreadMemory& m) const {
    kernel({.x = &latents,
            .row_begin = page * kPageTokens,
            .n_rows = n_rows,
            .w = &w,
            .panel_begin = 0,
            .n_panels = w.n_panels(),
            .out = out,
            .out_stride = stride,
            .accumulate = false,
            .scratch = m.matmul});
  }
  void expand_head(int64_t head, int64_t page, int64_t n_rows, const ThreadMemory& m) const {
    const auto h = static_cast<size_t>(head);
    expand(args.w_k[h], kernel_k, page, n_rows, m.k, nope_padded, m);
    expand(args.w_v[h], kernel_v, page, n_rows, m.v, value_padded, m);
  }

  std::byte* tiles_of(int64_t page, int64_t head_in_group) const {
    return tiles + (page * std::min(n_heads, kGroupHeads) + head_in_group) * tile_bytes;
  }

  // One head's keys and values of up to kExpandPages pages.
  void expand_pages(const Block& b, int64_t page, int64_t head_in_group,
                    const ThreadMemory& m) const {
    const int64_t end = std::min(page + kExpandPages, b.n_pages);
    const int64_t n_rows = (end - 1 - page) * kPageTokens + b.tokens_of(end - 1);
    expand_head(b.head + head_in_group, page, n_rows, m);
    for (int64_t p = page; p < end; ++p) {
      const int64_t row = (p - page) * kPageTokens;
      finite[p * kGroupHeads + head_in_group] = on.page({.k = m.k + row * nope_padded,
                                                         .k_stride = nope_padded,
                                                         .nope = nope,
                                                         .k_rope = k_rope + p * kPageTokens * rope,
                                                         .rope_stride = rope,
                                                         .rope = rope,
                                                         .v = m.v + row * value_padded,
                                                         .v_stride = value_padded,
                                                         .value = value,
                                                         .n_keys = b.tokens_of(p)},
                                                        tiles_of(p, head_in_group), m.attention);
    }
  }

  // Rows [row, row + n_rows) of the sequence, one head.
  struct Rows {
    int64_t row = 0, n_rows = 0, head_in_group = 0;
  };

  SoftmaxState* softmax_of(const Rows& r) const {
    return softmax + r.head_in_group * softmax_rows + r.row;
  }

  void attend_tiles(const Block& b, const Rows& r, int64_t page, int64_t n_pages,
                    const ThreadMemory& m) const {
    const int64_t position = b.sequence->n_past + r.row;  // of the first row
    const int64_t page_begin = (b.first + page) * kPageTokens;
    const int64_t i = std::max<int64_t>(0, page_begin - position);
    on.rows({.q = m.queries + i * query_row_bytes,
             .q_scales = m.q_scales + i,
             .n_rows = r.n_rows - i,
             .qk = nope + rope,
             .value = value,
             .n_pages = n_pages,
             .tiles_apart = tiles_of(1, 0) - tiles_of(0, 0),
             .n_keys = position + i + 1 - page_begin,
             .scale = args.softmax_scale,
             .softmax = softmax_of(r) + i,
             .sums = m.sums + i * value},
            tiles_of(page, r.head_in_group), m.attention);
  }

  // How many pages from `page` on, in steps that begin at multiples of most_pages, are finite.
  int64_t pages_together(int64_t page, int64_t end, int64_t head_in_group) const {
    int64_t n = 0;
    const int64_t most = std::min(on.most_pages - page % on.most_pages, end - page);
    while (n < most && finite[(page + n) * kGroupHeads + head_in_group]) ++n;
    return n;
  }

  // A page with values that aren't finite: 0 times them isn't 0, so that every row takes only what
  // it may see.
  void attend_vectors(const Block& b, const Rows& r, int64_t page, const ThreadMemory& m) const {
    const int64_t n = b.tokens_of(page), head = b.head + r.head_in_group;
    expand_head(head, page, n, m);
    v.transpose_page(m.k, nope_padded, n, nope, m.k_t);
    v.transpose_page(k_rope + page * kPageTokens * rope, rope, n, rope, m.k_t + nope * kPageTokens);
    const int64_t position = b.sequence->n_past + r.row;
    const int64_t page_begin = (b.first + page) * kPageTokens;
    alignas(64) float p[kRowsAtOnce * kPageTokens];
    for (int64_t i = std::max<int64_t>(0, page_begin - position); i < r.n_rows; i += kRowsAtOnce) {
      const int64_t n_q = std::min(kRowsAtOnce, r.n_rows - i);
      const float* q =
          args.q.row<float>(b.sequence->row_begin + r.row + i) + head * args.q.stride(1);
      v.score_columns(q, args.q.stride(0), n_q, m.k_t, nope + rope, args.softmax_scale, p);
      float keep[kRowsAtOnce];
      int64_t n_keys[kRowsAtOnce];
      for (int64_t j = 0; j < n_q; ++j) {
        n_keys[j] = std::min(kPageTokens, position + i + j + 1 - page_begin);
        keep[j] = v.softmax_page(p + j * kPageTokens, n_keys[j], softmax_of(r)[i + j]);
      }
      v.add_values(p, keep, n_keys, n_q, m.v, value_padded, value, m.sums + i * value, value);
    }
  }

  void attend(const Block& b, const Rows& r, const ThreadMemory& m) const {
    const int64_t last_page = (b.sequence->n_past + r.row + r.n_rows - 1) / kPageTokens;
    if (last_page < b.first) return;
    const int64_t head = b.head + r.head_in_group;
    const auto out = [&](int64_t i) {
      return args.out.row<float>(b.sequence->row_begin + r.row + i) + head * args.out.stride(1);
    };
    on.queries(args.q.row<float>(b.sequence->row_begin + r.row) + head * args.q.stride(1),
               args.q.stride(0), r.n_rows, nope + rope, m.queries, m.q_scales);
    if (b.first == 0) {
      std::fill_n(m.sums, r.n_rows * value, 0.0f);
      std::fill_n(softmax_of(r), r.n_rows,
                  SoftmaxState{-std::numeric_limits<float>::infinity(), 0.0f});
    } else {
      for (int64_t i = 0; i < r.n_rows; ++i) std::copy_n(out(i), value, m.sums + i * value);
    }
    const int64_t end = std::min(b.n_pages, last_page + 1 - b.first);
    for (int64_t page = 0, n = 1; page < end; page += n) {
      n = pages_together(page, end, r.head_in_group);
      if (n > 0) {
        attend_tiles(b, r, page, n, m);
      } else {
        attend_vectors(b, r, page, m);
        n = 1;
      }
    }
    const bool done = last_page < b.first + b.n_pages;
    for (int64_t i = 0; i < r.n_rows; ++i) {
      std::copy_n(m.sums + i * value, value, out(i));
      if (done) v.divide(out(i), softmax_of(r)[i].sum, value);
    }
  }

  void run_block(const Block& b, int64_t rows_of_task, ThreadPool& pool) const {
    if (b.head == 0 || b.n_tokens() > kBlockPages * kPageTokens)  // else still there
      pool.parallel_for(b.n_pages,
                        [&](int64_t page, int thread) { load_page(b, page, memory_of(thread)); });
    const int64_t n_groups = ceil_div(b.n_pages, kExpandPages);
    pool.parallel_for(b.n_heads * n_groups, [&](int64_t i, int thread) {
      expand_pages(b, i % n_groups * kExpandPages, i / n_groups, memory_of(thread));
    });
    // One head after another: its tiles stay in the second-level cache. The last rows see the most.
    const int64_t n_blocks = ceil_div(b.sequence->n_rows, rows_of_task);
    pool.parallel_for(b.n_heads * n_blocks, [&](int64_t i, int thread) {
      const int64_t row = (n_blocks - 1 - i % n_blocks) * rows_of_task;
      attend(b,
             {.row = row,
              .n_rows = std::min(rows_of_task, b.sequence->n_rows - row),
              .head_in_group = i / n_blocks},
             memory_of(thread));
    });
  }
};

}  // namespace

bool expanded_on_tiles(Isa isa, const ops::MlaExpandedArgs& args) {
  return expanded_attention(isa) != nullptr && args.activation != DType::f32 &&
         expanded_fits_tiles(args.q.dim(2), args.out.dim(2));
}

Status mla_expanded_tiles(Isa isa, const ops::MlaExpandedArgs& args, ops::OpContext& ctx) {
  ArenaScope scope(*ctx.arena);
  Body body(isa, args);
  EXO_RETURN_IF_ERROR(body.take(ctx.pool->n_threads(), *ctx.arena));
  for (const ops::SequenceRows& s : args.sequences) {
    if (s.form != ops::AttentionForm::expanded || s.n_rows == 0) continue;
    const int64_t n_pages = ceil_div(int64_t{s.n_past} + s.n_rows, kPageTokens);
    for (int64_t head = 0; head < body.n_heads; head += kGroupHeads) {
      Body::Block b{.sequence = &s, .head = head};
      b.n_heads = std::min(kGroupHeads, body.n_heads - head);
      const int64_t fair = ceil_div(s.n_rows * b.n_heads, 2 * ctx.pool->n_threads());
      const int64_t rows_of_task = std::clamp(align_up(fair, 16), kFewestRows, kMostRows);
      for (b.first = 0; b.first < n_pages; b.first += kBlockPages) {
        b.n_pages = std::min(kBlockPages, n_pages - b.first);
        body.run_block(b, rows_of_task, *ctx.pool);
      }
    }
  }
  return ok_status();
}

}  // namespace exo::kernels::cpu
