/// bf16 activations times bf16 and fp8 weights, widened to f32 and multiplied with fused
/// multiply-adds; shared by matmul_bf16_avx2.cc and matmul_bf16_avx512.cc, which give the vector
/// type. Few rows stream the weights once. Many rows are widened into the scratch, kChunk columns
/// of kBlockRows once for kGroupPanels panels, and each panel once for those rows.
///
/// A vector type V has: F (f32 vector), Pairs (kLanes pairs of bf16), kLanes, kVectors (F per 16
/// outputs), kFewRows and kRows (rows whose sums fit the registers beside one panel of bf16 and
/// kPanels of f32), kPrefetch (bytes that few rows ask for ahead), zero, set, load, store, mul,
/// add, fmadd, load_pairs (of a line), broadcast_pair (one of a row), half (the f32 of the even or
/// odd k), widen_32 (bf16 to f32), scale_32 (bf16 times a power of two), and Fp8 with kExponent,
/// widen (the i-th piece of an fp8 line to those of its two bf16 lines, of values times
/// 2^-kExponent) and mark (makes the sums of those outputs NaN of which it has widened a NaN).
///
/// Include only from files compiled for one instruction set (see matmul_layout.h about linkage).
#pragma once

#include <immintrin.h>

#include "kernels/cpu/matmul_layout.h"

