/// The loop nest of the AMX products, shared by matmul_i8_amx.cc and matmul_bf16_amx.cc.
///
/// Three row tiles by two panels is the register block: six tiles of sums over all of K, one tile
/// of activations, one of weights. Sums that left the registers before K ends would pass through
/// the L2 cache, which takes four cycles to store a line. Activations come from L2; weights of
/// formats that must be unpacked are unpacked for every group of row tiles again, the next source
/// tile while this one is multiplied, into a ring that the L1 cache keeps: the vector units have
/// time to spare under the tile products, the way to L2 and back has not. Only fp8, which takes
/// longer to widen, is kept for the groups that follow.
///
/// Beside the products, a share after each of them: what is multiplied next is unpacked and asked
/// for. After a source tile's products come those of its columns' wide values (wide_amx.h). At the
/// end one row tile's sums after another leave by the same lines, which the L1 cache still has: by
/// way of those of the ring that were read last.
///
/// A Format says:
///   kInteger     i8 products and a scale for each row of both operands; else bf16 products
///   kSourceCols, kSourceBytes, kTilesPerSource   of a source tile, a tile of its weights
///   kUnpacked    source tiles become K tiles: Half(source tile, half, K tiles, tables)
///                .lines(begin, end)
///   kKept        those of a pair of panels are kept for all groups
///   Tables       what a panel's source tiles are unpacked with: begin(w, panel, source) comes
///                before each; Half takes them, too
///
/// Include only from files compiled for AMX (see matmul_layout.h about linkage).
#pragma once

#include <immintrin.h>

#include "kernels/cpu/matmul_layout.h"
#include "kernels/cpu/silu_avx512.h"
#include "kernels/cpu/tiles_amx.h"
#include "kernels/cpu/wide_amx.h"

