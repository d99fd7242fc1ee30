/// f32 sums: each output's K is summed in two interleaved chains (even and odd k), ascending, by
/// fused multiply-adds, then the two are added: an order that neither the number of rows nor a
/// row's place changes. An fp8 block's sum is made so and then times its scale added to the total.
/// Integer sums are exact in any order.
#include "kernels/cpu/matmul_generic.h"

#include <algorithm>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/matmul_generic.cc"
#include "kernels/cpu/highway_targets.h"
//
#include "hwy/cache_control.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace exo::kernels::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using DF = hn::ScalableTag<float>;
using DI = hn::Rebind<int32_t, DF>;
using DU = hn::Rebind<uint32_t, DF>;
using DI16 = hn::Repartition<int16_t, DF>;
using VF = hn::Vec<DF>;
using VI = hn::Vec<DI>;

constexpr int kLanes = static_cast<int>(hn::MaxLanes(DF()));
constexpr int kVecs = 16 / kLanes;  // vectors that hold a panel's 16 outputs
// Rows of a register block: rows * kVecs * 2 accumulators, and a few more.
constexpr int kMaxRows = HWY_CAP_GE512 ? 8 : 3;
constexpr int kMaxRowsI8 = HWY_CAP_GE512 ? 8 : HWY_CAP_GE256 ? 5 : 3;
// How far ahead of use the weights are asked for.
constexpr int64_t kPrefetchBytes = 4096;

HWY_INLINE void PrefetchTile(const std::byte* tile) {
  EXO_UNROLL
  for (int i = 0; i < 16; ++i) hwy::Prefetch(tile + kPrefetchBytes + i * 64);
}

// ---------------------------------------------------------------------------------------------
// Tiles as f32: out[k * 16 + n], the code before row and block scales.

HWY_INLINE VF Bf16Even(hn::Vec<DU> pairs) { return hn::BitCast(DF(), hn::ShiftLeft<16>(pairs)); }
HWY_INLINE VF Bf16Odd(hn::Vec<DU> pairs) {
  return hn::BitCast(DF(), hn::And(pairs, hn::Set(DU(), 0xFFFF0000u)));
}

// The e4m3 in the low byte of each lane (higher bits are ignored).
HWY_INLINE VF E4m3ToF32(hn::Vec<DU> v) {
  const DU du;
  const DF df;
  const auto magnitude = hn::And(v, hn::Set(du, 0x7Fu));
  const auto sign = hn::ShiftLeft<24>(hn::And(v, hn::Set(du, 0x80u)));
  const auto normal = hn::Add(hn::ShiftLeft<20>(magnitude), hn::Set(du, 120u << 23));
  const auto subnormal = hn::BitCast(
      du, hn::Mul(hn::ConvertTo(df, hn::BitCast(DI(), magnitude)), hn::Set(df, 0x1p-9f)));
  auto bits = hn::IfThenElse(hn::Lt(magnitude, hn::Set(du, 8u)), subnormal, normal);
  bits = hn::IfThenElse(hn::Eq(magnitude, hn::Set(du, 0x7Fu)), hn::Set(du, 0x7FC00000u), bits);
  return hn::BitCast(df, hn::Or(bits, sign));
}

HWY_INLINE void UnpackInt8(const std::byte* tile, float* HWY_RESTRICT out) {
  const DI di;
  const DF df;
  for (int line = 0; line < 16; ++line) {
    const auto* words = reinterpret_cast<const int32_t*>(tile + line * 64);
    float* to = out + line * 4 * 16;
    EXO_UNROLL
    for (int j = 0; j < kVecs; ++j) {
      const VI v = hn::Load(di, words + j * kLanes);
      float* at = to + j * kLanes;
      hn::Store(hn::ConvertTo(df, hn::ShiftRight<24>(hn::ShiftLeft<24>(v))), df, at);
      hn::Store(hn::ConvertTo(df, hn::ShiftRight<24>(hn::ShiftLeft<16>(v))), df, at + 16);
      hn::Store(hn::ConvertTo(df, hn::ShiftRight<24>(hn::ShiftLeft<8>(v))), df, at + 32);
      hn::Store(hn::ConvertTo(df, hn::ShiftRight<24>(v)), df, at + 48);
    }
  }
}

// Four k of one half (low or high nibbles) of a line: (q - 8) * m.
template <int kShift>
HWY_INLINE VF Int4Code(VI v, VF m) {
  const DI di;
  const VI q = hn::And(hn::ShiftRight<kShift>(v), hn::Set(di, 15));
  return hn::Mul(hn::ConvertTo(DF(), hn::Sub(q, hn::Set(di, 8))), m);
}

