/// Steps over single rows.
#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "kernels/cpu/vector_parts.h"
#include "ops/wide_columns.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/vector_rows.cc"
#include "kernels/cpu/highway_targets.h"
//
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/cpu/vector_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace exo::kernels::cpu {
namespace HWY_NAMESPACE {

void WidenBf16(const bf16* x, float* out, int64_t n) {
  const DF df;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) hn::StoreU(LoadBf16(x + i), df, out + i);
  for (; i < n; ++i) out[i] = to_f32(x[i]);
}

void RoundToBf16(const float* x, bf16* out, int64_t n) {
  const DF df;
  const hn::Rebind<uint16_t, DF> d16;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const VI bits = hn::BitCast(DI(), Bf16Bits(hn::LoadU(df, x + i)));
    hn::StoreU(hn::DemoteTo(d16, bits), d16, reinterpret_cast<uint16_t*>(out + i));
  }
  for (; i < n; ++i) out[i] = to_bf16(x[i]);
}

void RmsNorm(const float* x, const float* weight, float eps, float* out, int64_t n) {
  const DF df;
  VF s0 = hn::Zero(df), s1 = s0, s2 = s0, s3 = s0;
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    const VF a = hn::LoadU(df, x + i), b = hn::LoadU(df, x + i + kLanes);
    const VF c = hn::LoadU(df, x + i + 2 * kLanes), d = hn::LoadU(df, x + i + 3 * kLanes);
    s0 = hn::MulAdd(a, a, s0);
    s1 = hn::MulAdd(b, b, s1);
    s2 = hn::MulAdd(c, c, s2);
    s3 = hn::MulAdd(d, d, s3);
  }
  for (; i < n; i += kLanes) {
    const VF a = n - i >= kLanes ? hn::LoadU(df, x + i) : LoadTail(x + i, n - i);
    s0 = hn::MulAdd(a, a, s0);
  }
  const float sum = hn::GetLane(hn::SumOfLanes(df, hn::Add(hn::Add(s0, s1), hn::Add(s2, s3))));
  const VF scale = hn::Set(df, 1.0f / std::sqrt(sum / static_cast<float>(n) + eps));
  for (i = 0; i + kLanes <= n; i += kLanes) {
    const VF v = hn::Mul(hn::LoadU(df, x + i), scale);
    hn::StoreU(hn::Mul(v, hn::LoadU(df, weight + i)), df, out + i);
  }
  if (i < n) {
    const VF v = hn::Mul(LoadTail(x + i, n - i), scale);
    StoreTail(hn::Mul(v, LoadTail(weight + i, n - i)), out + i, n - i);
  }
}

void Add(const float* x, float* y, int64_t n) {
  const DF df;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    hn::StoreU(hn::Add(hn::LoadU(df, y + i), hn::LoadU(df, x + i)), df, y + i);
  for (; i < n; ++i) y[i] += x[i];
}

void AddScaledRows(const float* scales, const float* x, int64_t stride, const int32_t* rows,
                   int64_t n_rows, int64_t n, float* out, int64_t out_stride) {
  constexpr int64_t kAhead = 8;  // rows asked for before they are added to
  const DF df;
  for (int64_t r = 0; r < n_rows; ++r, x += stride) {
    if (r + kAhead < n_rows) {
      const float* next = out + rows[r + kAhead] * out_stride;
      for (int64_t i = 0; i < n; i += 16) __builtin_prefetch(next + i, 1);
    }
    float* y = out + rows[r] * out_stride;
    const VF s = hn::Set(df, scales[r]);
    int64_t i = 0;
    // Two roundings, as in the reference.
    for (; i + kLanes <= n; i += kLanes)
      hn::StoreU(hn::Add(hn::LoadU(df, y + i), hn::Mul(s, hn::LoadU(df, x + i))), df, y + i);
    for (; i < n; ++i) y[i] += scales[r] * x[i];
  }
}

void Rope(float* x, const float* cos, const float* sin, int64_t half) {
  const DF df;
  int64_t j = 0;
  for (; j + kLanes <= half; j += kLanes) {
    VF a, b;
    hn::LoadInterleaved2(df, x + 2 * j, a, b);
    const VF c = hn::LoadU(df, cos + j), s = hn::LoadU(df, sin + j);
    hn::StoreInterleaved2(hn::Sub(hn::Mul(a, c), hn::Mul(b, s)),
                          hn::Add(hn::Mul(a, s), hn::Mul(b, c)), df, x + 2 * j);
  }
  for (; j < half; ++j) {
    const float a = x[2 * j], b = x[2 * j + 1];
    x[2 * j] = a * cos[j] - b * sin[j];
    x[2 * j + 1] = a * sin[j] + b * cos[j];
  }
}