namespace exo::kernels::cpu {
namespace {  // NOLINT: internal linkage on purpose

constexpr int kMostRowTiles = 3;  ///< of a group
constexpr int64_t kMostGroups = 11;
constexpr int64_t kTileSumBytes = 2 * kTile;  ///< of a row tile and a pair: [row][panel] lines
constexpr int64_t kGroupSumBytes = kMostRowTiles * kTileSumBytes;
constexpr int64_t kSourceTiles = 2;  ///< the most K tiles that a source tile is unpacked to
constexpr int64_t kSlotBytes = 2 * kSourceTiles * kTile;  ///< a source tile of both panels
constexpr int64_t kRowsInL2Bytes = 1200 << 10;  ///< activations of a pass, which stay there
constexpr int64_t kMostPassRows = 288;  ///< of integers: 528 of 2,048 columns stay less well
constexpr int64_t kWriteAhead = 8;      ///< rows of output asked for before they are written
/// Of all rows' output: so much is written past the caches, which would read its lines before they
/// are written and lose them before they are read.
constexpr int64_t kStreamedBytes = 16 << 20;
constexpr int64_t kTailTiles = 15 + kSourceTiles;

/// Of formats whose source tiles say all about themselves.
struct NoTables {
  void begin(const PackedMatrix& /*w*/, int64_t /*panel*/, int64_t /*source*/) {}
};

/// Of formats that are multiplied as they are.
struct NothingToUnpack {
  NothingToUnpack(const uint8_t* /*tile*/, int /*half*/, uint8_t* /*to*/, const NoTables&) {}
  void lines(int /*begin*/, int /*end*/) const {}
};

/// The thread's scratch, cut up.
struct AmxScratch {
  uint8_t* sums;     ///< a row tile's
  uint8_t* tail;     ///< the end of a row tile of fewer than 16 rows
  uint8_t* ring;     ///< slots, [panel][K tile]: what is multiplied, and what comes next
  WideScratch wide;  ///< of integers, behind the two slots that those use
};
static_assert(kTileSumBytes <= kSlotBytes);
constexpr int64_t kMostSlots =
    (kMatmulScratchBytes - kTileSumBytes - kTailTiles * kTile) / kSlotBytes;

static_assert(kTileSumBytes + kTailTiles * kTile + 2 * kSlotBytes + kGroupSumBytes +
                  (kMostWideEntries + kMostGroups) * static_cast<int64_t>(sizeof(WideEntry)) <=
              kMatmulScratchBytes);

inline AmxScratch cut_scratch(std::byte* scratch) {
  AmxScratch s;
  s.sums = reinterpret_cast<uint8_t*>(scratch);
  s.tail = s.sums + kTileSumBytes;
  s.ring = s.tail + kTailTiles * kTile;
  s.wide.sums = s.ring + 2 * kSlotBytes;
  s.wide.entries = reinterpret_cast<WideEntry*>(s.wide.sums + kGroupSumBytes);
  return s;
}

/// Row tiles multiplied together. All have 16 lines a K tile but the last of the matrix. If it is
/// all that a task has, the tile registers have as many lines. Else the lines beyond are the next K
/// tile's, whose sums are not used, and its last K tiles, whose 16 lines would pass the end of the
/// activations, are copied out.
struct Group {
  int64_t row, n_rows;
  int n_tiles;
  const uint8_t* a[kMostRowTiles];
  int64_t last_step;  ///< bytes from a K tile of the last row tile to the next
  int64_t tail_at;    ///< the source tile from which on the last row tile is in `tail`, or -1
  const uint8_t* tail;
  const WideEntry* wide;  ///< its rows' wide values (integers)
};

template <class Format>
inline Group make_group(const PackedRows& x, int64_t row, int64_t n_rows, int64_t tile_rows,
                        uint8_t* tail) {
  Group g = {row, n_rows, static_cast<int>(ceil_of(n_rows, 16)), {}, kTile, -1, tail, nullptr};
  for (int i = 0; i < g.n_tiles; ++i) g.a[i] = row_tile(x, row + i * 16).data;
  const int64_t last = row + (g.n_tiles - 1) * 16, n = min_of(16, x.n_rows - last);
  if (n == 16) return g;
  const RowTile rt = row_tile(x, last);
  const int64_t n_k_tiles = row_bytes_of(x) / kLine;
  g.last_step = rt.step;
  if (tile_rows < 16) return g;
  g.tail_at = max_of(0, n_k_tiles - ceil_of(16, n) + 1) / Format::kTilesPerSource;
  const int64_t from = g.tail_at * Format::kTilesPerSource;
  for (int64_t t = from; t < n_k_tiles; ++t)
    __builtin_memcpy(tail + (t - from) * kTile, rt.data + t * rt.step,
                     static_cast<size_t>(n * kLine));
  return g;
}

/// Two panels' packed bytes; the last one alone is both.
struct PanelPair {
  int64_t index[2];
  const uint8_t* panel[2];

  int64_t count() const { return index[0] == index[1] ? 1 : 2; }
};

/// What comes next, asked for into L2 evenly over the products until then, in four streams: one
/// alone comes later.
class Prefetch {
 public:
  Prefetch(const uint8_t* from, int64_t n_bytes, int64_t n_products)
      : at_(from),
        n_lines_(ceil_of(n_bytes, kStreams * kLine)),
        apart_(n_lines_ * kLine),
        n_products_(n_products) {}
  /// After each of n_products.
  inline __attribute__((always_inline)) void step() {
    for (credit_ += n_lines_; credit_ > 0; credit_ -= n_products_, at_ += kLine) {
#pragma GCC unroll 4
      for (int i = 0; i < kStreams; ++i)
        _mm_prefetch(reinterpret_cast<const char*>(at_ + i * apart_), _MM_HINT_T1);
    }
  }

