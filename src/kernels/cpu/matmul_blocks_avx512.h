/// The loop nest of products of many rows on AVX-512, shared by matmul_i8_avx512.cc and
/// matmul_bf16_avx512bf16.cc: 8 rows by two panels are 16 sums in registers, and each line of
/// weights meets 8 broadcast pieces of activations.
///
/// A pair of panels is taken kBlockTiles K tiles at a time: 32 KiB of weights, unpacked where their
/// format asks for it, stay in the L1 cache while all rows pass, with the sums kept in the scratch
/// between blocks. Meanwhile the next block's bytes are asked for, a share with every K tile.
///
/// Include only from files compiled for AVX-512 (see matmul_layout.h about linkage). A Format has:
///   kSourceCols, kSourceBytes, kTilesPerSource   its tiles, and the K tiles of 64 bytes in each
///   kUnpacked    unpack(source tile, to): to its K tiles; `to` + i * kTile is the i-th
///   kInteger     sums are int32, begin at start(x, row) and are scaled at the end; else f32
///   kScaled      f32 sums of a block times scale(w, panel, K tile)
///   block_tiles(w)   K tiles of a block, at most kBlockTiles
///   dot(sum, weights, 4 bytes of a row in every lane)
#pragma once

#include <immintrin.h>

#include "kernels/cpu/matmul_layout.h"

