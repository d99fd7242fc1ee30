/// bf16 activations times bf16 and fp8 weights, widened to f32 and multiplied with fused
/// multiply-adds; shared by matmul_bf16_avx2.cc and matmul_bf16_avx512.cc, which give the vector
/// type. Few rows stream the weights once. Many rows have a block of K of a panel pair widened into
/// the scratch, once for kBlockRows rows.
///
/// A vector type V has: F (f32 vector), kLanes, kVectors (F per 16 outputs), zero, set, load,
/// store, fmadd, pair (a line's piece to the f32 of its even and odd k), broadcast_pair (the f32 of
/// two bf16 of a row, each in every lane), and widen (fp8 line to its two bf16 lines).
///
/// Include only from files compiled for one instruction set (see matmul_layout.h about linkage).
#pragma once

#include <immintrin.h>

#include "kernels/cpu/matmul_layout.h"

namespace exo::kernels::cpu {
namespace {  // NOLINT: internal linkage on purpose

constexpr int64_t kFmaPrefetch = 4096;  ///< bytes that few rows ask for weights ahead
constexpr int64_t kChunk = 256;         ///< columns that many rows widen at a time
constexpr int64_t kBlockRows = 96;      ///< rows that share widened weights

struct LineBf16 {
  static constexpr int64_t kCols = 32, kHalves = 1;
};
struct LineFp8 {
  static constexpr int64_t kCols = 64, kHalves = 2;
};

template <class V>
inline void write_sums(const typename V::F* sums, const MatmulTask& task, int64_t row,
                       int64_t panel) {
  alignas(64) float v[16];
  for (int i = 0; i < V::kVectors; ++i) V::store(v + i * V::kLanes, sums[i]);
  const int64_t n = min_of(kPanelRows, task.w->n_out - panel * kPanelRows);
  float* out =
      task.out + (row - task.row_begin) * task.out_stride + (panel - task.panel_begin) * kPanelRows;
  if (task.accumulate) {
    for (int64_t i = 0; i < n; ++i) out[i] += v[i];
  } else {
    for (int64_t i = 0; i < n; ++i) out[i] = v[i];
  }
}

/// acc[r][i] += R rows times one bf16 line. x: the rows' two values of this line.
template <class V, int R>
inline __attribute__((always_inline)) void add_line(const uint8_t* line, const uint8_t* x,
                                                    typename V::F (*acc)[V::kVectors]) {
  typename V::F even[V::kVectors], odd[V::kVectors];
  for (int i = 0; i < V::kVectors; ++i) V::pair(line + i * V::kLanes * 4, &even[i], &odd[i]);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    typename V::F x_even, x_odd;
    V::broadcast_pair(x + r * kLine, &x_even, &x_odd);
    for (int i = 0; i < V::kVectors; ++i) {
      acc[r][i] = V::fmadd(even[i], x_even, acc[r][i]);
      acc[r][i] = V::fmadd(odd[i], x_odd, acc[r][i]);
    }
  }
}

/// R rows with all panels of the task.
template <class V, class Line, int R>
void fma_few_rows(const MatmulTask& task, int64_t row) {
  using F = typename V::F;
  const PackedMatrix& w = *task.w;
  const int64_t in_tile = row % 16;
  const RowTile tile = row_tile(*task.x, row - in_tile);
  const int64_t n_tiles = ceil_of(w.n_in, Line::kCols);
  const V widener;
  // Two sums for each output where registers allow: the additions' latency.
  constexpr int kChains = R * V::kVectors <= 4 ? 2 : 1;
  for (int64_t p = task.panel_begin; p < task.panel_begin + task.n_panels; ++p) {
    const uint8_t* line = tiles_of(w) + p * n_tiles * kTile;
    const uint8_t* x = tile.data + in_tile * kLine;
    F total[R][V::kVectors], acc[kChains][R][V::kVectors];
    for (int r = 0; r < R; ++r) {
      for (int i = 0; i < V::kVectors; ++i) {
        total[r][i] = V::zero();
        for (int c = 0; c < kChains; ++c) acc[c][r][i] = V::zero();
      }
    }
    for (int64_t t = 0; t < n_tiles; ++t) {
#pragma GCC unroll 2
      for (int j = 0; j < 16; ++j, line += kLine) {
        _mm_prefetch(reinterpret_cast<const char*>(line + kFmaPrefetch), _MM_HINT_T0);
        if constexpr (Line::kHalves == 1) {
          add_line<V, R>(line, x + j * 4, acc[j % kChains]);
        } else {
          alignas(64) uint8_t wide[2 * kLine];
          widener.widen(line, wide);
          add_line<V, R>(wide, x + j * 4, acc[0]);
          add_line<V, R>(wide + kLine, x + tile.step + j * 4, acc[kChains - 1]);
        }
      }
      x += Line::kHalves * tile.step;
      const int64_t end = (t + 1) * Line::kCols;
      if (t + 1 < n_tiles && (Line::kHalves == 1 || end % w.k_block != 0)) continue;
      const float scale =
          Line::kHalves == 1
              ? 1.0f
              : w.block_scales[p * ceil_of(w.n_in, w.k_block) + (end - 1) / w.k_block];
      for (int r = 0; r < R; ++r) {
        for (int i = 0; i < V::kVectors; ++i) {
          for (int c = 0; c < kChains; ++c) {
            total[r][i] = V::fmadd(acc[c][r][i], V::set(scale), total[r][i]);
            acc[c][r][i] = V::zero();
          }
        }
      }
    }
    for (int r = 0; r < R; ++r) write_sums<V>(total[r], task, row + r, p);
  }
}

/// The scratch of many rows.
struct FmaScratch {
  float* x;        ///< [kBlockRows][kChunk]
  float* weights;  ///< [kChunk][2 panels * 16]
  float* sums;     ///< [kBlockRows][2 panels * 16]
};

template <class V>
inline void widen_rows(const PackedRows& x, int64_t row, int64_t n_rows, int64_t k, float* out) {
  for (int64_t r = 0; r < n_rows; ++r) {
    const int64_t in_tile = (row + r) % 16;
    const RowTile tile = row_tile(x, row + r - in_tile);
    for (int64_t t = 0; t < kChunk / 32 && k / 32 + t < row_bytes_of(x) / kLine; ++t)
      V::widen_32(tile.data + (k / 32 + t) * tile.step + in_tile * kLine,
                  out + r * kChunk + t * 32);
  }
}

/// Columns [k, k + n) of a panel to f32, [n][32], times the fp8 block's scale.
template <class V, class Line>
inline void widen_panel(const PackedMatrix& w, int64_t panel, int64_t k, int64_t n, float* out) {
  const V widener;
  const uint8_t* line =
      tiles_of(w) + (panel * ceil_of(w.n_in, Line::kCols) + k / Line::kCols) * kTile;
  for (int64_t begin = 0; begin < n; begin += Line::kCols) {
    const float scale =
        Line::kHalves == 1
            ? 1.0f
            : w.block_scales[panel * ceil_of(w.n_in, w.k_block) + (k + begin) / w.k_block];
    for (int j = 0; j < 16; ++j, line += kLine) {
      alignas(64) uint8_t wide[2 * kLine];
      if (Line::kHalves == 2) widener.widen(line, wide);
      for (int half = 0; half < Line::kHalves; ++half) {
        const uint8_t* from = Line::kHalves == 2 ? wide + half * kLine : line;
        float* to = out + (begin + half * 32 + j * 2) * 32;
        for (int i = 0; i < V::kVectors; ++i) {
          typename V::F even, odd;
          V::pair(from + i * V::kLanes * 4, &even, &odd);
          if (Line::kHalves == 2) {
            even = V::mul(even, V::set(scale));
            odd = V::mul(odd, V::set(scale));
          }
          V::store(to + i * V::kLanes, even);
          V::store(to + 32 + i * V::kLanes, odd);
        }
      }
    }
  }
}

/// sums[r][..] += x[r][..n] * weights[..n][..], R rows and two panels.
template <class V, int R>
inline void fma_block(const float* x, const float* weights, int64_t n, float* sums) {
  constexpr int kV = 2 * V::kVectors;
  typename V::F acc[R][kV];
  for (int r = 0; r < R; ++r) {
    for (int i = 0; i < kV; ++i) acc[r][i] = V::load(sums + r * 32 + i * V::kLanes);
  }
  for (int64_t k = 0; k < n; ++k) {
    typename V::F wk[kV];
    for (int i = 0; i < kV; ++i) wk[i] = V::load(weights + k * 32 + i * V::kLanes);
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
      const typename V::F xk = V::set(x[r * kChunk + k]);
      for (int i = 0; i < kV; ++i) acc[r][i] = V::fmadd(xk, wk[i], acc[r][i]);
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int i = 0; i < kV; ++i) V::store(sums + r * 32 + i * V::kLanes, acc[r][i]);
  }
}