void SigmoidRow(const float* x, float* out, int64_t n) {
  const DF df;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) hn::StoreU(Sigmoid(hn::LoadU(df, x + i)), df, out + i);
  if (i < n) StoreTail(Sigmoid(LoadTail(x + i, n - i)), out + i, n - i);
}

void Softmax(const float* x, float* out, int64_t n) {
  const DF df;
  float largest = -std::numeric_limits<float>::infinity();
  for (int64_t i = 0; i < n; ++i) largest = x[i] > largest ? x[i] : largest;
  const VF top = hn::Set(df, largest);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    hn::StoreU(Exp(hn::Sub(hn::LoadU(df, x + i), top)), df, out + i);
  if (i < n) StoreTail(Exp(hn::Sub(LoadTail(x + i, n - i), top)), out + i, n - i);
  float sum = 0;
  for (i = 0; i < n; ++i) sum += out[i];
  for (i = 0; i < n; ++i) out[i] /= sum;
}

void SiluMul(const float* gate_up, int64_t stride, int64_t n_rows, int64_t n_pairs, float* out,
             int64_t out_stride) {
  const DF df;
  for (int64_t r = 0; r < n_rows; ++r, gate_up += stride, out += out_stride) {
    for (int64_t p = 0; p < n_pairs; ++p) {
      EXO_UNROLL
      for (int i = 0; i < 16; i += kLanes) {
        const VF gate = hn::LoadU(df, gate_up + 32 * p + i);
        const VF up = hn::LoadU(df, gate_up + 32 * p + 16 + i);
        const VF denominator = hn::Add(hn::Set(df, 1.0f), Exp(hn::Neg(gate)));
        hn::StoreU(hn::Mul(hn::Div(gate, denominator), up), df, out + 16 * p + i);
      }
    }
  }
}

// -- packing ------------------------------------------------------------------------------------

void PackF32(const float* x, int64_t row, const PackedRows& out) {
  auto* to = reinterpret_cast<float*>(out.data + row * out.row_bytes());
  std::memcpy(to, x, static_cast<size_t>(out.n_cols) * 4);
  std::memset(to + out.n_cols, 0, static_cast<size_t>(out.n_cols_padded() - out.n_cols) * 4);
}

void PackBf16(const float* x, int64_t row, const PackedRows& out) {
  for (int64_t t = 0; t < out.n_cols_padded() / 32; ++t) {
    auto* line = reinterpret_cast<bf16*>(out.line(row, t));
    const int64_t n = std::clamp<int64_t>(out.n_cols - 32 * t, 0, 32);
    if (n < 32) std::memset(line, 0, 64);
    RoundToBf16(x + 32 * t, line, n);
  }
}

// The largest |x| as bits, and the sum of |x| in the order of ops::SizeSum.
HWY_INLINE int32_t LargestBitsAndSum(const float* x, int64_t n, float* sum) {
  const DF df;
  const DI di;
  constexpr int kVectors = ops::SizeSum::kParts / kLanes;
  const VI mask = hn::Set(di, 0x7FFFFFFF);
  VI largest = hn::Zero(di);
  VF sums[kVectors];
  EXO_UNROLL
  for (int j = 0; j < kVectors; ++j) sums[j] = hn::Zero(df);
  const auto add = [&](VF v, int j) HWY_ATTR {
    const VI size = hn::And(hn::BitCast(di, v), mask);
    largest = hn::Max(largest, size);
    sums[j] = hn::Add(sums[j], hn::BitCast(df, size));
  };
  int64_t i = 0;
  for (; i + ops::SizeSum::kParts <= n; i += ops::SizeSum::kParts) {
    EXO_UNROLL
    for (int j = 0; j < kVectors; ++j) add(hn::LoadU(df, x + i + j * kLanes), j);
  }
  for (int j = 0; i < n; i += kLanes, ++j)
    add(n - i >= kLanes ? hn::LoadU(df, x + i) : LoadTail(x + i, n - i), j);
  ops::SizeSum all;
  for (int j = 0; j < kVectors; ++j) hn::StoreU(sums[j], df, all.parts + j * kLanes);
  *sum = all.total();
  return hn::GetLane(hn::MaxOfLanes(di, largest));
}