namespace exo::kernels::cpu {
namespace {  // NOLINT: internal linkage on purpose

constexpr int64_t kBlockTiles = 16;
constexpr int64_t kPassRows = 1024;  ///< rows whose sums the scratch has place for
constexpr int64_t kPairLine = 2 * kLine;
static_assert(2 * kBlockTiles * kTile + kPassRows * kPairLine <= kMatmulScratchBytes);

/// A K block of a panel pair (the last panel may be alone) in the task's order.
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

/// One row's sums of a panel pair.
inline uint8_t* sums_of(uint8_t* sums, int64_t row) { return sums + row * kPairLine; }

/// R rows (x: the first one's line in the block's first K tile) with P panels, whose tiles are at w
/// + p * w_apart.
template <class Format, int R, int P>
void multiply_rows(const uint8_t* x, int64_t step, const uint8_t* w, int64_t w_apart,
                   int64_t n_tiles, uint8_t* sums, const float* scales, bool first,
                   const int32_t* starts, Ahead& ahead) {
  __m512i acc[P][R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
    for (int p = 0; p < P; ++p) {
      if (Format::kScaled || (first && !Format::kInteger)) {
        acc[p][r] = _mm512_setzero_si512();
      } else if (first) {
        acc[p][r] = _mm512_set1_epi32(starts[r]);
      } else {
        acc[p][r] = _mm512_load_si512(sums + r * kPairLine + p * kLine);
      }
    }
  }
  for (int64_t t = 0; t < n_tiles; ++t, w += kTile, x += step) {
    ahead.step();
#pragma GCC unroll 4
    for (int line = 0; line < 16; ++line) {
      __m512i weights[P];
#pragma GCC unroll 2
      for (int p = 0; p < P; ++p) weights[p] = _mm512_loadu_si512(w + p * w_apart + line * kLine);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        int32_t four;
        __builtin_memcpy(&four, x + r * kLine + line * 4, 4);
        const __m512i v = _mm512_set1_epi32(four);
#pragma GCC unroll 2
        for (int p = 0; p < P; ++p) acc[p][r] = Format::dot(acc[p][r], weights[p], v);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
    for (int p = 0; p < P; ++p) {
      uint8_t* to = sums + r * kPairLine + p * kLine;
      if constexpr (Format::kScaled) {
        const __m512 part = _mm512_castsi512_ps(acc[p][r]), scale = _mm512_set1_ps(scales[p]);
        const __m512 before = first ? _mm512_setzero_ps() : _mm512_load_ps(to);
        _mm512_store_ps(to, _mm512_fmadd_ps(part, scale, before));
      } else {
        _mm512_store_si512(to, acc[p][r]);
      }
    }
  }
}

template <class Format, int P>
inline void multiply_any(int64_t n_rows, const uint8_t* x, int64_t step, const uint8_t* w,
                         int64_t w_apart, int64_t n_tiles, uint8_t* sums, const float* scales,
                         bool first, const int32_t* starts, Ahead& ahead) {
  static constexpr decltype(&multiply_rows<Format, 1, P>) kRows[] = {
      multiply_rows<Format, 1, P>, multiply_rows<Format, 2, P>, multiply_rows<Format, 3, P>,
      multiply_rows<Format, 4, P>, multiply_rows<Format, 5, P>, multiply_rows<Format, 6, P>,
      multiply_rows<Format, 7, P>, multiply_rows<Format, 8, P>};
  kRows[n_rows - 1](x, step, w, w_apart, n_tiles, sums, scales, first, starts, ahead);
}

/// A pass: rows [row, row + n_rows) with all panels of the task; `next`: what is multiplied after.
template <class Format>
class BlockPass {
 public:
  BlockPass(const MatmulTask& task, int64_t row, int64_t n_rows, const Panels& next)
      : task_(task), w_(*task.w), row_(row), n_rows_(n_rows), next_(next) {
    unpacked_ = reinterpret_cast<uint8_t*>(task.scratch);
    sums_ = unpacked_ + 2 * kBlockTiles * kTile;
    n_k_tiles_ = ceil_of(w_.n_in, Format::kSourceCols) * Format::kTilesPerSource;
    block_tiles_ = Format::block_tiles(w_);
  }

  void run() {
    if constexpr (Format::kInteger) {
      for (int64_t r = 0; r < n_rows_; ++r) starts_[r] = Format::start(*task_.x, row_ + r);
    }
    const int64_t end = task_.panel_begin + task_.n_panels;
    for (int64_t panel = task_.panel_begin; panel < end; panel += 2) {
      const int64_t n_panels = min_of(2, end - panel);
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
      panel += 2;
      n_panels = min_of(2, end - panel);
      if (panel >= end) {
        w = next_.w;
        panel = next_.begin;
        n_panels = min_of(2, next_.count);
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
    if constexpr (Format::kUnpacked) {
      for (int64_t p = 0; p < b.n_panels; ++p) {
        for (int64_t t = 0; t < b.n_tiles; t += Format::kTilesPerSource)
          Format::unpack(source(w_, b.panel + p, b.tile + t),
                         unpacked_ + (p * kBlockTiles + t) * kTile);
      }
      w = unpacked_;
      apart = kBlockTiles * kTile;
    }
    float scales[2] = {1, 1};
    if constexpr (Format::kScaled) {
      for (int64_t p = 0; p < b.n_panels; ++p) scales[p] = Format::scale(w_, b.panel + p, b.tile);
    }
    Ahead ahead = ahead_of(b, ceil_of(n_rows_, 8) * b.n_tiles);
    for (int64_t r = 0; r < n_rows_; r += 16) {
      const RowTile tile = row_tile(*task_.x, row_ + r);
      const uint8_t* x = tile.data + b.tile * tile.step;
      // A row tile's rows in one block, or in two of nearly equal size.
      const int64_t n = min_of(16, n_rows_ - r), size = n <= 8 ? n : (n + 1) / 2;
      for (int64_t i = 0; i < n; i += size) {
        const int64_t rows = min_of(size, n - i);
        const auto multiply = b.n_panels == 2 ? multiply_any<Format, 2> : multiply_any<Format, 1>;
        multiply(rows, x + i * kLine, tile.step, w, apart, b.n_tiles, sums_of(sums_, r + i), scales,
                 b.tile == 0, starts_ + r + i, ahead);
      }
    }
  }

  // out (+)= sums, integers as float(sum) * (x_scale * row_scale): the reference's rounding.
  void write(int64_t panel, int64_t n_panels) const {
    for (int64_t p = 0; p < n_panels; ++p) {
      const __mmask16 mask = output_mask(w_, panel + p);
      float* out = task_.out + (row_ - task_.row_begin) * task_.out_stride +
                   (panel + p - task_.panel_begin) * kPanelRows;
      __m512 row_scales = _mm512_setzero_ps();
      if constexpr (Format::kInteger)
        row_scales = _mm512_loadu_ps(w_.row_scales + (panel + p) * kPanelRows);
      for (int64_t r = 0; r < n_rows_; ++r, out += task_.out_stride) {
        __m512 v = _mm512_load_ps(sums_of(sums_, r) + p * kLine);
        if constexpr (Format::kInteger)
          v = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_castps_si512(v)),
                            _mm512_mul_ps(_mm512_set1_ps(task_.x->scales[row_ + r]), row_scales));
        if (task_.accumulate) v = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, out), v);
        _mm512_mask_storeu_ps(out, mask, v);
      }
    }
  }

  const MatmulTask& task_;
  const PackedMatrix& w_;
  int64_t row_, n_rows_;
  const Panels& next_;
  int64_t n_k_tiles_ = 0, block_tiles_ = 0;
  uint8_t* unpacked_;  // [2 panels][kBlockTiles] tiles
  uint8_t* sums_;      // [n_rows][2 panels] lines
  int32_t starts_[kPassRows] = {};
};

/// The whole task, in passes of nearly equal size.
template <class Format>
inline void many_rows(const MatmulTask& task) {
  const int64_t n_passes = ceil_of(task.n_rows, kPassRows);
  const int64_t rows = ceil_of(ceil_of(task.n_rows, n_passes), 16) * 16;
  const Panels again = {task.w, task.panel_begin, task.n_panels};
  for (int64_t r = 0; r < task.n_rows; r += rows)
    BlockPass<Format>(task, task.row_begin + r, min_of(rows, task.n_rows - r),
                      r + rows < task.n_rows ? again : task.next)
        .run();
}

}  // namespace
}  // namespace exo::kernels::cpu