template <class V, class Line>
void fma_row_block(const MatmulTask& task, int64_t row, int64_t n_rows, const FmaScratch& s) {
  constexpr int kR = V::kRegisterRows;
  const PackedMatrix& w = *task.w;
  const int64_t n_cols = ceil_of(w.n_in, Line::kCols) * Line::kCols;
  for (int64_t p = 0; p < task.n_panels; p += 2) {
    const int64_t panels = min_of(2, task.n_panels - p);
    for (int64_t i = 0; i < kBlockRows * 32; ++i) s.sums[i] = 0;
    for (int64_t k = 0; k < n_cols; k += kChunk) {
      const int64_t n = min_of(kChunk, n_cols - k);
      widen_rows<V>(*task.x, row, n_rows, k, s.x);
      for (int64_t j = 0; j < panels; ++j)
        widen_panel<V, Line>(w, task.panel_begin + p + j, k, n, s.weights + j * 16);
      // Rows beyond n_rows are computed from what lies there and not used.
      for (int64_t r = 0; r < n_rows; r += kR)
        fma_block<V, kR>(s.x + r * kChunk, s.weights, n, s.sums + r * 32);
    }
    for (int64_t r = 0; r < n_rows; ++r) {
      for (int64_t j = 0; j < panels; ++j) {
        typename V::F v[V::kVectors];
        for (int i = 0; i < V::kVectors; ++i)
          v[i] = V::load(s.sums + r * 32 + j * 16 + i * V::kLanes);
        write_sums<V>(v, task, row + r, task.panel_begin + p + j);
      }
    }
  }
}