// The largest |x| as bits: NaN > infinity > every finite number.
HWY_INLINE int32_t LargestBits(const float* x, int64_t n) {
  const DF df;
  const DI di;
  const VI mask = hn::Set(di, 0x7FFFFFFF);
  VI m0 = hn::Zero(di), m1 = m0;
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    m0 = hn::Max(m0, hn::And(hn::BitCast(di, hn::LoadU(df, x + i)), mask));
    m1 = hn::Max(m1, hn::And(hn::BitCast(di, hn::LoadU(df, x + i + kLanes)), mask));
  }
  for (; i < n; i += kLanes) {
    const VF v = n - i >= kLanes ? hn::LoadU(df, x + i) : LoadTail(x + i, n - i);
    m0 = hn::Max(m0, hn::And(hn::BitCast(di, v), mask));
  }
  return hn::GetLane(hn::MaxOfLanes(di, hn::Max(m0, m1)));
}

// 32 columns: their q; what the lanes of the result add up to is the sum of those.
HWY_INLINE VI QuantiseGroup(const float* x, float inverse, int8_t* q) {
  const DF df;
  const DI di;
  const hn::Rebind<int8_t, DF> d8;
  VI sum = hn::Zero(di);
  EXO_UNROLL
  for (int i = 0; i < 32; i += kLanes) {
    const VI v = Nearest(hn::Mul(hn::LoadU(df, x + i), hn::Set(df, inverse)));
    sum = hn::Add(sum, v);
    hn::StoreU(hn::DemoteTo(d8, v), d8, q + i);
  }
  return sum;
}

// To the sum of v's blocks of four lanes.
template <class D>
HWY_INLINE void StoreSumOfBlocks(D d, hn::Vec<D> v, int32_t* to) {
  if constexpr (hn::MaxLanes(d) <= 4) {
    hn::StoreU(v, d, to);
  } else {
    const hn::Half<D> half;
    StoreSumOfBlocks(half, hn::Add(hn::LowerHalf(half, v), hn::UpperHalf(half, v)), to);
  }
}

// The sums of the lanes of four vectors.
HWY_INLINE void StoreSumsOfLanes(const VI (&v)[4], int32_t* sums) {
  const DI di;
  const hn::RepartitionToWide<DI> d64;
  const auto add_pairs = [&](VI a, VI b) HWY_ATTR {
    return hn::Add(hn::InterleaveLower(di, a, b), hn::InterleaveUpper(di, a, b));
  };
  const auto ab = hn::BitCast(d64, add_pairs(v[0], v[1]));
  const auto cd = hn::BitCast(d64, add_pairs(v[2], v[3]));
  StoreSumOfBlocks(di,
                   hn::Add(hn::BitCast(di, hn::InterleaveLower(d64, ab, cd)),
                           hn::BitCast(di, hn::InterleaveUpper(d64, ab, cd))),
                   sums);
}

// -- codes of a byte ------------------------------------------------------------------------------

void WidenI8(const int8_t* codes, float scale, float* out, int64_t n) {
  const DF df;
  const hn::Rebind<int8_t, DF> d8;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const VI q = hn::PromoteTo(DI(), hn::LoadU(d8, codes + i));
    hn::StoreU(hn::Mul(hn::ConvertTo(df, q), hn::Set(df, scale)), df, out + i);
  }
  for (; i < n; ++i) out[i] = static_cast<float>(codes[i]) * scale;
}

void WidenF8(const f8_e4m3* codes, float scale, float* out, int64_t n) {
  const DF df;
  const DU du;
  const DI di;
  const hn::Rebind<uint8_t, DF> d8;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const VU code = hn::PromoteTo(du, hn::LoadU(d8, reinterpret_cast<const uint8_t*>(codes + i)));
    const VU rest = hn::And(code, hn::Set(du, 0x7Fu));
    const VF normal = hn::BitCast(df, hn::Add(hn::ShiftLeft<20>(rest), hn::Set(du, 120u << 23)));
    const VF subnormal = hn::Mul(hn::ConvertTo(df, hn::BitCast(di, rest)), hn::Set(df, 0x1p-9f));
    VF value = hn::IfThenElse(hn::RebindMask(df, hn::Lt(rest, hn::Set(du, 8u))), subnormal, normal);
    value = hn::IfThenElse(hn::RebindMask(df, hn::Eq(rest, hn::Set(du, 0x7Fu))),
                           hn::Set(df, std::numeric_limits<float>::quiet_NaN()), value);
    const VU sign = hn::ShiftLeft<24>(hn::And(code, hn::Set(du, 0x80u)));
    value = hn::BitCast(df, hn::Or(hn::BitCast(du, value), sign));
    hn::StoreU(hn::Mul(value, hn::Set(df, scale)), df, out + i);
  }
  for (; i < n; ++i) out[i] = to_f32(codes[i]) * scale;
}

