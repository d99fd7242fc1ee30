/// The loop nest of the AMX products, shared by matmul_i8_amx.cc and matmul_bf16_amx.cc.
///
/// Two row tiles by two panels is the register block: four tiles of sums, two of activations, two
/// of weights, one tile load per tile product. A pair of panels is taken kSteps K tiles at a time
/// (a block: 16 KiB of weights and 16 KiB of each row pair's activations, so that the weights stay
/// in the L1 cache while all row pairs pass), with the sums kept in the scratch between blocks.
/// Formats that must be unpacked have the next block unpacked, and the one after prefetched into
/// L2, a piece after each K step of this one, so that the vector units and the memory work under
/// the tile products.
///
/// Include only from files compiled for AMX (see matmul_layout.h about linkage).
#pragma once

#include <immintrin.h>

#include "kernels/cpu/matmul_layout.h"
#include "kernels/cpu/tiles_amx.h"

namespace exo::kernels::cpu {
namespace {  // NOLINT: internal linkage on purpose

constexpr int kMaxSteps = 8;                    ///< K tiles of a block
constexpr int64_t kSumBytes = 4 * kTile;        ///< sums of a row pair and a panel pair
constexpr int64_t kMaxRows = 512;               ///< rows of a pass: their sums fit the scratch
constexpr int64_t kRowsInL2Bytes = 1200 << 10;  ///< activations of a pass, which stay in L2
constexpr int64_t kWriteAhead = 8;  ///< rows of output asked for before they are written
constexpr int64_t kTailTiles = 15 + kMaxSteps;

/// The thread's scratch, cut up.
struct AmxScratch {
  uint8_t* sums[2];   ///< of even and odd panel pairs, each [row pairs][row tile][panel] tiles
  uint8_t* unpacked;  ///< [2][panel][kMaxSteps] tiles
  uint8_t* partial;   ///< [2] sums of a row pair before their scale (fp8)
  uint8_t* tail;      ///< kTailTiles tiles: the end of a row tile of fewer than 16 rows
};
constexpr int64_t kUnpackedBytes = 2 * kMaxSteps * kTile;
static_assert(2 * kMaxRows / 32 * kSumBytes + 2 * kUnpackedBytes + 2 * kSumBytes +
                  kTailTiles * kTile <=
              kMatmulScratchBytes);

inline AmxScratch cut_scratch(std::byte* scratch) {
  auto* p = reinterpret_cast<uint8_t*>(scratch);
  AmxScratch s;
  s.sums[0] = p;
  s.sums[1] = p + kMaxRows / 32 * kSumBytes;
  s.unpacked = p + 2 * kMaxRows / 32 * kSumBytes;
  s.partial = s.unpacked + 2 * kUnpackedBytes;
  s.tail = s.partial + 2 * kSumBytes;
  return s;
}

/// One operand tile of activations: K tile t of the block is at data + t * step. A tile of fewer
/// than 16 rows is loaded with 16 all the same (a tile product takes 16 cycles whatever its rows):
/// the lines beyond are the next K tile's, and their sums are not used.
struct ATiles {
  const uint8_t* data;
  int64_t step;
};

/// The row tiles of a pass, their last one's end copied out where 16 lines would pass the end of
/// the activations.
struct Rows {
  const PackedRows* x;
  int64_t begin, count;
  int64_t tail_row, tail_from;  ///< the incomplete row tile; its K tiles from tail_from are in tail
  const uint8_t* tail;