template <class V, class Line>
inline void fma_product(const MatmulTask& task) {
  static constexpr void (*kFew[])(const MatmulTask&, int64_t) = {
      fma_few_rows<V, Line, 1>, fma_few_rows<V, Line, 2>, fma_few_rows<V, Line, 3>,
      fma_few_rows<V, Line, 4>};
  if (task.n_rows <= 8) {
    for (int64_t r = 0; r < task.n_rows; r += 4)
      kFew[min_of(4, task.n_rows - r) - 1](task, task.row_begin + r);
    return;
  }
  FmaScratch s;
  s.x = reinterpret_cast<float*>(task.scratch);
  s.weights = s.x + kBlockRows * kChunk;
  s.sums = s.weights + kChunk * 32;
  static_assert((kBlockRows * kChunk + kChunk * 32 + kBlockRows * 32) * 4 <= kMatmulScratchBytes);
  // What an unfilled panel or row of the scratch holds is multiplied too: let it be numbers.
  for (int64_t i = 0; i < kBlockRows * kChunk + kChunk * 32; ++i) s.x[i] = 0;
  for (int64_t r = 0; r < task.n_rows; r += kBlockRows)
    fma_row_block<V, Line>(task, task.row_begin + r, min_of(kBlockRows, task.n_rows - r), s);
}

}  // namespace
}  // namespace exo::kernels::cpu
