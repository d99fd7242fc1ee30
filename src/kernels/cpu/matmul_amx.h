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
constexpr int64_t kMaxRows = 1024;              ///< rows of a pass: their sums fit the scratch
constexpr int64_t kRowsInL2Bytes = 1200 << 10;  ///< activations of a pass, which stay in L2
constexpr int64_t kTailTiles = 15 + kMaxSteps;

/// The thread's scratch, cut up.
struct AmxScratch {
  uint8_t* sums;      ///< [row pairs][row tile][panel] of a tile of 32-bit sums
  uint8_t* unpacked;  ///< [2][panel][kMaxSteps] tiles
  uint8_t* partial;   ///< [2] sums of a row pair before their scale (fp8)
  uint8_t* tail;      ///< kTailTiles tiles: the end of a row tile of fewer than 16 rows
};
constexpr int64_t kUnpackedBytes = 2 * kMaxSteps * kTile;
static_assert(kMaxRows / 32 * kSumBytes + 2 * kUnpackedBytes + 2 * kSumBytes + kTailTiles * kTile <=
              kMatmulScratchBytes);

inline AmxScratch cut_scratch(std::byte* scratch) {
  auto* p = reinterpret_cast<uint8_t*>(scratch);
  AmxScratch s;
  s.sums = p;
  s.unpacked = s.sums + kMaxRows / 32 * kSumBytes;
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

/// What is done beside the tile products of a block, a share after each K step.
template <class Format>
class SideWork {
 public:
  SideWork(const PackedMatrix& w, int64_t n_steps) : w_(w), n_steps_(n_steps) {}
  void unpack(const Block<Format>& block, uint8_t* to) {
    unpack_ = block;
    to_ = to;
    n_units_ = block.n_panels * ceil_of(block.n_tiles, Format::kTilesPerSource) * 2;
  }
  void prefetch(const Block<Format>& block) {
    const int64_t n = ceil_of(block.n_tiles, Format::kTilesPerSource) * Format::kSourceBytes;
    n_lines_ = ceil_of(n, kLine);
    n_prefetches_ = n_lines_ * block.n_panels;
    for (int64_t p = 0; p < block.n_panels; ++p) lines_[p] = Format::source(w_, block, p);
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
    ++step_;
    const int64_t prefetches = step_ * n_prefetches_ / n_steps_;
    for (; prefetched_ < prefetches; ++prefetched_) {
      const bool second = prefetched_ >= n_lines_;
      _mm_prefetch(reinterpret_cast<const char*>(lines_[second]) +
                       (prefetched_ - (second ? n_lines_ : 0)) * kLine,
                   _MM_HINT_T1);
    }
    if constexpr (Format::kUnpacked) {
      const int64_t units = step_ * n_units_ / n_steps_;
      for (; unpacked_ < units; ++unpacked_) unpack_unit(unpacked_);
    }
    if constexpr (Format::kScaled) scale_lines(16);
  }
  void finish_scaling() { scale_lines(64); }

 private:
  void unpack_unit(int64_t unit) {
    const int64_t per_panel = n_units_ / unpack_.n_panels, panel = unit / per_panel,
                  half = unit % per_panel;
    Format::unpack_half(
        Format::source(w_, unpack_, panel) + half / 2 * Format::kSourceBytes,
        static_cast<int>(half % 2),
        to_ + panel * kMaxSteps * kTile + half / 2 * Format::kTilesPerSource * kTile);
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
  int64_t n_steps_, step_ = 0;
  Block<Format> unpack_{};
  uint8_t* to_ = nullptr;
  int64_t n_units_ = 0, unpacked_ = 0;
  const uint8_t* lines_[2] = {};
  int64_t n_lines_ = 0, n_prefetches_ = 0, prefetched_ = 0;
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
    _tile_loadd(6, b0 + t * kTile, 64);
    _tile_loadd(4, a0.data + t * a0.step, 64);
    if (kA == 2) _tile_loadd(5, a1.data + t * a1.step, 64);
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

/// Writes a row pair's finished sums to the task's output.
template <class Format>
inline void write_out(const MatmulTask& task, const Rows& rows, int64_t pair,
                      const Block<Format>& block, const uint8_t* sums) {
  const int64_t first = rows.begin + pair * 32, n = min_of(32, rows.count - pair * 32);
  for (int64_t p = 0; p < block.n_panels; ++p) {
    const __mmask16 mask = output_mask(*task.w, block.panel + p);
    const __m512 row_scales =
        Format::kInteger ? _mm512_loadu_ps(task.w->row_scales + (block.panel + p) * kPanelRows)
                         : _mm512_setzero_ps();
    for (int64_t r = 0; r < n; ++r) {
      const uint8_t* line = sums + (r / 16 * 2 + p) * kTile + r % 16 * kLine;
      float* out = task.out + (first + r - task.row_begin) * task.out_stride +
                   (block.panel + p - task.panel_begin) * kPanelRows;
      __m512 v = _mm512_load_ps(line);
      if constexpr (Format::kInteger)
        v = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_castps_si512(v)),
                          _mm512_mul_ps(_mm512_set1_ps(task.x->scales[first + r]), row_scales));
      if (task.accumulate) v = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, out), v);
      _mm512_mask_storeu_ps(out, mask, v);
    }
  }
}