  int64_t n_tiles() const { return ceil_of(count, 16); }
  ATiles at(int64_t tile, int64_t t) const {
    const int64_t row = begin + tile * 16;
    if (row == tail_row && t >= tail_from) return {tail + (t - tail_from) * kTile, kTile};
    const RowTile rt = row_tile(*x, row);
    return {rt.data + t * rt.step, rt.step};
  }
};

inline Rows make_rows(const PackedRows& x, int64_t begin, int64_t count, int64_t steps,
                      uint8_t* tail) {
  Rows rows{&x, begin, count, -1, 0, tail};
  const int64_t last = begin + (count - 1) / 16 * 16, n = min_of(16, x.n_rows - last);
  if (n == 16) return rows;
  const int64_t n_lines = row_bytes_of(x) / kLine;
  rows.tail_row = last;
  rows.tail_from = max_of(0, n_lines - ceil_of(16, n) + 1) / steps * steps;
  const RowTile rt = row_tile(x, last);
  for (int64_t t = rows.tail_from; t < n_lines; ++t)
    __builtin_memcpy(tail + (t - rows.tail_from) * kTile, rt.data + t * rt.step,
                     static_cast<size_t>(n * kLine));
  return rows;
}

/// A pair of panels (or the last one alone) at a block of K tiles.
template <class Format>
struct Block {
  int64_t panel, n_panels;  ///< 1 or 2
  int64_t tile, n_tiles;    ///< K tiles of 64 bytes of the activations
};

/// The blocks of a task in the order of computing.
template <class Format>
struct Blocks {
  int64_t panel_begin, n_panels, n_k_tiles, steps, per_pair;

  int64_t count() const { return ceil_of(n_panels, 2) * per_pair; }
  Block<Format> at(int64_t i) const {
    const int64_t pair = i / per_pair, b = i % per_pair;
    return {panel_begin + pair * 2, min_of(2, n_panels - pair * 2), b * steps,
            min_of(steps, n_k_tiles - b * steps)};
  }
};

template <class Format>
inline Blocks<Format> cut_blocks(const Panels& panels) {
  const int64_t steps = Format::steps(*panels.w);
  const int64_t n_k_tiles = ceil_of(panels.w->n_in, Format::kSourceCols) * Format::kTilesPerSource;
  return {panels.begin, panels.count, n_k_tiles, steps, ceil_of(n_k_tiles, steps)};
}

/// The finished sums of a panel pair on their way to the task's output, some lines after each K
/// step of the next pair: the output is rarely in a cache, and its lines come while tiles are
/// multiplied.
template <class Format>
class WriteOut {
 public:
  WriteOut(const MatmulTask& task, const Rows& rows) : task_(task), rows_(rows) {}
  /// n_steps: the K steps in which it is to be done.
  void begin(int64_t panel, int64_t n_panels, const uint8_t* sums, int64_t n_steps) {
    finish();
    sums_ = sums;
    n_panels_ = n_panels;
    n_steps_ = n_steps;
    out_ = task_.out + (rows_.begin - task_.row_begin) * task_.out_stride +
           (panel - task_.panel_begin) * kPanelRows;
    for (int64_t p = 0; p < n_panels; ++p) {
      mask_[p] = output_mask(*task_.w, panel + p);
      if constexpr (Format::kInteger)
        row_scales_[p] = _mm512_loadu_ps(task_.w->row_scales + (panel + p) * kPanelRows);
    }
    row_ = 0;
    credit_ = 0;
  }
  inline __attribute__((always_inline)) void step() {
    if (row_ >= rows_.count) return;
    credit_ += rows_.count;
    for (; credit_ >= n_steps_ && row_ < rows_.count; credit_ -= n_steps_) write_row();
  }
  void finish() {
    while (row_ < rows_.count) write_row();
  }

 private:
  inline void write_row() {
    const uint8_t* line = sums_ + row_ / 16 * 2 * kTile + row_ % 16 * kLine;
    for (int64_t p = 0; p < n_panels_; ++p) {
      __m512 v = _mm512_load_ps(line + p * kTile);
      if constexpr (Format::kInteger)
        v = _mm512_mul_ps(
            _mm512_cvtepi32_ps(_mm512_castps_si512(v)),
            _mm512_mul_ps(_mm512_set1_ps(task_.x->scales[rows_.begin + row_]), row_scales_[p]));
      float* out = out_ + p * kPanelRows;
      if (task_.accumulate) v = _mm512_add_ps(_mm512_maskz_loadu_ps(mask_[p], out), v);
      _mm512_mask_storeu_ps(out, mask_[p], v);
    }
    // A store that waits for its line holds up the tiles' own stores behind it.
    if (row_ + kWriteAhead < rows_.count) {
      const float* ahead = out_ + kWriteAhead * task_.out_stride;
      asm volatile("prefetchw %0" : : "m"(*ahead));
      if (n_panels_ == 2) asm volatile("prefetchw %0" : : "m"(ahead[kPanelRows]));
    }
    out_ += task_.out_stride;
    ++row_;
  }