HWY_INLINE void UnpackInt4(const std::byte* tile, float* HWY_RESTRICT out) {
  const DI di;
  const DF df;
  const hn::Rebind<int8_t, DF> d8;
  for (int line = 0; line < 16; ++line) {
    const auto* words = reinterpret_cast<const int32_t*>(tile + 64 + line * 64);
    const auto* m8 = reinterpret_cast<const int8_t*>(tile) + line / 8 * 16;
    float* low = out + line * 4 * 16;
    EXO_UNROLL
    for (int j = 0; j < kVecs; ++j) {
      const VI v = hn::Load(di, words + j * kLanes);
      float* at = low + j * kLanes;
      const VF m = hn::ConvertTo(df, hn::PromoteTo(di, hn::LoadU(d8, m8 + j * kLanes)));
      hn::Store(Int4Code<0>(v, m), df, at);
      hn::Store(Int4Code<8>(v, m), df, at + 16);
      hn::Store(Int4Code<16>(v, m), df, at + 32);
      hn::Store(Int4Code<24>(v, m), df, at + 48);
      const VF m_high = hn::ConvertTo(df, hn::PromoteTo(di, hn::LoadU(d8, m8 + 32 + j * kLanes)));
      at += 64 * 16;
      hn::Store(Int4Code<4>(v, m_high), df, at);
      hn::Store(Int4Code<12>(v, m_high), df, at + 16);
      hn::Store(Int4Code<20>(v, m_high), df, at + 32);
      hn::Store(Int4Code<28>(v, m_high), df, at + 48);
    }
  }
}

HWY_INLINE void UnpackFp8(const std::byte* tile, float* HWY_RESTRICT out) {
  const hn::Repartition<uint16_t, DF> d16;
  const DF df;
  for (int line = 0; line < 16; ++line) {
    const auto* words = reinterpret_cast<const uint16_t*>(tile + line * 64);
    EXO_UNROLL
    for (int j = 0; j < kVecs; ++j) {
      const auto v = hn::Load(d16, words + j * kLanes * 2);
      const auto first = hn::BitCast(DU(), hn::InterleaveLower(d16, v, hn::Zero(d16)));
      const auto second = hn::BitCast(DU(), hn::InterleaveUpper(d16, v, hn::Zero(d16)));
      float* at = out + line * 2 * 16 + j * kLanes;
      hn::Store(E4m3ToF32(first), df, at);
      hn::Store(E4m3ToF32(hn::ShiftRight<8>(first)), df, at + 16);
      hn::Store(E4m3ToF32(second), df, at + 32 * 16);
      hn::Store(E4m3ToF32(hn::ShiftRight<8>(second)), df, at + 33 * 16);
    }
  }
}

// ---------------------------------------------------------------------------------------------
// f32 x anything

template <int kRows>
struct Sums {
  VF even[kRows][kVecs], odd[kRows][kVecs];

  // Not implicit: that one would lack the vectors' target on AArch64.
  HWY_INLINE Sums() { Clear(); }
  HWY_INLINE void Clear() {
    EXO_UNROLL
    for (int r = 0; r < kRows; ++r) {
      EXO_UNROLL
      for (int j = 0; j < kVecs; ++j) even[r][j] = odd[r][j] = hn::Zero(DF());
    }
  }
  // k and k + 1 of every row. x: the rows' element k, `stride` floats apart.
  HWY_INLINE void Add(const VF (&w0)[kVecs], const VF (&w1)[kVecs], const float* x,
                      int64_t stride) {
    const DF df;
    EXO_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const VF x0 = hn::Set(df, x[r * stride]), x1 = hn::Set(df, x[r * stride + 1]);
      EXO_UNROLL
      for (int j = 0; j < kVecs; ++j) {
        even[r][j] = hn::MulAdd(x0, w0[j], even[r][j]);
        odd[r][j] = hn::MulAdd(x1, w1[j], odd[r][j]);
      }
    }
  }
};