/// All row pairs of a pass with one block.
template <class Format>
inline void multiply_block(const MatmulTask& task, const Rows& rows, const Block<Format>& block,
                           const AmxScratch& scratch, const uint8_t* unpacked,
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
    uint8_t* sums = scratch.sums + pair * kSumBytes;
    if constexpr (Format::kScaled) {
      uint8_t* partial = scratch.partial + pair % 2 * kSumBytes;
      multiply_any(rows, pair, block, b0, b1, true, partial, side);
      side.finish_scaling();
      side.scale(partial, sums, scales, block.tile == 0);
    } else {
      multiply_any(rows, pair, block, b0, b1, block.tile == 0, sums, side);
    }
  }
  if constexpr (Format::kScaled) side.finish_scaling();
}

template <class Format>
inline void amx_pass(const MatmulTask& task, const AmxScratch& scratch, int64_t row,
                     int64_t n_rows) {
  const PackedMatrix& w = *task.w;
  const int64_t steps = Format::steps(w);
  const int64_t n_k_tiles = ceil_of(w.n_in, Format::kSourceCols) * Format::kTilesPerSource;
  const Rows rows = make_rows(*task.x, row, n_rows, steps, scratch.tail);
  const Blocks<Format> blocks{task.panel_begin, task.n_panels, n_k_tiles, steps,
                              ceil_of(n_k_tiles, steps)};
  const int64_t n_blocks = blocks.count(), n_pairs = ceil_of(rows.n_tiles(), 2);
  // What is prefetched is wanted one block later, unpacked formats: before that is unpacked.
  constexpr int64_t kAhead = Format::kUnpacked ? 2 : 1;
  {
    SideWork<Format> start(w, 1);
    if (Format::kUnpacked) {
      start.unpack(blocks.at(0), scratch.unpacked);
      if (n_blocks > 1) start.prefetch(blocks.at(1));
      start.step();
    }
  }
  for (int64_t i = 0; i < n_blocks; ++i) {
    const Block<Format> block = blocks.at(i);
    SideWork<Format> side(w, block.n_tiles * n_pairs);
    if (Format::kUnpacked && i + 1 < n_blocks)
      side.unpack(blocks.at(i + 1), scratch.unpacked + (i + 1) % 2 * kUnpackedBytes);
    if (i + kAhead < n_blocks) side.prefetch(blocks.at(i + kAhead));
    multiply_block(task, rows, block, scratch, scratch.unpacked + i % 2 * kUnpackedBytes, side);
    if (block.tile + block.n_tiles < n_k_tiles) continue;
    for (int64_t pair = 0; pair < n_pairs; ++pair)
      write_out(task, rows, pair, block, scratch.sums + pair * kSumBytes);
  }
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
  for (int64_t r = 0; r < task.n_rows; r += rows)
    amx_pass<Format>(task, scratch, task.row_begin + r, min_of(rows, task.n_rows - r));
  _tile_release();
}

}  // namespace
}  // namespace exo::kernels::cpu