 private:
  static constexpr int kStreams = 4;
  const uint8_t* at_;
  int64_t n_lines_, apart_, n_products_, credit_ = 0;
};

/// Whether the task's output is written past the caches.
inline bool is_streamed(const MatmulTask& task) {
  return task.epilogue.kind == Epilogue::Kind::none && !task.accumulate &&
         task.x->n_rows * task.out_stride * 4 >= kStreamedBytes &&
         task.out_stride % kPanelRows == 0 && reinterpret_cast<uintptr_t>(task.out) % kLine == 0;
}

/// The products of a row tile and a pair of panels on their way to the task's output or epilogue.
template <class Format>
class TileProducts {
 public:
  /// Rows [row, row + n_rows) of x; sums and wide: [row][panel] lines.
  TileProducts(const MatmulTask& task, int64_t row, int64_t n_rows, int64_t panel, int64_t n_panels,
               const uint8_t* sums, const uint8_t* wide)
      : task_(task),
        row_(row),
        n_rows_(n_rows),
        panel_(panel),
        n_panels_(n_panels),
        sums_(sums),
        wide_(wide) {
    for (int64_t p = 0; p < n_panels; ++p) {
      mask_[p] = output_mask(*task.w, panel + p);
      if constexpr (Format::kInteger)
        row_scales_[p] = _mm512_loadu_ps(task.w->row_scales + (panel + p) * kPanelRows);
    }
    if constexpr (Format::kInteger) {
      scales_ = task.x->scales + row;
      n_wide_ = task.x->n_wide + row;
    }
  }

  /// `ahead`: rows after these that the output has, too.
  void write(int64_t ahead) const {
    const bool streamed = is_streamed(task_), accumulate = task_.accumulate;
    const int64_t stride = task_.out_stride;
    float* out =
        task_.out + (row_ - task_.row_begin) * stride + (panel_ - task_.panel_begin) * kPanelRows;
    for (int64_t r = 0; r < n_rows_; ++r, out += stride) {
      for (int64_t p = 0; p < n_panels_; ++p) {
        float* to = out + p * kPanelRows;
        __m512 v = scaled(r, p);
        if (accumulate) v = _mm512_add_ps(_mm512_maskz_loadu_ps(mask_[p], to), v);
        v = with_wide(r, p, v);
        if (streamed && mask_[p] == 0xFFFF) {
          _mm512_stream_ps(to, v);
        } else {
          _mm512_mask_storeu_ps(to, mask_[p], v);
        }
      }
      // A store that waits for its line holds up the stores behind it.
      if (!streamed && r + kWriteAhead < n_rows_ + ahead) {
        const float* then = out + kWriteAhead * stride;
        asm volatile("prefetchw %0" : : "m"(*then));
        if (n_panels_ == 2) asm volatile("prefetchw %0" : : "m"(then[kPanelRows]));
      }
    }
  }

  void silu_mul(const Epilogue& e) const {
    float* to = e.to + row_ * e.stride + panel_ / 2 * kPanelRows;
    for (int64_t r = 0; r < n_rows_; ++r, to += e.stride)
      _mm512_storeu_ps(to, silu_mul_16(product(r, 0), product(r, 1)));
  }

  void add_scaled_rows(const Epilogue& e) const {
    const int32_t* rows = e.rows + row_;
    const float* scales = e.scales + row_;
    for (int64_t r = 0; r < n_rows_; ++r) {
      const __m512 scale = _mm512_set1_ps(scales[r]);
      float* to = e.to + rows[r] * e.stride + panel_ * kPanelRows;
      for (int64_t p = 0; p < n_panels_; ++p, to += kPanelRows) {
        // Two roundings, as in the reference.
        const __m512 sum =
            _mm512_add_ps(_mm512_maskz_loadu_ps(mask_[p], to), _mm512_mul_ps(scale, product(r, p)));
        _mm512_mask_storeu_ps(to, mask_[p], sum);
      }
    }
  }

 private:
  inline __attribute__((always_inline)) __m512 scale_of(int64_t r, int64_t p) const {
    return _mm512_mul_ps(_mm512_set1_ps(scales_[r]), row_scales_[p]);
  }
  inline __attribute__((always_inline)) __m512 scaled(int64_t r, int64_t p) const {
    const uint8_t* line = sums_ + (2 * r + p) * kLine;
    if constexpr (!Format::kInteger) return _mm512_load_ps(line);
    return _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_load_si512(line)), scale_of(r, p));
  }
  inline __attribute__((always_inline)) __m512 with_wide(int64_t r, int64_t p, __m512 v) const {
    if constexpr (!Format::kInteger) return v;
    if (n_wide_[r] == 0) return v;
    const __m512i wide = _mm512_load_si512(wide_ + (2 * r + p) * kLine);
    return _mm512_add_ps(v, _mm512_mul_ps(_mm512_cvtepi32_ps(wide), scale_of(r, p)));
  }
  inline __attribute__((always_inline)) __m512 product(int64_t r, int64_t p) const {
    return with_wide(r, p, scaled(r, p));
  }

