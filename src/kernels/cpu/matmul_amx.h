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
/// for. After a source tile's products come those of its columns' wide values (wide_amx.h).
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
#include "kernels/cpu/tiles_amx.h"
#include "kernels/cpu/wide_amx.h"

namespace exo::kernels::cpu {
namespace {  // NOLINT: internal linkage on purpose

constexpr int kMostRowTiles = 3;  ///< of a group
constexpr int64_t kMostGroups = 11;
constexpr int64_t kSumBytes = 2 * kMostRowTiles * kTile;  ///< a group's: [row tile][panel] tiles
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
  uint8_t* sums;     ///< a group's
  float* products;   ///< of a group and a pair, for `take`
  uint8_t* tail;     ///< the end of a row tile of fewer than 16 rows
  uint8_t* ring;     ///< slots, [panel][K tile]: what is multiplied, and what comes next
  WideScratch wide;  ///< of integers, behind the two slots that those use
};
constexpr int64_t kMostSlots =
    (kMatmulScratchBytes - 2 * kSumBytes - kTailTiles * kTile) / kSlotBytes;

static_assert(kTailTiles * kTile + 2 * kSlotBytes + 3 * kSumBytes +
                  (kMostWideEntries + kMostGroups) * static_cast<int64_t>(sizeof(WideEntry)) <=
              kMatmulScratchBytes);

inline AmxScratch cut_scratch(std::byte* scratch) {
  AmxScratch s;
  s.sums = reinterpret_cast<uint8_t*>(scratch);
  s.products = reinterpret_cast<float*>(s.sums + kSumBytes);
  s.tail = s.sums + 2 * kSumBytes;
  s.ring = s.tail + kTailTiles * kTile;
  s.wide.sums = s.ring + 2 * kSlotBytes;
  s.wide.entries = reinterpret_cast<WideEntry*>(s.wide.sums + kSumBytes);
  return s;
}

/// Row tiles multiplied together. All have 16 lines a K tile but the last of the matrix: where that
/// has fewer, the lines beyond are the next K tile's, whose sums are not used (a tile product takes
/// 16 cycles whatever its rows), and its last K tiles, whose 16 lines would pass the end of the
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
inline Group make_group(const PackedRows& x, int64_t row, int64_t n_rows, uint8_t* tail) {
  Group g = {row, n_rows, static_cast<int>(ceil_of(n_rows, 16)), {}, kTile, -1, tail, nullptr};
  for (int i = 0; i < g.n_tiles; ++i) g.a[i] = row_tile(x, row + i * 16).data;
  const int64_t last = row + (g.n_tiles - 1) * 16, n = min_of(16, x.n_rows - last);
  if (n == 16) return g;
  const RowTile rt = row_tile(x, last);
  const int64_t n_k_tiles = row_bytes_of(x) / kLine;
  g.last_step = rt.step;
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
  return task.take == nullptr && !task.accumulate &&
         task.x->n_rows * task.out_stride * 4 >= kStreamedBytes &&
         task.out_stride % kPanelRows == 0 && reinterpret_cast<uintptr_t>(task.out) % kLine == 0;
}

/// A group's products to the task's output.
template <class Format>
inline void write_out(const MatmulTask& task, const Group& group, int64_t panel, int64_t n_panels,
                      const AmxScratch& s) {
  const bool taken = task.take != nullptr, streamed = is_streamed(task);
  const int64_t stride = taken ? 2 * kPanelRows : task.out_stride;
  float* out = taken ? s.products
                     : task.out + (group.row - task.row_begin) * stride +
                           (panel - task.panel_begin) * kPanelRows;
  __mmask16 mask[2] = {};
  __m512 row_scales[2];
  for (int64_t p = 0; p < n_panels; ++p) {
    mask[p] = output_mask(*task.w, panel + p);
    if constexpr (Format::kInteger)
      row_scales[p] = _mm512_loadu_ps(task.w->row_scales + (panel + p) * kPanelRows);
  }
  for (int64_t r = 0; r < group.n_rows; ++r, out += stride) {
    const uint8_t* line = s.sums + r / 16 * 2 * kTile + r % 16 * kLine;
    for (int64_t p = 0; p < n_panels; ++p) {
      __m512 v = _mm512_load_ps(line + p * kTile), scale;
      if constexpr (Format::kInteger) {
        scale = _mm512_mul_ps(_mm512_set1_ps(task.x->scales[group.row + r]), row_scales[p]);
        v = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_castps_si512(v)), scale);
      }
      float* to = out + p * kPanelRows;
      if (task.accumulate) v = _mm512_add_ps(_mm512_maskz_loadu_ps(mask[p], to), v);
      if constexpr (Format::kInteger) {
        if (task.x->n_wide[group.row + r] > 0) {
          const __m512i wide = _mm512_load_si512(s.wide.sums + (2 * r + p) * kLine);
          v = _mm512_add_ps(v, _mm512_mul_ps(_mm512_cvtepi32_ps(wide), scale));
        }
      }
      if (streamed && mask[p] == 0xFFFF) {
        _mm512_stream_ps(to, v);
      } else {
        _mm512_mask_storeu_ps(to, mask[p], v);
      }
    }
    // A store that waits for its line holds up the stores behind it.
    if (!taken && !streamed && r + kWriteAhead < group.n_rows) {
      const float* ahead = out + kWriteAhead * stride;
      asm volatile("prefetchw %0" : : "m"(*ahead));
      if (n_panels == 2) asm volatile("prefetchw %0" : : "m"(ahead[kPanelRows]));
    }
  }
  if (taken) task.take(task.taker, {s.products, stride, group.row, group.n_rows, panel, n_panels});
}