// n_k (even) columns that lie as f32 lines of 16 outputs.
template <int kRows>
HWY_INLINE void AddLines(const float* lines, int64_t n_k, const float* x, int64_t stride,
                         Sums<kRows>& sums) {
  const DF df;
  for (int64_t k = 0; k < n_k; k += 2) {
    VF w0[kVecs], w1[kVecs];
    EXO_UNROLL
    for (int j = 0; j < kVecs; ++j) {
      w0[j] = hn::Load(df, lines + k * 16 + j * kLanes);
      w1[j] = hn::Load(df, lines + (k + 1) * 16 + j * kLanes);
    }
    sums.Add(w0, w1, x + k, stride);
  }
}

template <int kRows>
HWY_INLINE void AddBf16(const std::byte* tile, const float* x, int64_t stride, Sums<kRows>& sums) {
  const DU du;
  for (int64_t line = 0; line < 16; ++line) {
    const auto* words = reinterpret_cast<const uint32_t*>(tile + line * 64);
    VF w0[kVecs], w1[kVecs];
    EXO_UNROLL
    for (int j = 0; j < kVecs; ++j) {
      const auto pairs = hn::Load(du, words + j * kLanes);
      w0[j] = Bf16Even(pairs);
      w1[j] = Bf16Odd(pairs);
    }
    sums.Add(w0, w1, x + line * 2, stride);
  }
}

template <WeightFormat kFormat, int kRows>
HWY_INLINE void AddTile(const std::byte* tile, const float* x, int64_t stride, Sums<kRows>& sums) {
  if constexpr (kFormat == WeightFormat::f32) {
    AddLines(reinterpret_cast<const float*>(tile), 16, x, stride, sums);
  } else if constexpr (kFormat == WeightFormat::bf16) {
    AddBf16(tile, x, stride, sums);
  } else {
    HWY_ALIGN float lines[tile_cols(kFormat) * 16];
    if constexpr (kFormat == WeightFormat::int8) UnpackInt8(tile, lines);
    if constexpr (kFormat == WeightFormat::int4) UnpackInt4(tile, lines);
    if constexpr (kFormat == WeightFormat::fp8) UnpackFp8(tile, lines);
    AddLines(lines, tile_cols(kFormat), x, stride, sums);
  }
}

// One register block: kRows rows of x and a panel. out: [kRows, 16], `out_stride` apart.
template <WeightFormat kFormat, int kRows>
void PanelF32(const PackedMatrix& w, int64_t panel, const float* x, int64_t stride,
              float (*HWY_RESTRICT out)[16]) {
  const DF df;
  const std::byte* tile = w.panel(panel);
  constexpr int64_t kCols = tile_cols(kFormat);
  const int64_t n_tiles = ceil_div(w.n_in, kCols);
  Sums<kRows> sums;
  sums.Clear();
  VF total[kRows][kVecs];
  if constexpr (kFormat == WeightFormat::fp8) {
    EXO_UNROLL
    for (int r = 0; r < kRows; ++r) {
      EXO_UNROLL
      for (int j = 0; j < kVecs; ++j) total[r][j] = hn::Zero(df);
    }
  }
  for (int64_t t = 0; t < n_tiles; ++t) {
    PrefetchTile(tile);
    AddTile<kFormat>(tile, x + t * kCols, stride, sums);
    tile += tile_bytes(kFormat);
    if constexpr (kFormat == WeightFormat::fp8) {
      if (t + 1 != n_tiles && (t + 1) * kCols % w.k_block != 0) continue;
      const VF scale = hn::Set(df, w.block_scales[panel * w.n_k_blocks() + t * kCols / w.k_block]);
      EXO_UNROLL
      for (int r = 0; r < kRows; ++r) {
        EXO_UNROLL
        for (int j = 0; j < kVecs; ++j)
          total[r][j] = hn::MulAdd(hn::Add(sums.even[r][j], sums.odd[r][j]), scale, total[r][j]);
      }
      sums.Clear();
    }
  }
  EXO_UNROLL
  for (int r = 0; r < kRows; ++r) {
    EXO_UNROLL
    for (int j = 0; j < kVecs; ++j) {
      VF v = kFormat == WeightFormat::fp8 ? total[r][j] : hn::Add(sums.even[r][j], sums.odd[r][j]);
      if constexpr (kFormat == WeightFormat::int8 || kFormat == WeightFormat::int4)
        v = hn::Mul(v, hn::LoadU(df, w.row_scales + panel * 16 + j * kLanes));
      hn::Store(v, df, out[r] + j * kLanes);
    }
  }
}

// ---------------------------------------------------------------------------------------------
// What all kernels share: rows of a block out to the task's place.