  const MatmulTask& task_;
  const int64_t row_, n_rows_, panel_, n_panels_;
  const uint8_t* const sums_;
  const uint8_t* const wide_;
  __mmask16 mask_[2] = {};
  __m512 row_scales_[2];
  const float* scales_ = nullptr;
  const int32_t* n_wide_ = nullptr;
};

// The next product of a K tile, number i of its row of kA, and a share of what is beside it. A
// macro, as a tile's number is part of its instruction.
#define EXO_PRODUCT(sum, i)         \
  if constexpr (Format::kInteger) { \
    _tile_dpbssd(sum, 7, 6);        \
  } else {                          \
    _tile_dpbf16ps(sum, 7, 6);      \
  }                                 \
  ahead.step();                     \
  if constexpr (kUnpacks) half.lines((i)*8 / kA, ((i) + 1) * 8 / kA)

// Row tile i's sums leave their tiles.
#define EXO_FINISH(sum0, sum1, i)                \
  {                                              \
    _tile_stored(sum0, sums, 2 * kLine);         \
    _tile_stored(sum1, sums + kLine, 2 * kLine); \
    asm volatile("" : : : "memory");             \
    finish(group, i, pair, sums);                \
  }

/// A thread's work on a task.
template <class Format>
struct Amx {
  using Half = typename Format::Half;
  using Tables = typename Format::Tables;

  const MatmulTask& task;
  const AmxScratch scratch;
  const int64_t tile_rows;  // of the tile registers
  const int64_t n_sources;  // source tiles along K
  bool kept = false;        // the ring holds all source tiles of a pair, else what comes next
  int64_t turn = 0;         // source tiles that went through the ring before
  Prefetch prefetch{nullptr, 0, 1};
  Tables tables[2];  // of a pair's panels

  explicit Amx(const MatmulTask& t)
      : task(t),
        scratch(cut_scratch(t.scratch)),
        tile_rows(min_of(16, t.n_rows)),
        n_sources(ceil_of(t.w->n_in, Format::kSourceCols)) {}

  PanelPair pair_at(const PackedMatrix& w, int64_t panel, int64_t n_panels) const {
    const int64_t bytes = panel_stride(w, Format::kSourceCols, Format::kSourceBytes);
    const uint8_t* first = tiles_of(w) + panel * bytes;
    if (n_panels > 1) return {{panel, panel + 1}, {first, first + bytes}};
    return {{panel, panel}, {first, first}};
  }
  uint8_t* ring(int64_t source, int panel) const {
    return scratch.ring + (kept ? source : (turn + source) % 2) * kSlotBytes +
           panel * kSourceTiles * kTile;
  }
  /// What is multiplied of a source tile.
  const uint8_t* tiles_at(const PanelPair& pair, int64_t source, int p) const {
    return Format::kUnpacked ? ring(source, p) : pair.panel[p] + source * Format::kSourceBytes;
  }
  void unpack_first(const PanelPair& pair) {
    for (int p = 0; p < 2; ++p) {
      tables[p].begin(*task.w, pair.index[p], 0);
      for (int h = 0; h < 2; ++h) Half(pair.panel[p], h, ring(0, p), tables[p]).lines(0, 8);
    }
  }

  /// Row tile i of a group, whose sums are in `sums`.
  __attribute__((noinline)) void finish(const Group& group, int i, const PanelPair& pair,
                                        const uint8_t* sums) const {
    const int64_t row = i * 16, n_rows = min_of(16, group.n_rows - row);
    const TileProducts<Format> products(task, group.row + row, n_rows, pair.index[0], pair.count(),
                                        sums, scratch.wide.sums + i * kTileSumBytes);
    switch (task.epilogue.kind) {
      case Epilogue::Kind::none:
        return products.write(group.n_rows - row - n_rows);
      case Epilogue::Kind::silu_mul:
        return products.silu_mul(task.epilogue);
      case Epilogue::Kind::add_scaled_rows:
        return products.add_scaled_rows(task.epilogue);
    }
  }