namespace exo::kernels::cpu {
namespace {  // NOLINT: internal linkage on purpose

constexpr int64_t kFmaManyRows = 9;   ///< from here on in blocks
constexpr int64_t kFmaStreams = 2;    ///< in which few rows read their panels
constexpr int64_t kChunk = 256;       ///< columns that many rows widen at a time
constexpr int64_t kBlockRows = 96;    ///< rows that share widened weights
constexpr int64_t kGroupPanels = 16;  ///< panels that share widened rows

struct LineBf16 {
  static constexpr int64_t kCols = 32, kHalves = 1;
};
struct LineFp8 {
  static constexpr int64_t kCols = 64, kHalves = 2;
};

/// Half of what makes up for the exponents of widened fp8: activations are multiplied by one half,
/// sums by the other, so that neither leaves the range of f32.
template <class V>
constexpr float kFp8Unit = V::Fp8::kExponent == 0 ? 1.0f : 0x1p60f;

/// Where a panel's sums of one row go: out (+)= sums.
template <class V>
inline void write_sums(const typename V::F* sums, const PackedMatrix& w, int64_t panel, bool add,
                       float* out) {
  const int64_t n = min_of(kPanelRows, w.n_out - panel * kPanelRows);
  if (n == kPanelRows) {
    for (int i = 0; i < V::kVectors; ++i) {
      float* to = out + i * V::kLanes;
      V::store(to, add ? V::add(V::load(to), sums[i]) : sums[i]);
    }
    return;
  }
  alignas(64) float v[16];
  for (int i = 0; i < V::kVectors; ++i) V::store(v + i * V::kLanes, sums[i]);
  for (int64_t i = 0; i < n; ++i) out[i] = add ? out[i] + v[i] : v[i];
}

// -- few rows -------------------------------------------------------------------------------------

/// acc[r][..] += R rows times the even or odd k of one bf16 line.
template <class V, int R, bool kOdd>
inline __attribute__((always_inline)) void fma_line(const typename V::Pairs* line, const uint8_t* x,
                                                    typename V::F (*acc)[V::kVectors]) {
  typename V::F w[V::kVectors];
  for (int i = 0; i < V::kVectors; ++i) w[i] = V::template half<kOdd>(line[i]);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    const typename V::F v = V::template half<kOdd>(V::broadcast_pair(x + r * kLine));
    for (int i = 0; i < V::kVectors; ++i) acc[r][i] = V::fmadd(w[i], v, acc[r][i]);
  }
}

/// sums[r][..] += R rows times one tile of bf16 or fp8, kFirst the first of them. Not inlined: GCC
/// 12 would have no registers left for the sums.
template <class V, class Line, int R, int kFirst = 0>
__attribute__((noinline)) void fma_tile(const uint8_t* tile, const RowTile& rows, bool ask,
                                        typename V::Fp8& fp8, typename V::F (*sums)[V::kVectors]) {
  if constexpr (R > V::kFewRows) {  // the second half finds the tile in the L1 cache
    fma_tile<V, Line, (R + 1) / 2, kFirst>(tile, rows, ask, fp8, sums);
    fma_tile<V, Line, R / 2, kFirst + (R + 1) / 2>(tile, rows, false, fp8, sums);
  } else {
    using F = typename V::F;
    constexpr int kV = V::kVectors;
    // Few sums need several chains of additions to hide their latency.
    constexpr int kChains = R * kV <= 2 ? 4 : R * kV <= 4 ? 2 : 1;
    F acc[kChains][R][kV];
    for (int r = 0; r < R; ++r) {
      for (int i = 0; i < kV; ++i) {
        acc[0][r][i] = sums[kFirst + r][i];
        for (int c = 1; c < kChains; ++c) acc[c][r][i] = V::zero();
      }
    }
    const uint8_t* x = rows.data + kFirst * kLine;
    constexpr int kLines = Line::kHalves == 1 ? 2 : 1;  // with two halves in turn, even k and odd
    for (int lines = 0; lines < 16; lines += kLines, tile += kLines * kLine, x += kLines * 4) {
      typename V::Pairs pairs[2][kV];
#pragma GCC unroll 2
      for (int line = 0; line < kLines; ++line) {
        const uint8_t* at = tile + line * kLine;
        if (ask) _mm_prefetch(reinterpret_cast<const char*>(at + V::kPrefetch), _MM_HINT_T0);
        for (int i = 0; i < kV; ++i) {
          const auto piece = V::load_pairs(at + i * V::kLanes * 4);
          if constexpr (Line::kHalves == 1) {
            pairs[line][i] = piece;
          } else {
            fp8.widen(piece, i, &pairs[0][i], &pairs[1][i]);
          }
        }
      }
      const int64_t to_second = Line::kHalves == 1 ? 4 : rows.step;
      // So few values are alive that all sums stay in registers.
      fma_line<V, R, false>(pairs[0], x, acc[0]);
      fma_line<V, R, true>(pairs[0], x, acc[1 % kChains]);
      fma_line<V, R, false>(pairs[1], x + to_second, acc[2 % kChains]);
      fma_line<V, R, true>(pairs[1], x + to_second, acc[3 % kChains]);
    }
    for (int r = 0; r < R; ++r) {
      for (int i = 0; i < kV; ++i) {
        F sum = acc[0][r][i];
        for (int c = 1; c < kChains; ++c) sum = V::add(sum, acc[c][r][i]);
        sums[kFirst + r][i] = sum;
      }
    }
  }
}

/// R rows with P panels, `apart` from one another: several streams at once find more of the
/// memory's bandwidth than one.
template <class V, class Line, int R, int P>
void fma_panels(const MatmulTask& task, const RowTile& rows, int64_t panel, int64_t apart) {
  using F = typename V::F;
  const PackedMatrix& w = *task.w;
  const int64_t n_tiles = ceil_of(w.n_in, Line::kCols), stride = apart * n_tiles * kTile;
  const int64_t n_k_blocks = Line::kHalves == 1 ? 0 : ceil_of(w.n_in, w.k_block);
  const uint8_t* tile = tiles_of(w) + panel * n_tiles * kTile;
  RowTile at = rows;
  typename V::Fp8 fp8[P];
  F total[P][R][V::kVectors], acc[P][R][V::kVectors];
  for (int p = 0; p < P; ++p) {
    for (int r = 0; r < R; ++r) {
      for (int i = 0; i < V::kVectors; ++i) total[p][r][i] = acc[p][r][i] = V::zero();
    }
  }
  for (int64_t t = 0; t < n_tiles; ++t, tile += kTile, at.data += Line::kHalves * rows.step) {
    const int64_t end = (t + 1) * Line::kCols;
    const bool scaled = Line::kHalves == 2 && (t + 1 == n_tiles || end % w.k_block == 0);
    for (int p = 0; p < P; ++p) {
      fma_tile<V, Line, R>(tile + p * stride, at, true, fp8[p],
                           Line::kHalves == 1 ? total[p] : acc[p]);
      if (!scaled) continue;
      const F scale = V::set(
          w.block_scales[(panel + p * apart) * n_k_blocks + (end - 1) / w.k_block] * kFp8Unit<V>);
      for (int r = 0; r < R; ++r) {
        for (int i = 0; i < V::kVectors; ++i) {
          total[p][r][i] = V::fmadd(acc[p][r][i], scale, total[p][r][i]);
          acc[p][r][i] = V::zero();
        }
      }
    }
  }
  for (int p = 0; p < P; ++p) {
    const int64_t to = panel + p * apart;
    for (int r = 0; r < R; ++r) {
      fp8[p].mark(total[p][r]);
      write_sums<V>(total[p][r], w, to, task.accumulate,
                    task.out + r * task.out_stride + (to - task.panel_begin) * kPanelRows);
    }
  }
}

/// Rows of a row tile times kFp8Unit, in the scratch, as rows of a row tile of their own.
template <class V>
inline RowTile scale_rows(const MatmulTask& task, const RowTile& rows) {
  auto* to = reinterpret_cast<uint8_t*>(task.scratch);
  const int64_t step = task.n_rows * kLine, n_tiles = row_bytes_of(*task.x) / kLine;
  for (int64_t t = 0; t < n_tiles; ++t) {
    for (int64_t r = 0; r < task.n_rows; ++r)
      V::scale_32(rows.data + t * rows.step + r * kLine, kFp8Unit<V>, to + t * step + r * kLine);
  }
  return {to, step};
}

/// A few rows of one row tile with all panels of the task.
template <class V, class Line, int R = 1>
void fma_few_rows(const MatmulTask& task) {
  if constexpr (R + 1 < kFmaManyRows) {
    if (task.n_rows > R) return fma_few_rows<V, Line, R + 1>(task);
  }
  RowTile rows = row_tile(*task.x, task.row_begin);
  if constexpr (Line::kHalves == 2 && V::Fp8::kExponent != 0) rows = scale_rows<V>(task, rows);
  const int64_t apart = task.n_panels / kFmaStreams, end = task.panel_begin + task.n_panels;
  for (int64_t p = 0; p < apart; ++p)
    fma_panels<V, Line, R, kFmaStreams>(task, rows, task.panel_begin + p, apart);
  for (int64_t p = task.panel_begin + kFmaStreams * apart; p < end; ++p)
    fma_panels<V, Line, R, 1>(task, rows, p, 1);
}

// -- many rows ------------------------------------------------------------------------------------

/// The scratch of many rows.
template <class V>
struct FmaScratch {
  static constexpr int64_t kOutputs = V::kPanels * kPanelRows;
  float* x;        ///< [kBlockRows][kChunk]
  float* weights;  ///< [kChunk][kOutputs]
  float* sums;     ///< [kBlockRows][kGroupPanels * 16]