HWY_INLINE void WriteRows(const MatmulTask& task, int64_t row, int64_t n_rows, int64_t panel,
                          const float (*HWY_RESTRICT from)[16]) {
  const DF df;
  const int64_t n = std::min<int64_t>(16, task.w->n_out - panel * 16);
  for (int64_t r = 0; r < n_rows; ++r) {
    float* out = task.out + (row + r) * task.out_stride + (panel - task.panel_begin) * 16;
    if (n == 16) {
      for (int j = 0; j < 16; j += kLanes) {
        VF v = hn::Load(df, from[r] + j);
        if (task.accumulate) v = hn::Add(hn::LoadU(df, out + j), v);
        hn::StoreU(v, df, out + j);
      }
    } else {
      for (int64_t j = 0; j < n; ++j) out[j] = task.accumulate ? out[j] + from[r][j] : from[r][j];
    }
  }
}

// Panels of one block of rows whose elements are f32. row: the block's first, within the task.
template <WeightFormat kFormat, int kRows>
void BlockF32(const MatmulTask& task, int64_t row, const float* x, int64_t stride) {
  HWY_ALIGN float out[kRows][16];
  for (int64_t p = 0; p < task.n_panels; ++p) {
    PanelF32<kFormat, kRows>(*task.w, task.panel_begin + p, x, stride, out);
    WriteRows(task, row, kRows, task.panel_begin + p, out);
  }
}

template <WeightFormat kFormat>
void BlockF32Of(int64_t n_rows, const MatmulTask& task, int64_t row, const float* x,
                int64_t stride) {
  switch (n_rows) {
    case 1:
      return BlockF32<kFormat, 1>(task, row, x, stride);
    case 2:
      return BlockF32<kFormat, 2>(task, row, x, stride);
    case 3:
      return BlockF32<kFormat, 3>(task, row, x, stride);
#if HWY_CAP_GE512
    case 4:
      return BlockF32<kFormat, 4>(task, row, x, stride);
    case 5:
      return BlockF32<kFormat, 5>(task, row, x, stride);
    case 6:
      return BlockF32<kFormat, 6>(task, row, x, stride);
    case 7:
      return BlockF32<kFormat, 7>(task, row, x, stride);
    case 8:
      return BlockF32<kFormat, 8>(task, row, x, stride);
#endif
  }
}

template <WeightFormat kFormat>
void MatmulF32(const MatmulTask& task) {
  const int64_t stride = task.x->n_cols_padded();
  const float* x = reinterpret_cast<const float*>(task.x->data) + task.row_begin * stride;
  for (int64_t row = 0; row < task.n_rows; row += kMaxRows)
    BlockF32Of<kFormat>(std::min<int64_t>(kMaxRows, task.n_rows - row), task, row, x + row * stride,
                        stride);
}

// bf16 rows are widened to f32 in the thread's scratch, a register block at a time.
template <WeightFormat kFormat>
void MatmulBf16(const MatmulTask& task) {
  const DU du;
  const DF df;
  const int64_t stride = task.x->n_cols_padded();
  auto* wide = reinterpret_cast<float*>(task.scratch);
  const int64_t fitting = kMatmulScratchBytes / (stride * 4);
  const int64_t step = std::clamp<int64_t>(fitting, 1, kMaxRows);
  for (int64_t row = 0; row < task.n_rows; row += step) {
    const int64_t n_rows = std::min(step, task.n_rows - row);
    for (int64_t r = 0; r < n_rows; ++r) {
      for (int64_t t = 0; t < stride / 32; ++t) {
        const auto* words =
            reinterpret_cast<const uint32_t*>(task.x->line(task.row_begin + row + r, t));
        for (int j = 0; j < 16; j += kLanes) {
          const auto pairs = hn::Load(du, words + j);
          hn::StoreInterleaved2(Bf16Even(pairs), Bf16Odd(pairs), df,
                                wide + r * stride + t * 32 + j * 2);
        }
      }
    }
    BlockF32Of<kFormat>(n_rows, task, row, wide, stride);
  }
}

// ---------------------------------------------------------------------------------------------
// i8 x int8, int4: products of 16-bit halves, two k each, summed in int32 (maddubs would saturate).
// A line's 4 k of an output become the pairs (k, k+2) and (k+1, k+3).

struct PairLines {
  // [line][even pair, odd pair][16 outputs x 2]
  HWY_ALIGN int16_t w[32][2][32];
};

