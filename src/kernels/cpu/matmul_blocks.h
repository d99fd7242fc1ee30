/// The loop nest of products of many rows on vectors, shared by matmul_i8_avx512.cc,
/// matmul_bf16_avx512bf16.cc, matmul_i8_avxvnni.cc and matmul_i8_avx2.cc: some rows by one or two
/// panels are the sums in registers, and each line of weights meets the rows' broadcast pieces of
/// activations.
///
/// A group of panels is taken kBlockTiles K tiles at a time: 16 KiB of weights a panel, unpacked
/// where their format asks for it, stay in the L1 cache while all rows pass, with the sums kept in
/// the scratch between blocks. Meanwhile the next block's bytes are asked for, a share with every K
/// tile.
///
/// Include only from files compiled for the vectors' instruction set (see matmul_layout.h about
/// linkage). A Format has:
///   Vector       Int (its type), kPerLine (vectors of a line), kRows and kPanels (of the register
///                block), zero, set (4 bytes in every lane), load, store, multiply_add (kScaled),
///                and Writer, of a panel's sums of one row
///   kSourceCols, kSourceBytes, kTilesPerSource   its tiles, and the K tiles of 64 bytes in each
///   kUnpackedTile   0: weights are multiplied as they lie in memory; else the bytes of a K tile
///                as unpack(source tile, to) leaves it, kMostTile at most; `to` + i * kUnpackedTile
///                is the i-th
///   kInteger     sums are int32, begin at start(x, row) and are scaled at the end; else f32
///   kScaled      f32 sums of a block times scale(w, panel, K tile)
///   block_tiles(w)   K tiles of a block, at most kBlockTiles
///   dot(sum, weights, 4 bytes of a row in every lane), or, where lines are not all there is to it,
///                multiply<rows, panels>(block, ahead) in place of multiply_rows
#pragma once

#include <immintrin.h>

#include "kernels/cpu/matmul_layout.h"

namespace exo::kernels::cpu {
namespace {  // NOLINT: internal linkage on purpose

constexpr int64_t kBlockTiles = 16;
constexpr int64_t kPassRows = 1024;  ///< rows whose sums the scratch has place for
constexpr int64_t kMostPanels = 2;   ///< of a group
constexpr int64_t kMostTile = kTile + 2 * kLine;
constexpr int64_t kTileGroups = 64 / kInt4GroupCols;  ///< of a K tile of i8 activations
static_assert(kMostPanels * (kBlockTiles * kMostTile + kPassRows * kLine) <= kMatmulScratchBytes);

/// A K block of a group of panels in the task's order.
struct KBlock {
  int64_t panel, n_panels;
  int64_t tile, n_tiles;  ///< K tiles of 64 bytes of the activations
};

/// Lines that are asked for, some at each step, of one or two runs of bytes.
class Ahead {
 public:
  Ahead() = default;
  Ahead(const uint8_t* first, const uint8_t* second, int64_t n_bytes, int64_t n_steps)
      : at_(first), second_(second), lines_(n_bytes / kLine) {
    left_ = lines_ * (second == first ? 1 : 2);
    share_ = ceil_of(left_, max_of(1, n_steps));
  }
  inline __attribute__((always_inline)) void step() {
    for (int64_t i = min_of(share_, left_); i > 0; --i) {
      _mm_prefetch(reinterpret_cast<const char*>(at_), _MM_HINT_T1);
      at_ = --left_ == lines_ ? second_ : at_ + kLine;
    }
  }