  explicit FmaScratch(std::byte* scratch)
      : x(reinterpret_cast<float*>(scratch)),
        weights(x + kBlockRows * kChunk),
        sums(weights + kChunk * kOutputs) {
    static_assert((kBlockRows * (kChunk + kGroupPanels * kPanelRows) + kChunk * kOutputs) * 4 <=
                  kMatmulScratchBytes);
  }
};

/// Columns [k, k + n) of rows to f32, [rows][kChunk].
template <class V>
inline void widen_rows(const PackedRows& x, int64_t row, int64_t n_rows, int64_t k, int64_t n,
                       float* out) {
  for (int64_t r = 0; r < n_rows; ++r) {
    const int64_t in_tile = (row + r) % 16;
    const RowTile tile = row_tile(x, row + r - in_tile);
    for (int64_t t = 0; t < n / 32; ++t)
      V::widen_32(tile.data + (k / 32 + t) * tile.step + in_tile * kLine,
                  out + r * kChunk + t * 32);
  }
}

/// Columns [k, k + n) of a panel to f32, [n][FmaScratch::kOutputs], times the fp8 block's scale.
template <class V, class Line>
inline void widen_panel(const PackedMatrix& w, int64_t panel, int64_t k, int64_t n, float* out) {
  constexpr int64_t kOutputs = FmaScratch<V>::kOutputs;
  typename V::Fp8 fp8;
  const uint8_t* line =
      tiles_of(w) + (panel * ceil_of(w.n_in, Line::kCols) + k / Line::kCols) * kTile;
  for (int64_t begin = 0; begin < n; begin += Line::kCols) {
    const float scale =
        Line::kHalves == 1
            ? 1.0f
            : w.block_scales[panel * ceil_of(w.n_in, w.k_block) + (k + begin) / w.k_block] *
                  kFp8Unit<V>;
    for (int j = 0; j < 16; ++j, line += kLine) {
      for (int i = 0; i < V::kVectors; ++i) {
        typename V::Pairs pairs[2] = {V::load_pairs(line + i * V::kLanes * 4)};
        if (Line::kHalves == 2) fp8.widen(pairs[0], i, &pairs[0], &pairs[1]);
        for (int half = 0; half < Line::kHalves; ++half) {
          typename V::F even = V::template half<false>(pairs[half]);
          typename V::F odd = V::template half<true>(pairs[half]);
          if (Line::kHalves == 2) {
            even = V::mul(V::mul(even, V::set(kFp8Unit<V>)), V::set(scale));
            odd = V::mul(V::mul(odd, V::set(kFp8Unit<V>)), V::set(scale));
          }
          float* to = out + (begin + half * 32 + j * 2) * kOutputs + i * V::kLanes;
          V::store(to, even);
          V::store(to + kOutputs, odd);
        }
      }
    }
  }
  if constexpr (Line::kHalves == 2) {
    typename V::F first[V::kVectors];
    for (int i = 0; i < V::kVectors; ++i) first[i] = V::load(out + i * V::kLanes);
    fp8.mark(first);
    for (int i = 0; i < V::kVectors; ++i) V::store(out + i * V::kLanes, first[i]);
  }
}

/// Some rows with kPanels panels in one chunk.
struct FmaBlock {
  const float* x;        ///< [rows][kChunk]
  const float* weights;  ///< [n][kPanels * 16]
  int64_t n;             ///< columns
  float* sums;           ///< of the first row and panel; rows are kGroupPanels * 16 apart
  bool first;            ///< the first chunk: there are no sums yet
};

template <class V, int R>
__attribute__((noinline)) void fma_block(const FmaBlock& b) {
  constexpr int kV = V::kPanels * V::kVectors;
  const auto sum_of = [&](int r, int i) {
    return b.sums + r * kGroupPanels * kPanelRows + i * V::kLanes;
  };
  typename V::F acc[R][kV];
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r) {
    for (int i = 0; i < kV; ++i) acc[r][i] = b.first ? V::zero() : V::load(sum_of(r, i));
  }
  const float *x = b.x, *weights = b.weights;
  for (int64_t k = 0; k < b.n; ++k, ++x, weights += kV * V::kLanes) {
    typename V::F wk[kV];
    for (int i = 0; i < kV; ++i) wk[i] = V::load(weights + i * V::kLanes);
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
      const typename V::F xk = V::set(x[r * kChunk]);
      for (int i = 0; i < kV; ++i) acc[r][i] = V::fmadd(xk, wk[i], acc[r][i]);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r) {
    for (int i = 0; i < kV; ++i) V::store(sum_of(r, i), acc[r][i]);
  }
}