HWY_INLINE void UnpackPairsInt8(const std::byte* tile, PairLines& out) {
  const DI16 d;
  for (int line = 0; line < 16; ++line) {
    const auto* halves = reinterpret_cast<const int16_t*>(tile + line * 64);
    for (int j = 0; j < 32; j += 2 * kLanes) {
      const auto v = hn::Load(d, halves + j);
      hn::Store(hn::ShiftRight<8>(hn::ShiftLeft<8>(v)), d, out.w[line][0] + j);
      hn::Store(hn::ShiftRight<8>(v), d, out.w[line][1] + j);
    }
  }
}

template <int kShift>
HWY_INLINE hn::Vec<DI16> Int4Pair(hn::Vec<DI16> v, hn::Vec<DI16> m) {
  const DI16 d;
  const auto q = hn::And(hn::ShiftRight<kShift>(v), hn::Set(d, int16_t{15}));
  return hn::Mul(hn::Sub(q, hn::Set(d, int16_t{8})), m);
}

HWY_INLINE void UnpackPairsInt4(const std::byte* tile, PairLines& out) {
  const DI16 d;
  // m of each output twice: [group][16 outputs x 2]
  HWY_ALIGN int16_t m[4][32];
  for (int i = 0; i < 64; ++i)
    m[i / 16][i % 16 * 2] = m[i / 16][i % 16 * 2 + 1] = reinterpret_cast<const int8_t*>(tile)[i];
  for (int line = 0; line < 16; ++line) {
    const auto* halves = reinterpret_cast<const int16_t*>(tile + 64 + line * 64);
    for (int j = 0; j < 32; j += 2 * kLanes) {
      const auto v = hn::Load(d, halves + j);
      const auto low = hn::Load(d, m[line / 8] + j), high = hn::Load(d, m[2 + line / 8] + j);
      hn::Store(Int4Pair<0>(v, low), d, out.w[line][0] + j);
      hn::Store(Int4Pair<8>(v, low), d, out.w[line][1] + j);
      hn::Store(Int4Pair<4>(v, high), d, out.w[16 + line][0] + j);
      hn::Store(Int4Pair<12>(v, high), d, out.w[16 + line][1] + j);
    }
  }
}

// x: the rows' pairs, 2 int32 (even, odd pair) for each 4 k, `stride` int32 apart.
template <WeightFormat kFormat, int kRows>
void PanelI8(const PackedMatrix& w, int64_t panel, const int32_t* x, int64_t stride,
             const float* x_scales, float (*HWY_RESTRICT out)[16]) {
  const DI di;
  const DI16 d16;
  const DF df;
  constexpr int64_t kCols = tile_cols(kFormat);
  VI sum[kRows][kVecs], sum1[kRows][kVecs];
  EXO_UNROLL
  for (int r = 0; r < kRows; ++r) {
    EXO_UNROLL
    for (int j = 0; j < kVecs; ++j) sum[r][j] = sum1[r][j] = hn::Zero(di);
  }
  const std::byte* tile = w.panel(panel);
  PairLines lines;
  for (int64_t t = 0; t < ceil_div(w.n_in, kCols); ++t, tile += tile_bytes(kFormat)) {
    PrefetchTile(tile);
    if constexpr (kFormat == WeightFormat::int8) UnpackPairsInt8(tile, lines);
    if constexpr (kFormat == WeightFormat::int4) UnpackPairsInt4(tile, lines);
    for (int64_t i = 0; i < kCols / 4; ++i) {
      const int32_t* pairs = x + (t * (kCols / 4) + i) * 2;
      EXO_UNROLL
      for (int half = 0; half < 2; ++half) {
        hn::Vec<DI16> v[kVecs];
        EXO_UNROLL
        for (int j = 0; j < kVecs; ++j) v[j] = hn::Load(d16, lines.w[i][half] + j * kLanes * 2);
        EXO_UNROLL
        for (int r = 0; r < kRows; ++r) {
          const auto xr = hn::BitCast(d16, hn::Set(di, pairs[r * stride + half]));
          EXO_UNROLL
          for (int j = 0; j < kVecs; ++j)
            sum[r][j] = hn::ReorderWidenMulAccumulate(di, v[j], xr, sum[r][j], sum1[r][j]);
        }
      }
    }
  }
  EXO_UNROLL
  for (int r = 0; r < kRows; ++r) {
    EXO_UNROLL
    for (int j = 0; j < kVecs; ++j) {
      const VF scale =
          hn::Mul(hn::Set(df, x_scales[r]), hn::LoadU(df, w.row_scales + panel * 16 + j * kLanes));
      const VI exact = hn::RearrangeToOddPlusEven(sum[r][j], sum1[r][j]);
      hn::Store(hn::Mul(hn::ConvertTo(df, exact), scale), df, out[r] + j * kLanes);
    }
  }
}