// The scale of n values whose codes reach to `top`, and its inverse. 0 or NaN: all codes are 0.
HWY_INLINE float CodeScale(const float* x, int64_t n, float top, float* inverse) {
  const int32_t bits = LargestBits(x, n);
  const float largest = std::bit_cast<float>(bits);
  if (bits >= 0x7F800000) return std::numeric_limits<float>::quiet_NaN();
  if (largest < 1e-30f) return 0;
  *inverse = top / largest;
  return largest / top;
}

float RoundToI8(const float* x, int8_t* codes, int64_t n) {
  const hn::Rebind<int8_t, DF> d8;
  float inverse = 0;
  const float scale = CodeScale(x, n, 127.0f, &inverse);
  if (inverse == 0) {
    std::memset(codes, 0, static_cast<size_t>(n));
    return scale;
  }
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const VI q = Nearest(hn::Mul(hn::LoadU(DF(), x + i), hn::Set(DF(), inverse)));
    hn::StoreU(hn::DemoteTo(d8, q), d8, codes + i);
  }
  for (; i < n; ++i) codes[i] = static_cast<int8_t>(std::nearbyint(x[i] * inverse));
  return scale;
}

float RoundToF8(const float* x, f8_e4m3* codes, int64_t n) {
  const DF df;
  const DU du;
  const DI di;
  const hn::Rebind<uint8_t, DF> d8;
  float inverse = 0;
  const float scale = CodeScale(x, n, 448.0f, &inverse);
  if (inverse == 0) {
    std::memset(codes, 0, static_cast<size_t>(n));
    return scale;
  }
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const VU u = hn::BitCast(du, hn::Mul(hn::LoadU(df, x + i), hn::Set(df, inverse)));
    const VU size = hn::And(u, hn::Set(du, 0x7FFFFFFFu));
    const VU odd = hn::And(hn::ShiftRight<20>(u), hn::Set(du, 1u));
    const VU rounded = hn::ShiftRight<20>(hn::Add(size, hn::Add(odd, hn::Set(du, 0x7FFFFu))));
    const VU normal = hn::Min(hn::Sub(rounded, hn::Set(du, 120u << 3)), hn::Set(du, 0x7Eu));
    const VU subnormal =
        hn::BitCast(du, Nearest(hn::Mul(hn::BitCast(df, size), hn::Set(df, 0x1p9f))));
    const auto small = hn::Lt(size, hn::Set(du, std::bit_cast<uint32_t>(0x1p-6f)));
    const VU code = hn::Or(hn::IfThenElse(small, subnormal, normal),
                           hn::And(hn::ShiftRight<24>(u), hn::Set(du, 0x80u)));
    hn::StoreU(hn::DemoteTo(d8, hn::BitCast(di, code)), d8, reinterpret_cast<uint8_t*>(codes + i));
  }
  for (; i < n; ++i) codes[i] = to_f8_e4m3(x[i] * inverse);
  return scale;
}