template <int kA>
inline void store_sums(uint8_t* to) {
  _tile_stored(0, to, kLine);
  _tile_stored(1, to + kTile, kLine);
  if (kA > 1) _tile_stored(2, to + 2 * kTile, kLine);
  if (kA > 1) _tile_stored(3, to + 3 * kTile, kLine);
  if (kA > 2) _tile_stored(4, to + 4 * kTile, kLine);
  if (kA > 2) _tile_stored(5, to + 5 * kTile, kLine);
  asm volatile("" : : : "memory");
}

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

/// A thread's work on a task.
template <class Format>
struct Amx {
  using Half = typename Format::Half;
  using Tables = typename Format::Tables;

  const MatmulTask& task;
  const AmxScratch scratch;
  const int64_t n_sources;  // source tiles along K
  bool kept = false;        // the ring holds all source tiles of a pair, else what comes next
  int64_t turn = 0;         // source tiles that went through the ring before
  Prefetch prefetch{nullptr, 0, 1};
  Tables tables[2];  // of a pair's panels

  explicit Amx(const MatmulTask& t)
      : task(t),
        scratch(cut_scratch(t.scratch)),
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

  /// The sums of a group and a pair of panels, to scratch.sums. With kUnpacks each source tile
  /// unpacks the one that comes then, the last one the first of `next`.
  template <int kA, bool kUnpacks>
  void multiply(const Group& group, const PanelPair& pair, const PanelPair& next) {
    const uint8_t* a0 = group.a[0];
    const uint8_t* a1 = group.a[kA > 1 ? 1 : 0];
    const uint8_t* last = group.a[kA - 1];
    int64_t last_step = group.last_step;
    [[maybe_unused]] const WideEntry* wide = group.wide;
    if constexpr (Format::kInteger) {
      if (wide->source != kNoSource) __builtin_memset(scratch.wide.sums, 0, kSumBytes);
    }
    // In registers: stores between tile loads hold up those of the same 12 address bits.
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
    store_sums<kA>(scratch.sums);
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
                                     scratch.tail);
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
        write_out<Format>(task, groups[g], panel, min_of(2, end - panel), scratch);
      }
      if (kept && !at_end) unpack_first(next);
      pair = next;
    }
  }
};
#undef EXO_PRODUCT

/// The whole task: passes of as many rows as stay in the L2 cache.
template <class Format>
inline void amx_product(const MatmulTask& task) {
  configure_tiles();
  Amx<Format> amx(task);
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