template <WeightFormat kFormat, int kRows>
void BlockI8(const MatmulTask& task, int64_t row, const int32_t* x, int64_t stride) {
  HWY_ALIGN float out[kRows][16];
  for (int64_t p = 0; p < task.n_panels; ++p) {
    PanelI8<kFormat, kRows>(*task.w, task.panel_begin + p, x, stride,
                            task.x->scales + task.row_begin + row, out);
    WriteRows(task, row, kRows, task.panel_begin + p, out);
  }
}

template <WeightFormat kFormat>
void BlockI8Of(int64_t n_rows, const MatmulTask& task, int64_t row, const int32_t* x,
               int64_t stride) {
  switch (n_rows) {
    case 1:
      return BlockI8<kFormat, 1>(task, row, x, stride);
    case 2:
      return BlockI8<kFormat, 2>(task, row, x, stride);
    case 3:
      return BlockI8<kFormat, 3>(task, row, x, stride);
#if HWY_CAP_GE256
    case 4:
      return BlockI8<kFormat, 4>(task, row, x, stride);
    case 5:
      return BlockI8<kFormat, 5>(task, row, x, stride);
#endif
#if HWY_CAP_GE512
    case 6:
      return BlockI8<kFormat, 6>(task, row, x, stride);
    case 7:
      return BlockI8<kFormat, 7>(task, row, x, stride);
    case 8:
      return BlockI8<kFormat, 8>(task, row, x, stride);
#endif
  }
}

template <WeightFormat kFormat>
void MatmulI8(const MatmulTask& task) {
  const DI16 d;
  const int64_t padded = task.x->n_cols_padded(), stride = padded / 2;
  auto* pairs = reinterpret_cast<int32_t*>(task.scratch);
  const int64_t step = std::clamp<int64_t>(kMatmulScratchBytes / (stride * 4), 1, kMaxRowsI8);
  for (int64_t row = 0; row < task.n_rows; row += step) {
    const int64_t n_rows = std::min(step, task.n_rows - row);
    for (int64_t r = 0; r < n_rows; ++r) {
      for (int64_t t = 0; t < padded / 64; ++t) {
        const auto* halves =
            reinterpret_cast<const int16_t*>(task.x->line(task.row_begin + row + r, t));
        for (int j = 0; j < 32; j += 2 * kLanes) {
          const auto v = hn::Load(d, halves + j);
          const auto even = hn::ShiftRight<8>(hn::ShiftLeft<8>(v)), odd = hn::ShiftRight<8>(v);
          hn::StoreInterleaved2(hn::BitCast(DU(), even), hn::BitCast(DU(), odd), DU(),
                                reinterpret_cast<uint32_t*>(pairs) + r * stride + t * 32 + j);
        }
      }
    }
    BlockI8Of<kFormat>(n_rows, task, row, pairs, stride);
  }
}

MatmulKernel FindMatmul(DType activation, WeightFormat format) {
  if (activation == DType::f32) {
    switch (format) {
      case WeightFormat::f32:
        return MatmulF32<WeightFormat::f32>;
      case WeightFormat::bf16:
        return MatmulF32<WeightFormat::bf16>;
      case WeightFormat::fp8:
        return MatmulF32<WeightFormat::fp8>;
      case WeightFormat::int8:
        return MatmulF32<WeightFormat::int8>;
      case WeightFormat::int4:
        return MatmulF32<WeightFormat::int4>;
    }
  }
  if (activation == DType::bf16 && format == WeightFormat::bf16)
    return MatmulBf16<WeightFormat::bf16>;
  if (activation == DType::bf16 && format == WeightFormat::fp8)
    return MatmulBf16<WeightFormat::fp8>;
  if (activation == DType::i8 && format == WeightFormat::int8) return MatmulI8<WeightFormat::int8>;
  if (activation == DType::i8 && format == WeightFormat::int4) return MatmulI8<WeightFormat::int4>;
  return nullptr;
}

}  // namespace HWY_NAMESPACE
}  // namespace exo::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace exo::kernels::cpu {

MatmulKernel generic_matmul(Isa isa, DType activation, WeightFormat format) {
  return EXO_ON_ISA(isa, FindMatmul(activation, format));
}

}  // namespace exo::kernels::cpu
#endif