 private:
  const uint8_t *at_ = nullptr, *second_ = nullptr;
  int64_t lines_ = 0, left_ = 0, share_ = 0;
};

/// Some rows of a row tile with a K block.
struct RowsOfBlock {
  const uint8_t* x;  ///< the first row's line in the block's first K tile
  int64_t step;      ///< to the next K tile's
  const uint8_t* w;  ///< the panels' tiles
  int64_t w_apart;   ///< from one panel's to the next's
  int64_t n_tiles;
  uint8_t* sums;              ///< [rows][kPanels] lines
  const int32_t* starts;      ///< [rows], kInteger: what the sums begin with
  const int32_t* group_sums;  ///< kInteger: the first row's, from the block's first group on
  int64_t n_groups;           ///< from one row's to the next's
  const float* scales;        ///< [panels], kScaled
  bool first;                 ///< the panels' first block: there are no sums yet
};

/// R rows with P panels. Not inlined: inside a caller's loops GCC 12 copies the sums from register
/// to register with every line (fp8: half the speed).
template <class Format, int R, int P>
__attribute__((noinline)) void multiply_rows(const RowsOfBlock& b, Ahead& ahead) {
  using V = typename Format::Vector;
  constexpr int kN = P * V::kPerLine;  // vectors of weights
  constexpr int64_t kBytes = kLine / V::kPerLine, kRowBytes = V::kPanels * kLine;
  typename V::Int acc[kN][R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
    for (int n = 0; n < kN; ++n) {
      if (Format::kScaled || (b.first && !Format::kInteger)) {
        acc[n][r] = V::zero();
      } else if (b.first) {
        acc[n][r] = V::set(b.starts[r]);
      } else {
        acc[n][r] = V::load(b.sums + r * kRowBytes + n * kBytes);
      }
    }
  }
  const uint8_t *x = b.x, *w = b.w;
  for (int64_t t = 0; t < b.n_tiles; ++t, w += kTile, x += b.step) {
    ahead.step();
#pragma GCC unroll 4
    for (int line = 0; line < 16; ++line) {
      typename V::Int weights[kN];
#pragma GCC unroll 2
      for (int n = 0; n < kN; ++n)
        weights[n] =
            V::load(w + n / V::kPerLine * b.w_apart + line * kLine + n % V::kPerLine * kBytes);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        int32_t four;
        __builtin_memcpy(&four, x + r * kLine + line * 4, 4);
        const typename V::Int v = V::set(four);
#pragma GCC unroll 2
        for (int n = 0; n < kN; ++n) acc[n][r] = Format::dot(acc[n][r], weights[n], v);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
    for (int n = 0; n < kN; ++n) {
      uint8_t* to = b.sums + r * kRowBytes + n * kBytes;
      if constexpr (Format::kScaled) {
        V::store(to, V::multiply_add(acc[n][r], b.scales[n / V::kPerLine],
                                     b.first ? V::zero() : V::load(to)));
      } else {
        V::store(to, acc[n][r]);
      }
    }
  }
}

template <class Format, int P, int R = 1>
inline void multiply_any(int64_t n_rows, const RowsOfBlock& b, Ahead& ahead) {
  if constexpr (R < Format::Vector::kRows) {
    if (n_rows > R) return multiply_any<Format, P, R + 1>(n_rows, b, ahead);
  }
  if constexpr (requires { Format::template multiply<R, P>(b, ahead); }) {
    Format::template multiply<R, P>(b, ahead);
  } else {
    multiply_rows<Format, R, P>(b, ahead);
  }
}

/// A pass: rows [row, row + n_rows) with all panels of the task; `next`: what is multiplied after.
template <class Format>
class BlockPass {
  using V = typename Format::Vector;
  static constexpr int64_t kGroup = V::kPanels, kTileBytes = Format::kUnpackedTile;
  static_assert(kTileBytes <= kMostTile);

 public:
  BlockPass(const MatmulTask& task, int64_t row, int64_t n_rows, const Panels& next)
      : task_(task), w_(*task.w), row_(row), n_rows_(n_rows), next_(next) {
    unpacked_ = reinterpret_cast<uint8_t*>(task.scratch);
    sums_ = unpacked_ + kGroup * kBlockTiles * kTileBytes;
    n_k_tiles_ = ceil_of(w_.n_in, Format::kSourceCols) * Format::kTilesPerSource;
    block_tiles_ = Format::block_tiles(w_);
  }

  void run() {
    if constexpr (Format::kInteger) {
      for (int64_t r = 0; r < n_rows_; ++r) starts_[r] = Format::start(*task_.x, row_ + r);
    }
    const int64_t end = task_.panel_begin + task_.n_panels;
    for (int64_t panel = task_.panel_begin; panel < end; panel += kGroup) {
      const int64_t n_panels = min_of(kGroup, end - panel);
      for (int64_t tile = 0; tile < n_k_tiles_; tile += block_tiles_)
        run_block({panel, n_panels, tile, min_of(block_tiles_, n_k_tiles_ - tile)});
      write(panel, n_panels);
    }
  }

 private:
  static const uint8_t* source(const PackedMatrix& w, int64_t panel, int64_t tile) {
    return tiles_of(w) + panel * panel_stride(w, Format::kSourceCols, Format::kSourceBytes) +
           tile / Format::kTilesPerSource * Format::kSourceBytes;
  }
  static int64_t source_bytes(int64_t n_tiles) {
    return ceil_of(n_tiles, Format::kTilesPerSource) * Format::kSourceBytes;
  }

  // What comes after a block, asked for during its K tiles.
  Ahead ahead_of(const KBlock& b, int64_t n_steps) const {
    const int64_t end = task_.panel_begin + task_.n_panels, after = b.tile + b.n_tiles;
    const PackedMatrix* w = &w_;
    int64_t panel = b.panel, n_panels = b.n_panels, tile = after;
    if (after == n_k_tiles_) {
      tile = 0;
      panel += kGroup;
      n_panels = min_of(kGroup, end - panel);
      if (panel >= end) {
        w = next_.w;
        panel = next_.begin;
        n_panels = min_of(kGroup, next_.count);
        if (w == nullptr || n_panels <= 0) return {};
      }
    }
    const int64_t n_k_tiles = ceil_of(w->n_in, Format::kSourceCols) * Format::kTilesPerSource;
    return {source(*w, panel, tile), source(*w, panel + n_panels - 1, tile),
            source_bytes(min_of(block_tiles_, n_k_tiles - tile)), n_steps};
  }

  void run_block(const KBlock& b) {
    const uint8_t* w = source(w_, b.panel, b.tile);
    int64_t apart = panel_stride(w_, Format::kSourceCols, Format::kSourceBytes);
    if constexpr (kTileBytes != 0) {
      for (int64_t p = 0; p < b.n_panels; ++p) {
        for (int64_t t = 0; t < b.n_tiles; t += Format::kTilesPerSource)
          Format::unpack(source(w_, b.panel + p, b.tile + t),
                         unpacked_ + (p * kBlockTiles + t) * kTileBytes);
      }
      w = unpacked_;
      apart = kBlockTiles * kTileBytes;
    }
    float scales[kMostPanels] = {1, 1};
    if constexpr (Format::kScaled) {
      for (int64_t p = 0; p < b.n_panels; ++p) scales[p] = Format::scale(w_, b.panel + p, b.tile);
    }
    Ahead ahead = ahead_of(b, ceil_of(n_rows_, V::kRows) * b.n_tiles);
    for (int64_t r = 0; r < n_rows_; r += 16) {
      const RowTile tile = row_tile(*task_.x, row_ + r);
      const uint8_t* x = tile.data + b.tile * tile.step;
      // A row tile's rows in blocks of nearly equal size.
      const int64_t n = min_of(16, n_rows_ - r), size = ceil_of(n, ceil_of(n, V::kRows));
      for (int64_t i = 0; i < n; i += size) {
        RowsOfBlock rows = {.x = x + i * kLine,
                            .step = tile.step,
                            .w = w,
                            .w_apart = apart,
                            .n_tiles = b.n_tiles,
                            .sums = sums_of(r + i),
                            .starts = starts_ + r + i,
                            .group_sums = nullptr,
                            .n_groups = padded_groups(*task_.x),
                            .scales = scales,
                            .first = b.tile == 0};
        if constexpr (Format::kInteger)
          rows.group_sums = group_sums_of(*task_.x, row_ + r + i) + b.tile * kTileGroups;
        const int64_t n_rows = min_of(size, n - i);
        if (b.n_panels == kGroup) {
          multiply_any<Format, V::kPanels>(n_rows, rows, ahead);
        } else {
          multiply_any<Format, 1>(n_rows, rows, ahead);
        }
      }
    }
  }

  uint8_t* sums_of(int64_t row) const { return sums_ + row * kGroup * kLine; }

  // out (+)= sums, integers as float(sum) * (x_scale * row_scale): the reference's rounding.
  void write(int64_t panel, int64_t n_panels) const {
    for (int64_t p = 0; p < n_panels; ++p) {
      const typename V::Writer writer(w_, panel + p, Format::kInteger);
      float* out = task_.out + (row_ - task_.row_begin) * task_.out_stride +
                   (panel + p - task_.panel_begin) * kPanelRows;
      for (int64_t r = 0; r < n_rows_; ++r, out += task_.out_stride)
        writer.write(sums_of(r) + p * kLine, Format::kInteger ? task_.x->scales[row_ + r] : 1.0f,
                     task_.accumulate, out);
    }
  }

  const MatmulTask& task_;
  const PackedMatrix& w_;
  int64_t row_, n_rows_;
  const Panels& next_;
  int64_t n_k_tiles_ = 0, block_tiles_ = 0;
  uint8_t* unpacked_;  // [kGroup][kBlockTiles] tiles
  uint8_t* sums_;      // [n_rows][kGroup] lines
  int32_t starts_[kPassRows] = {};
};

/// The whole task, in passes of nearly equal size, kMost rows at most.
template <class Format, int64_t kMost = kPassRows>
inline void many_rows(const MatmulTask& task) {
  static_assert(kMost <= kPassRows);
  const int64_t n_passes = ceil_of(task.n_rows, kMost);
  const int64_t rows = ceil_of(ceil_of(task.n_rows, n_passes), 16) * 16;
  const Panels again = {task.w, task.panel_begin, task.n_panels};
  for (int64_t r = 0; r < task.n_rows; r += rows)
    BlockPass<Format>(task, task.row_begin + r, min_of(rows, task.n_rows - r),
                      r + rows < task.n_rows ? again : task.next)
        .run();
}

/// What integer weights are for a vector V that multiplies unsigned by signed bytes (dot_bytes):
/// bytes w + 128, whose surplus is 128 times the sum of the activations.
template <class V>
struct IntegerFormat {
  using Vector = V;
  static constexpr bool kInteger = true, kScaled = false;
  static constexpr int64_t kUnpackedTile = kTile;
  static int64_t block_tiles(const PackedMatrix&) { return kBlockTiles; }
  static int32_t start(const PackedRows& x, int64_t row) { return -128 * row_sum_of(x, row); }
  static inline __attribute__((always_inline)) typename V::Int dot(typename V::Int sum,
                                                                   typename V::Int weights,
                                                                   typename V::Int x) {
    return V::dot_bytes(sum, weights, x);
  }
};

template <class V>
struct Int8Format : IntegerFormat<V> {
  static constexpr int64_t kSourceCols = 64, kSourceBytes = kTile, kTilesPerSource = 1;
  static void unpack(const uint8_t* tile, uint8_t* to) {
    for (int64_t i = 0; i < kTile; i += kLine / V::kPerLine)
      V::store(to + i, V::add_128(V::load(tile + i)));
  }
};

/// The source of int4 weights; unpack is the instruction set's.
template <class V>
struct Int4Format : IntegerFormat<V> {
  static constexpr int64_t kSourceCols = 128, kSourceBytes = kInt4Tile, kTilesPerSource = 2;
};

}  // namespace
}  // namespace exo::kernels::cpu