template <class V, int R = 1>
inline void fma_block_of(int64_t n_rows, const FmaBlock& b) {
  if constexpr (R < V::kRows) {
    if (n_rows > R) return fma_block_of<V, R + 1>(n_rows, b);
  }
  fma_block<V, R>(b);
}

/// Asks for a chunk of some panels, a part of it at each step.
class AskForChunk {
 public:
  AskForChunk(const uint8_t* at, int64_t n_panels, int64_t apart, int64_t n_bytes)
      : at_(at), n_panels_(n_panels), apart_(apart), n_bytes_(n_bytes) {}
  /// done of all: how much of the work beside it.
  void step(int64_t done, int64_t all) {
    if (n_panels_ <= 0) return;
    for (; asked_ < n_bytes_ * done / all; asked_ += kLine) {
      for (int64_t p = 0; p < n_panels_; ++p) __builtin_prefetch(at_ + p * apart_ + asked_, 0, 2);
    }
  }

 private:
  const uint8_t* at_;
  int64_t n_panels_, apart_, n_bytes_, asked_ = 0;
};

/// Rows [row, row + n_rows), kBlockRows at most, with panels [begin, end), kGroupPanels at most.
template <class V, class Line>
void fma_group(const MatmulTask& task, int64_t row, int64_t n_rows, int64_t begin, int64_t end) {
  const FmaScratch<V> s(task.scratch);
  const PackedMatrix& w = *task.w;
  const int64_t n_tiles = ceil_of(w.n_in, Line::kCols), n_cols = n_tiles * Line::kCols;
  const int64_t size = ceil_of(n_rows, ceil_of(n_rows, V::kRows));  // of nearly equal blocks
  for (int64_t k = 0; k < n_cols; k += kChunk) {
    const int64_t n = min_of(kChunk, n_cols - k);
    widen_rows<V>(*task.x, row, n_rows, k, n, s.x);
    for (int64_t panel = begin; panel < end; panel += V::kPanels) {
      const int64_t after = panel + V::kPanels;
      for (int64_t p = panel; p < min_of(after, end); ++p)
        widen_panel<V, Line>(w, p, k, n, s.weights + (p - panel) * kPanelRows);
      AskForChunk next(tiles_of(w) + (after * n_tiles + k / Line::kCols) * kTile,
                       min_of(V::kPanels, end - after), n_tiles * kTile, n / Line::kCols * kTile);
      for (int64_t r = 0; r < n_rows; r += size) {
        const int64_t n_block = min_of(size, n_rows - r);
        next.step(r + n_block, n_rows);
        fma_block_of<V>(n_block, {.x = s.x + r * kChunk,
                                  .weights = s.weights,
                                  .n = n,
                                  .sums = s.sums + (r * kGroupPanels + panel - begin) * kPanelRows,
                                  .first = k == 0});
      }
    }
  }
  for (int64_t r = 0; r < n_rows; ++r) {
    for (int64_t p = begin; p < end; ++p) {
      typename V::F sums[V::kVectors];
      for (int i = 0; i < V::kVectors; ++i)
        sums[i] = V::load(s.sums + (r * kGroupPanels + p - begin) * kPanelRows + i * V::kLanes);
      write_sums<V>(sums, w, p, task.accumulate,
                    task.out + (row + r - task.row_begin) * task.out_stride +
                        (p - task.panel_begin) * kPanelRows);
    }
  }
}

template <class V, class Line>
inline void fma_product(const MatmulTask& task) {
  // What scale_rows writes must fit the scratch.
  const bool fits = Line::kHalves == 1 || V::Fp8::kExponent == 0 ||
                    task.n_rows * row_bytes_of(*task.x) <= kMatmulScratchBytes;
  if (task.n_rows < kFmaManyRows && fits) return fma_few_rows<V, Line>(task);
  if (V::kPanels > 1) {  // what an unfilled panel holds is multiplied too: let it be numbers
    const FmaScratch<V> s(task.scratch);
    for (int64_t i = 0; i < kChunk * FmaScratch<V>::kOutputs; ++i) s.weights[i] = 0;
  }
  const int64_t end = task.panel_begin + task.n_panels;
  for (int64_t r = 0; r < task.n_rows; r += kBlockRows) {
    const int64_t n_rows = min_of(kBlockRows, task.n_rows - r);
    for (int64_t p = task.panel_begin; p < end; p += kGroupPanels)
      fma_group<V, Line>(task, task.row_begin + r, n_rows, p, min_of(p + kGroupPanels, end));
  }
}

}  // namespace
}  // namespace exo::kernels::cpu