  /// A group's products with a pair of panels. With kUnpacks each source tile unpacks the one that
  /// comes then, the last one the first of `next`.
  template <int kA, bool kUnpacks>
  void multiply(const Group& group, const PanelPair& pair, const PanelPair& next) {
    const uint8_t* a0 = group.a[0];
    const uint8_t* a1 = group.a[kA > 1 ? 1 : 0];
    const uint8_t* last = group.a[kA - 1];
    int64_t last_step = group.last_step;
    [[maybe_unused]] const WideEntry* wide = group.wide;
    if constexpr (Format::kInteger) {
      if (wide->source != kNoSource) __builtin_memset(scratch.wide.sums, 0, kGroupSumBytes);
    }
    // In registers: as a member it would be stored between tile loads.
    Prefetch ahead = prefetch;
    zero_tiles();
    for (int64_t s = 0; s < n_sources; ++s) {
      if (s == group.tail_at) {
        last = group.tail;
        last_step = kTile;
      }
      const bool at_end = s + 1 == n_sources;
      const PanelPair& unpacked = at_end ? next : pair;
      const int64_t next_source = at_end ? 0 : s + 1, offset = next_source * Format::kSourceBytes;
#pragma GCC unroll 2
      for (int t = 0; t < Format::kTilesPerSource; ++t) {
        const uint8_t* b[2];
        for (int p = 0; p < 2; ++p) b[p] = tiles_at(pair, s, p) + t * kTile;
        // Beside K tile t, panel t of the source tile that comes then.
        const uint8_t* source = unpacked.panel[t] + offset;
        uint8_t* to = ring(s + 1, t);
        if constexpr (kUnpacks) tables[t].begin(*task.w, unpacked.index[t], next_source);
        // Tile instructions don't tell the compiler what they read.
        asm volatile("" : : : "memory");
        {
          const Half half(source, 0, to, tables[t]);
          _tile_loadd(6, b[0], kLine);
          if constexpr (kA > 1) {
            _tile_loadd(7, a0, kLine);
            EXO_PRODUCT(0, 0);
          }
          if constexpr (kA > 2) {
            _tile_loadd(7, a1, kLine);
            EXO_PRODUCT(2, 1);
          }
          _tile_loadd(7, last, kLine);
          if constexpr (kA == 1) {
            EXO_PRODUCT(0, 0);
          } else if constexpr (kA == 2) {
            EXO_PRODUCT(2, 1);
          } else {
            EXO_PRODUCT(4, 2);
          }
        }
        {
          const Half half(source, 1, to, tables[t]);
          _tile_loadd(6, b[1], kLine);
          if constexpr (kA == 1) {
            EXO_PRODUCT(1, 0);
          } else if constexpr (kA == 2) {
            EXO_PRODUCT(3, 0);
          } else {
            EXO_PRODUCT(5, 0);
          }
          if constexpr (kA > 2) {
            _tile_loadd(7, a1, kLine);
            EXO_PRODUCT(3, 1);
          }
          if constexpr (kA > 1) {
            _tile_loadd(7, a0, kLine);
            EXO_PRODUCT(1, kA - 1);
          }
        }
        a0 += kTile;
        a1 += kTile;
        last += last_step;
      }
      if constexpr (Format::kInteger) {
        if (wide->source == s)
          wide = add_wide(wide, tiles_at(pair, s, 0), tiles_at(pair, s, 1), scratch.wide.sums);
      }
    }
    prefetch = ahead;
    // The slot that was read last is free.
    uint8_t* sums = kUnpacks && !kept ? ring(n_sources - 1, 0) : scratch.sums;
    EXO_FINISH(0, 1, 0);
    if constexpr (kA > 1) EXO_FINISH(2, 3, 1);
    if constexpr (kA > 2) EXO_FINISH(4, 5, 2);
  }

  template <bool kUnpacks>
  void multiply_group(const Group& group, const PanelPair& pair, const PanelPair& next) {
    if (group.n_tiles == 3) return multiply<3, kUnpacks>(group, pair, next);
    if (group.n_tiles == 2) return multiply<2, kUnpacks>(group, pair, next);
    multiply<1, kUnpacks>(group, pair, next);
  }