  const MatmulTask& task_;
  const Rows& rows_;
  const uint8_t* sums_ = nullptr;
  float* out_ = nullptr;
  int64_t n_panels_ = 0, row_ = 1 << 30, n_steps_ = 1, credit_ = 0;
  __mmask16 mask_[2] = {};
  __m512 row_scales_[2];
};

/// What is done beside the tile products of a block, a share after each K step.
template <class Format>
class SideWork {
 public:
  SideWork(const PackedMatrix& w, int64_t n_steps, WriteOut<Format>* write_out)
      : w_(w), n_steps_(n_steps), write_out_(write_out) {}
  void unpack(const Block<Format>& block, uint8_t* to) {
    const int64_t n = ceil_of(block.n_tiles, Format::kTilesPerSource) * 2;
    n_units_ = units_left_ = n * block.n_panels;
    first_panel_units_ = n_units_ - n;
    from_ = Format::source(w_, block, 0);
    second_from_ = Format::source(w_, block, block.n_panels - 1);
    to_ = to;
    second_to_ = to + kMaxSteps * kTile;
  }
  void prefetch(const PackedMatrix& w, const Block<Format>& block) {
    const int64_t n = ceil_of(block.n_tiles, Format::kTilesPerSource) * Format::kSourceBytes;
    lines_left_ = ceil_of(n, kLine);
    n_prefetches_ = lines_left_ * block.n_panels;
    line_ = Format::source(w, block, 0);
    second_lines_ = Format::source(w, block, block.n_panels - 1);
  }
  void scale(const uint8_t* partial, uint8_t* sums, const float* scales, bool first) {
    partial_ = partial;
    sums_ = sums;
    scales_ = scales;
    first_ = first;
    n_scaled_ = 0;
  }
  /// The share of one K step.
  inline __attribute__((always_inline)) void step() {
    prefetch_credit_ += n_prefetches_;
    for (; prefetch_credit_ >= n_steps_; prefetch_credit_ -= n_steps_) {
      _mm_prefetch(reinterpret_cast<const char*>(line_), _MM_HINT_T1);
      line_ += kLine;
      if (--lines_left_ == 0) line_ = second_lines_;
    }
    if constexpr (Format::kUnpacked) {
      unpack_credit_ += n_units_;
      for (; unpack_credit_ >= n_steps_; unpack_credit_ -= n_steps_) unpack_unit();
    }
    if constexpr (Format::kScaled) scale_lines(16);
    if (write_out_ != nullptr) write_out_->step();
  }
  void finish_scaling() { scale_lines(64); }

 private:
  // Half a source tile.
  inline __attribute__((always_inline)) void unpack_unit() {
    const bool second_half = units_left_ % 2 != 0;
    Format::unpack_half(from_, second_half, to_);
    --units_left_;
    if (!second_half) return;
    from_ += Format::kSourceBytes;
    to_ += Format::kTilesPerSource * kTile;
    if (units_left_ != first_panel_units_) return;
    from_ = second_from_;
    to_ = second_to_;
  }
  void scale_lines(int n) {
    if (partial_ == nullptr) return;
    for (; n > 0 && n_scaled_ < 64; --n, ++n_scaled_) {
      auto* sum = reinterpret_cast<float*>(sums_ + n_scaled_ * kLine);
      const __m512 part = _mm512_load_ps(partial_ + n_scaled_ * kLine);
      const __m512 scale = _mm512_set1_ps(scales_[n_scaled_ / 16 % 2]);
      _mm512_store_ps(sum, first_ ? _mm512_mul_ps(part, scale)
                                  : _mm512_fmadd_ps(part, scale, _mm512_load_ps(sum)));
    }
    if (n_scaled_ == 64) partial_ = nullptr;
  }