// The scale of a row that has columns above the limit, its wide ones listed.
HWY_INLINE ops::RowScale ChooseWide(const float* x, float largest, float limit, int64_t row,
                                    const PackedRows& out) {
  const DF df;
  ops::WideChooser chooser(x, row, out);
  VF most = hn::Set(df, limit);
  VF rest = hn::Zero(df);
  const auto offer = [&](VF size, int64_t first) HWY_ATTR {
    const auto above = hn::Gt(size, most);
    rest = hn::Max(rest, hn::IfThenZeroElse(above, size));
    uint8_t bytes[8] = {};  // StoreMaskBits may write 8
    hn::StoreMaskBits(df, above, bytes);
    for (uint32_t bits = bytes[0] | bytes[1] << 8; bits != 0; bits &= bits - 1)
      chooser.offer(first + std::countr_zero(bits));
    most = hn::Max(most, hn::Set(df, chooser.least()));
  };
  int64_t i = 0;
  // Few columns are above: looked at one by one where the largest of some is.
  constexpr int kAtOnce = 4;
  for (; i + kAtOnce * kLanes <= out.n_cols; i += kAtOnce * kLanes) {
    VF sizes[kAtOnce];
    EXO_UNROLL
    for (int j = 0; j < kAtOnce; ++j) sizes[j] = hn::Abs(hn::LoadU(df, x + i + j * kLanes));
    const VF largest_of = hn::Max(hn::Max(sizes[0], sizes[1]), hn::Max(sizes[2], sizes[3]));
    if (hn::AllFalse(df, hn::Gt(largest_of, most))) {
      rest = hn::Max(rest, largest_of);
    } else {
      for (int j = 0; j < kAtOnce; ++j) offer(sizes[j], i + j * kLanes);
    }
  }
  for (; i < out.n_cols; i += kLanes) {
    const int64_t n = out.n_cols - i;
    offer(hn::Abs(n >= kLanes ? hn::LoadU(df, x + i) : LoadTail(x + i, n)), i);
  }
  return chooser.finish(hn::GetLane(hn::MaxOfLanes(df, rest)), largest);
}

// -- integers -------------------------------------------------------------------------------------

void PackI8(const float* x, int64_t row, const PackedRows& out) {
  const int64_t n_groups = out.n_cols_padded() / kInt4GroupCols;
  int32_t* sums = out.group_sums + row * n_groups;
  float sum = 0;
  const int32_t bits = LargestBitsAndSum(x, out.n_cols, &sum);
  const float largest = std::bit_cast<float>(bits);
  out.n_wide[row] = 0;
  if (bits >= 0x7F800000 || largest < 1e-30f) {
    out.scales[row] = bits >= 0x7F800000 ? std::numeric_limits<float>::quiet_NaN() : 0.0f;
    std::fill_n(sums, n_groups, 0);
    for (int64_t t = 0; t < n_groups / 2; ++t) std::memset(out.line(row, t), 0, 64);
    return;
  }
  const float limit = ops::wide_limit(sum, out.n_cols);
  const auto [scale, inverse] =
      largest > limit ? ChooseWide(x, largest, limit, row, out) : ops::plain_scale(largest);
  out.scales[row] = scale;
  constexpr int64_t kAtOnce = 4;  // groups: 128 columns, which rows are padded to
  static_assert(kKPad == kAtOnce * kInt4GroupCols);
  for (int64_t g = 0; g < n_groups; g += kAtOnce) {
    const int64_t n = out.n_cols - kInt4GroupCols * g;
    const float* from = x + kInt4GroupCols * g;
    float tail[kKPad];
    if (n < kKPad) {
      std::fill(std::copy_n(from, n, tail), std::end(tail), 0.0f);
      from = tail;
    }
    VI group_sums[kAtOnce];
    for (int64_t i = 0; i < kAtOnce; ++i) {
      auto* q = reinterpret_cast<int8_t*>(out.line(row, (g + i) / 2)) + i % 2 * kInt4GroupCols;
      group_sums[i] = QuantiseGroup(from + i * kInt4GroupCols, inverse, q);
    }
    StoreSumsOfLanes(group_sums, sums + g);
  }
  ops::move_wide(x, inverse, row, out);
}

void PackRow(const float* x, int64_t row, const PackedRows& out) {
  if (out.dtype == DType::f32) return PackF32(x, row, out);
  if (out.dtype == DType::bf16) return PackBf16(x, row, out);
  PackI8(x, row, out);
}

void SetRowKernels(VectorKernels& k) {
  k.widen_bf16 = WidenBf16;
  k.round_to_bf16 = RoundToBf16;
  k.widen_i8 = WidenI8;
  k.widen_f8 = WidenF8;
  k.round_to_i8 = RoundToI8;
  k.round_to_f8 = RoundToF8;
  k.rms_norm = RmsNorm;
  k.add = Add;
  k.add_scaled_rows = AddScaledRows;
  k.rope = Rope;
  k.sigmoid = SigmoidRow;
  k.softmax = Softmax;
  k.silu_mul = SiluMul;
  k.pack_row = PackRow;
}

}  // namespace HWY_NAMESPACE
}  // namespace exo::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace exo::kernels::cpu {

void set_row_kernels(Isa isa, VectorKernels& kernels) { EXO_ON_ISA(isa, SetRowKernels(kernels)); }

}  // namespace exo::kernels::cpu
#endif