  /// Asks for the first pair of `panels` the products of the pair that comes now.
  void ask_for(const Panels& panels, int64_t n_tiles) {
    const uint8_t* from = nullptr;
    int64_t n_bytes = 0;
    if (panels.w != nullptr) {
      from = pair_at(*panels.w, panels.begin, panels.count).panel[0];
      n_bytes = min_of(2, panels.count) *
                panel_stride(*panels.w, Format::kSourceCols, Format::kSourceBytes);
    }
    prefetch = Prefetch(from, n_bytes, n_sources * Format::kTilesPerSource * 2 * n_tiles);
  }

  /// n_rows rows from `row` on with all panels of the task; `after`: what is multiplied then.
  void pass(int64_t row, int64_t n_rows, const Panels& after) {
    const int64_t n_tiles = ceil_of(n_rows, 16), n_groups = ceil_of(n_tiles, kMostRowTiles);
    Group groups[kMostGroups];
    WideEntry* wide = scratch.wide.entries;
    for (int64_t g = 0, tile = 0; g < n_groups; ++g) {
      const int64_t n = ceil_of(n_tiles - tile, n_groups - g);
      groups[g] = make_group<Format>(*task.x, row + tile * 16, min_of(n * 16, n_rows - tile * 16),
                                     tile_rows, scratch.tail);
      if constexpr (Format::kInteger) {
        groups[g].wide = wide;
        wide = list_wide(*task.x, groups[g].row, groups[g].n_rows, Format::kSourceCols, wide);
      }
      tile += n;
    }
    const int64_t end = task.panel_begin + task.n_panels;
    kept = Format::kKept && n_groups > 1 && n_sources < kMostSlots;
    PanelPair pair = pair_at(*task.w, task.panel_begin, task.n_panels);
    unpack_first(pair);
    for (int64_t panel = task.panel_begin; panel < end; panel += 2) {
      const bool at_end = panel + 2 >= end;
      const PanelPair next = at_end ? pair : pair_at(*task.w, panel + 2, end - panel - 2);
      ask_for(at_end ? after : Panels{task.w, panel + 2, end - panel - 2}, n_tiles);
      for (int64_t g = 0; g < n_groups; ++g) {
        if (Format::kUnpacked && (g == 0 || !kept)) {
          multiply_group<true>(groups[g], pair, g + 1 < n_groups ? pair : next);
        } else {
          multiply_group<false>(groups[g], pair, next);
        }
        turn += n_sources;
      }
      if (kept && !at_end) unpack_first(next);
      pair = next;
    }
  }
};
#undef EXO_PRODUCT
#undef EXO_FINISH

/// The whole task: passes of as many rows as stay in the L2 cache.
template <class Format>
inline void amx_product(const MatmulTask& task) {
  Amx<Format> amx(task);
  configure_tiles(amx.tile_rows);
  const int64_t group_rows = kMostRowTiles * 16;
  const int64_t groups_in_l2 = kRowsInL2Bytes / row_bytes_of(*task.x) / group_rows;
  int64_t in_l2 = min_of(kMostGroups, max_of(1, groups_in_l2)) * group_rows;
  if (Format::kInteger)
    in_l2 =
        min_of(min_of(in_l2, kMostPassRows), kMostWideEntries / most_wide_of(*task.x) / 16 * 16);
  // Passes of nearly equal size.
  const int64_t n_passes = ceil_of(task.n_rows, in_l2), step = min_of(group_rows, in_l2);
  const int64_t rows = ceil_of(ceil_of(task.n_rows, n_passes), step) * step;
  const Panels again = {task.w, task.panel_begin, task.n_panels};
  for (int64_t r = 0; r < task.n_rows; r += rows)
    amx.pass(task.row_begin + r, min_of(rows, task.n_rows - r),
             r + rows < task.n_rows ? again : task.next);
  _tile_release();
  if (is_streamed(task)) _mm_sfence();  // before another thread learns that it is there
}

}  // namespace
}  // namespace exo::kernels::cpu