  const PackedMatrix& w_;
  int64_t n_steps_;
  WriteOut<Format>* write_out_;
  const uint8_t *from_ = nullptr, *second_from_ = nullptr;
  uint8_t *to_ = nullptr, *second_to_ = nullptr;
  int64_t n_units_ = 0, units_left_ = 0, first_panel_units_ = 0, unpack_credit_ = 0;
  const uint8_t *line_ = nullptr, *second_lines_ = nullptr;
  int64_t n_prefetches_ = 0, lines_left_ = 0, prefetch_credit_ = 0;
  const uint8_t* partial_ = nullptr;
  uint8_t* sums_ = nullptr;
  const float* scales_ = nullptr;
  bool first_ = false;
  int n_scaled_ = 0;
};

/// The sums of kA row tiles and kB panels over a block, from zero or from `sums`, into `sums`.
template <class Format, int kA, int kB, class Side>
inline void multiply(ATiles a0, ATiles a1, const uint8_t* b0, const uint8_t* b1, int64_t n_tiles,
                     bool from_zero, uint8_t* sums, Side& side) {
  asm volatile("" : : : "memory");
  if (from_zero) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  } else {
    _tile_loadd(0, sums, 64);
    if (kB == 2) _tile_loadd(1, sums + kTile, 64);
    if (kA == 2) _tile_loadd(2, sums + 2 * kTile, 64);
    if (kA == 2 && kB == 2) _tile_loadd(3, sums + 3 * kTile, 64);
  }
  for (int64_t t = 0; t < n_tiles; ++t) {
    // Activations pass through, weights stay: streaming loads leave the L1 cache to the latter.
    _tile_loadd(6, b0 + t * kTile, 64);
    _tile_stream_loadd(4, a0.data + t * a0.step, 64);
    if (kA == 2) _tile_stream_loadd(5, a1.data + t * a1.step, 64);
    if constexpr (Format::kInteger) {
      _tile_dpbssd(0, 4, 6);
    } else {
      _tile_dpbf16ps(0, 4, 6);
    }
    if (kB == 2) _tile_loadd(7, b1 + t * kTile, 64);
    if constexpr (Format::kInteger) {
      if (kA == 2) _tile_dpbssd(2, 5, 6);
      if (kB == 2) _tile_dpbssd(1, 4, 7);
      if (kA == 2 && kB == 2) _tile_dpbssd(3, 5, 7);
    } else {
      if (kA == 2) _tile_dpbf16ps(2, 5, 6);
      if (kB == 2) _tile_dpbf16ps(1, 4, 7);
      if (kA == 2 && kB == 2) _tile_dpbf16ps(3, 5, 7);
    }
    side.step();
  }
  _tile_stored(0, sums, 64);
  if (kB == 2) _tile_stored(1, sums + kTile, 64);
  if (kA == 2) _tile_stored(2, sums + 2 * kTile, 64);
  if (kA == 2 && kB == 2) _tile_stored(3, sums + 3 * kTile, 64);
}

template <class Format>
inline void multiply_any(const Rows& rows, int64_t pair, const Block<Format>& block,
                         const uint8_t* b0, const uint8_t* b1, bool from_zero, uint8_t* sums,
                         SideWork<Format>& side) {
  const ATiles a0 = rows.at(pair * 2, block.tile);
  const bool two_rows = pair * 2 + 1 < rows.n_tiles();
  const ATiles a1 = two_rows ? rows.at(pair * 2 + 1, block.tile) : a0;
  if (two_rows && block.n_panels == 2) {
    multiply<Format, 2, 2>(a0, a1, b0, b1, block.n_tiles, from_zero, sums, side);
  } else if (two_rows) {
    multiply<Format, 2, 1>(a0, a1, b0, b1, block.n_tiles, from_zero, sums, side);
  } else if (block.n_panels == 2) {
    multiply<Format, 1, 2>(a0, a1, b0, b1, block.n_tiles, from_zero, sums, side);
  } else {
    multiply<Format, 1, 1>(a0, a1, b0, b1, block.n_tiles, from_zero, sums, side);
  }
}

/// All row pairs of a pass with one block.
template <class Format>
inline void multiply_block(const MatmulTask& task, const Rows& rows, const Block<Format>& block,
                           uint8_t* partials, uint8_t* all_sums, const uint8_t* unpacked,
                           SideWork<Format>& side) {
  const uint8_t* b0 = unpacked;
  const uint8_t* b1 = unpacked + kMaxSteps * kTile;
  if constexpr (!Format::kUnpacked) {
    b0 = Format::source(*task.w, block, 0);
    b1 = block.n_panels == 2 ? Format::source(*task.w, block, 1) : b0;
  }
  float scales[2] = {1, 1};
  if constexpr (Format::kScaled) {
    for (int64_t p = 0; p < block.n_panels; ++p) scales[p] = Format::scale(*task.w, block, p);
  }
  const int64_t n_pairs = ceil_of(rows.n_tiles(), 2);
  for (int64_t pair = 0; pair < n_pairs; ++pair) {
    uint8_t* sums = all_sums + pair * kSumBytes;
    if constexpr (Format::kScaled) {
      uint8_t* partial = partials + pair % 2 * kSumBytes;
      multiply_any(rows, pair, block, b0, b1, true, partial, side);
      side.finish_scaling();
      side.scale(partial, sums, scales, block.tile == 0);
    } else {
      multiply_any(rows, pair, block, b0, b1, block.tile == 0, sums, side);
    }
  }
  if constexpr (Format::kScaled) side.finish_scaling();
}

/// The rows from `row` on with all panels of the task; `next`: what is multiplied after them.
template <class Format>
inline void amx_pass(const MatmulTask& task, const AmxScratch& scratch, int64_t row, int64_t n_rows,
                     const Panels& next) {
  const PackedMatrix& w = *task.w;
  const Blocks<Format> blocks = cut_blocks<Format>({&w, task.panel_begin, task.n_panels});
  const Rows rows = make_rows(*task.x, row, n_rows, blocks.steps, scratch.tail);
  const int64_t n_blocks = blocks.count(), n_pairs = ceil_of(rows.n_tiles(), 2);
  // What is prefetched is wanted one block later, unpacked formats: before that is unpacked.
  constexpr int64_t kAhead = Format::kUnpacked ? 2 : 1;
  const auto prefetch = [&](SideWork<Format>& side, int64_t i) {
    if (i < n_blocks) return side.prefetch(w, blocks.at(i));
    if (next.w == nullptr) return;
    const Blocks<Format> beyond = cut_blocks<Format>(next);
    if (i - n_blocks < beyond.count()) side.prefetch(*next.w, beyond.at(i - n_blocks));
  };
  if (Format::kUnpacked) {
    SideWork<Format> start(w, 1, nullptr);
    start.unpack(blocks.at(0), scratch.unpacked);
    prefetch(start, 1);
    start.step();
  }
  WriteOut<Format> write_out(task, rows);
  for (int64_t i = 0; i < n_blocks; ++i) {
    const Block<Format> block = blocks.at(i);
    SideWork<Format> side(w, block.n_tiles * n_pairs, &write_out);
    if (Format::kUnpacked && i + 1 < n_blocks)
      side.unpack(blocks.at(i + 1), scratch.unpacked + (i + 1) % 2 * kUnpackedBytes);
    prefetch(side, i + kAhead);
    uint8_t* sums = scratch.sums[i / blocks.per_pair % 2];
    multiply_block(task, rows, block, scratch.partial, sums,
                   scratch.unpacked + i % 2 * kUnpackedBytes, side);
    if (block.tile + block.n_tiles == blocks.n_k_tiles)
      write_out.begin(block.panel, block.n_panels, sums, blocks.n_k_tiles * n_pairs);
  }
  write_out.finish();
}

/// The whole task: passes of as many rows as stay in the L2 cache.
template <class Format>
inline void amx_product(const MatmulTask& task) {
  configure_tiles();
  const AmxScratch scratch = cut_scratch(task.scratch);
  const int64_t in_l2 = max_of(1, kRowsInL2Bytes / row_bytes_of(*task.x) / 32) * 32;
  // Passes of nearly equal size.
  const int64_t n_passes = ceil_of(task.n_rows, min_of(in_l2, kMaxRows));
  const int64_t rows = ceil_of(ceil_of(task.n_rows, n_passes), 32) * 32;
  const Panels again = {task.w, task.panel_begin, task.n_panels};
  for (int64_t r = 0; r < task.n_rows; r += rows)
    amx_pass<Format>(task, scratch, task.row_begin + r, min_of(rows, task.n_rows - r),
                     r + rows < task.n_rows ? again : task.next);
  _tile_release();
}

}  // namespace
}  // namespace exo::kernels::cpu
