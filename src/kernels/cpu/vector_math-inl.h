// Vector mathematics of the per-target sources (included once per target; Highway's own guard).
#if defined(EXO_KERNELS_CPU_VECTOR_MATH_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef EXO_KERNELS_CPU_VECTOR_MATH_INL_H_
#undef EXO_KERNELS_CPU_VECTOR_MATH_INL_H_
#else
#define EXO_KERNELS_CPU_VECTOR_MATH_INL_H_
#endif

#include <cstring>

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace exo::kernels::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using DF = hn::ScalableTag<float>;
using DI = hn::Rebind<int32_t, DF>;
using DU = hn::Rebind<uint32_t, DF>;
using VF = hn::Vec<DF>;
using VI = hn::Vec<DI>;
using VU = hn::Vec<DU>;
constexpr int kLanes = static_cast<int>(hn::MaxLanes(DF()));

// n < kLanes values, zeros behind them.
HWY_INLINE VF LoadTail(const float* p, int64_t n) {
  HWY_ALIGN float lanes[kLanes] = {};
  std::memcpy(lanes, p, static_cast<size_t>(n) * sizeof(float));
  return hn::Load(DF(), lanes);
}
HWY_INLINE void StoreTail(VF v, float* p, int64_t n) {
  HWY_ALIGN float lanes[kLanes];
  hn::Store(v, DF(), lanes);
  std::memcpy(p, lanes, static_cast<size_t>(n) * sizeof(float));
}

// The nearest integers of floats that int32 can hold; of others, any. (hn::NearestInt mends those.)
HWY_INLINE VI Nearest(VF v) {
#if HWY_TARGET <= HWY_AVX3_DL
  return VI{_mm512_cvtps_epi32(v.raw)};
#elif HWY_TARGET == HWY_AVX2
  return VI{_mm256_cvtps_epi32(v.raw)};
#else
  return hn::NearestInt(v);
#endif
}

// p * 2^n, rounded once: where two multiplications make it, one is exact.
HWY_INLINE VF TimesPowerOf2(VF p, VI n, VF n_as_float) {
#if HWY_TARGET <= HWY_AVX3_DL
  static_cast<void>(n);
  return VF{_mm512_scalef_ps(p.raw, n_as_float.raw)};
#else
  static_cast<void>(n_as_float);
  const DF df;
  const VI bias = hn::Set(DI(), 127), half = hn::ShiftRight<1>(n), rest = hn::Sub(n, half);
  p = hn::Mul(p, hn::BitCast(df, hn::ShiftLeft<23>(hn::Add(half, bias))));
  return hn::Mul(p, hn::BitCast(df, hn::ShiftLeft<23>(hn::Add(rest, bias))));
#endif
}

// e^x within 2 ulp; 0 below -104, infinity above 88.73, NaN for NaN. x = n ln 2 + r with |r| <=
// ln 2 / 2; the polynomial is Cephes's expf (S. Moshier).
HWY_INLINE VF Exp(VF x) {
  const DF df;
  // In this order a NaN comes through: x86 returns the second operand then.
  const VF clamped = hn::Min(hn::Set(df, 89.0f), hn::Max(hn::Set(df, -104.0f), x));
  const VI n = Nearest(hn::Mul(clamped, hn::Set(df, 1.44269504088896341f)));
  const VF nf = hn::ConvertTo(df, n);
  VF r = hn::NegMulAdd(nf, hn::Set(df, 0.693359375f), clamped);
  r = hn::NegMulAdd(nf, hn::Set(df, -2.12194440e-4f), r);
  VF p = hn::Set(df, 1.9875691500e-4f);
  p = hn::MulAdd(p, r, hn::Set(df, 1.3981999507e-3f));
  p = hn::MulAdd(p, r, hn::Set(df, 8.3334519073e-3f));
  p = hn::MulAdd(p, r, hn::Set(df, 4.1665795894e-2f));
  p = hn::MulAdd(p, r, hn::Set(df, 1.6666665459e-1f));
  p = hn::MulAdd(p, r, hn::Set(df, 5.0000001201e-1f));
  p = hn::Add(hn::MulAdd(p, hn::Mul(r, r), r), hn::Set(df, 1.0f));
  return TimesPowerOf2(p, n, nf);
}

HWY_INLINE VF Sigmoid(VF x) {
  const VF one = hn::Set(DF(), 1.0f);
  return hn::Div(one, hn::Add(one, Exp(hn::Neg(x))));
}

// The bf16 bits of each lane, round to nearest even, NaN quiet, in the low half.
HWY_INLINE VU Bf16Bits(VF x) {
  const DU du;
  const VU u = hn::BitCast(du, x);
  const VU odd = hn::And(hn::ShiftRight<16>(u), hn::Set(du, 1u));
  const VU rounded = hn::ShiftRight<16>(hn::Add(u, hn::Add(odd, hn::Set(du, 0x7FFFu))));
  const VU quiet = hn::Or(hn::ShiftRight<16>(u), hn::Set(du, 0x40u));
  return hn::IfThenElse(hn::RebindMask(du, hn::IsNaN(x)), quiet, rounded);
}

// Widened bf16 from memory.
HWY_INLINE VF LoadBf16(const bf16* p) {
  const hn::Rebind<uint16_t, DF> d16;
  const DU du;
  const VU u = hn::PromoteTo(du, hn::LoadU(d16, reinterpret_cast<const uint16_t*>(p)));
  return hn::BitCast(DF(), hn::ShiftLeft<16>(u));
}

}  // namespace HWY_NAMESPACE
}  // namespace exo::kernels::cpu
HWY_AFTER_NAMESPACE();

#endif  // guard
