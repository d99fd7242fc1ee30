// The softmax of one page's scores and what else both attentions' per-target sources share
// (included once per target; Highway's own guard).
#if defined(EXO_KERNELS_CPU_VECTOR_SOFTMAX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef EXO_KERNELS_CPU_VECTOR_SOFTMAX_INL_H_
#undef EXO_KERNELS_CPU_VECTOR_SOFTMAX_INL_H_
#else
#define EXO_KERNELS_CPU_VECTOR_SOFTMAX_INL_H_
#endif

#include <algorithm>
#include <limits>

#include "kernels/cpu/vector.h"
#include "kernels/cpu/vector_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace exo::kernels::cpu {
namespace HWY_NAMESPACE {

constexpr int64_t kPage = 64;
constexpr int64_t kHeads = kPageHeads;
// Are there 32 vector registers (AVX-512, NEON), or 16? Register blocks have 16 sums or 8.
constexpr bool kManyRegisters = HWY_CAP_GE512 || !HWY_CAP_GE256;
constexpr int kWide = kManyRegisters ? 4 : 2;  // vectors side by side in a block of 4 rows

HWY_INLINE float SoftmaxPage(float* p, int64_t n, SoftmaxState& state) {
  const DF df;
  const float lowest = -std::numeric_limits<float>::infinity();
  std::fill(p + n, p + kPage, lowest);
  VF top = hn::Set(df, state.largest);
  for (int64_t t = 0; t < kPage; t += kLanes) top = hn::Max(top, hn::LoadU(df, p + t));
  const float largest = hn::GetLane(hn::MaxOfLanes(df, top));
  const VF shift = hn::Set(df, largest);
  VF sum = hn::Zero(df);
  for (int64_t t = 0; t < kPage; t += kLanes) {
    const VF weight = Exp(hn::Sub(hn::LoadU(df, p + t), shift));
    hn::StoreU(weight, df, p + t);
    sum = hn::Add(sum, weight);
  }
  const float keep = hn::GetLane(Exp(hn::Set(df, state.largest - largest)));
  state.sum = state.sum * keep + hn::GetLane(hn::SumOfLanes(df, sum));
  state.largest = largest;
  return keep;
}

// Scores (times scale) to weights of one vector of heads; keep: the factors for what was summed
// before.
template <class Page>
HWY_INLINE void SoftmaxHeads(const Page& page, int64_t first, VF scale, float* keep) {
  const DF df;
  HWY_ALIGN float before[kLanes], sums[kLanes];
  for (int i = 0; i < kLanes; ++i) {
    before[i] = page.softmax[first + i].largest;
    sums[i] = page.softmax[first + i].sum;
  }
  float* p = page.weights + first;
  VF top = hn::Load(df, before);
  for (int64_t t = 0; t < page.n_keys; ++t) {
    const VF score = hn::Mul(hn::Load(df, p + t * kHeads), scale);
    hn::Store(score, df, p + t * kHeads);
    top = hn::Max(top, score);
  }
  VF sum = hn::Zero(df);
  for (int64_t t = 0; t < page.n_keys; ++t) {
    const VF weight = Exp(hn::Sub(hn::Load(df, p + t * kHeads), top));
    hn::Store(weight, df, p + t * kHeads);
    sum = hn::Add(sum, weight);
  }
  const VF factor = Exp(hn::Sub(hn::Load(df, before), top));
  hn::Store(hn::MulAdd(hn::Load(df, sums), factor, sum), df, sums);
  hn::Store(top, df, before);
  hn::StoreU(factor, df, keep + first);
  for (int i = 0; i < kLanes; ++i) page.softmax[first + i] = {before[i], sums[i]};
}

}  // namespace HWY_NAMESPACE
}  // namespace exo::kernels::cpu
HWY_AFTER_NAMESPACE();

#endif
