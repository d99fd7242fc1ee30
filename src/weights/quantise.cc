#include "weights/quantise.h"

#include <cstddef>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "weights/quantise.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace exo::weights::HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

constexpr int64_t kRows = 16;   // of a panel
constexpr int64_t kGroup = 32;  // columns that share an int4 multiplier
constexpr float kMaxMultiplier = 15;
using D = hn::CappedTag<float, 16>;
using V = hn::Vec<D>;

// Multiply-then-add on purpose, here and below: the same bits with and without FMA.
HWY_INLINE V AddProduct(V sum, V a, V b) { return hn::Add(sum, hn::Mul(a, b)); }
HWY_INLINE V Clamp(V x, V low, V high) { return hn::Min(hn::Max(x, low), high); }

// 1 / x, and 0 where x is 0 (a row of zeros).
HWY_INLINE V InverseOrZero(V x) {
  const D d;
  const V one = hn::Set(d, 1.0f);
  const auto is_zero = hn::Eq(x, hn::Zero(d));
  return hn::IfThenZeroElse(is_zero, hn::Div(one, hn::IfThenElse(is_zero, one, x)));
}

HWY_INLINE void StoreInt8(V x, int8_t* out) {
  const hn::Rebind<int32_t, D> d32;
  const hn::Rebind<int8_t, D> d8;
  hn::StoreU(hn::DemoteTo(d8, hn::ConvertTo(d32, x)), d8, out);
}

// ---- int8

HWY_INLINE V QuantiseInt8(V x) {
  const D d;
  return Clamp(hn::Round(x), hn::Set(d, -127.0f), hn::Set(d, 127.0f));
}

// The squared errors of two row scales.
HWY_INLINE void Int8Errors(const float* w, int64_t n_k, V scale_a, V scale_b, V& error_a,
                           V& error_b) {
  const D d;
  const V inverse_a = InverseOrZero(scale_a), inverse_b = InverseOrZero(scale_b);
  V sum_a = hn::Zero(d), sum_b = hn::Zero(d);
  for (int64_t k = 0; k < n_k; ++k) {
    const V x = hn::Load(d, w + k * kRows);
    const V a = hn::Mul(x, inverse_a), b = hn::Mul(x, inverse_b);
    const V miss_a = hn::Sub(a, QuantiseInt8(a)), miss_b = hn::Sub(b, QuantiseInt8(b));
    sum_a = AddProduct(sum_a, miss_a, miss_a);
    sum_b = AddProduct(sum_b, miss_b, miss_b);
  }
  error_a = hn::Mul(sum_a, hn::Mul(scale_a, scale_a));
  error_b = hn::Mul(sum_b, hn::Mul(scale_b, scale_b));
}

// The scale that fits the integers of `scale` best: <w, q> / <q, q>.
HWY_INLINE V RefitInt8(const float* w, int64_t n_k, V scale) {
  const D d;
  const V inverse = InverseOrZero(scale);
  V wq = hn::Zero(d), qq = hn::Zero(d);
  for (int64_t k = 0; k < n_k; ++k) {
    const V x = hn::Load(d, w + k * kRows);
    const V q = QuantiseInt8(hn::Mul(x, inverse));
    wq = AddProduct(wq, x, q);
    qq = AddProduct(qq, q, q);
  }
  return hn::Mul(wq, InverseOrZero(qq));
}

void Int8Rows(const float* w, int64_t n_k, float* scales, int8_t* q) {
  const D d;
  V largest = hn::Zero(d);
  for (int64_t k = 0; k < n_k; ++k) largest = hn::Max(largest, hn::Abs(hn::Load(d, w + k * kRows)));
  const V whole = hn::Mul(largest, hn::Set(d, 1.0f / 127.0f));
  // Cutting the largest weights a little makes all others finer; how much pays differs by row.
  static constexpr float kCuts[] = {1.0f, 0.99f, 0.97f, 0.95f, 0.92f, 0.88f, 0.83f, 0.76f};
  V best = whole, best_error = hn::Set(d, 3e38f);
  for (size_t i = 0; i < 8; i += 2) {
    const V a = hn::Mul(whole, hn::Set(d, kCuts[i])), b = hn::Mul(whole, hn::Set(d, kCuts[i + 1]));
    V error_a = hn::Zero(d), error_b = hn::Zero(d);
    Int8Errors(w, n_k, a, b, error_a, error_b);
    const auto better_a = hn::Lt(error_a, best_error);
    best = hn::IfThenElse(better_a, a, best);
    best_error = hn::IfThenElse(better_a, error_a, best_error);
    const auto better_b = hn::Lt(error_b, best_error);
    best = hn::IfThenElse(better_b, b, best);
    best_error = hn::IfThenElse(better_b, error_b, best_error);
  }
  best = RefitInt8(w, n_k, best);
  const V inverse = InverseOrZero(best);
  for (int64_t k = 0; k < n_k; ++k)
    StoreInt8(QuantiseInt8(hn::Mul(hn::Load(d, w + k * kRows), inverse)), q + k * kRows);
  hn::StoreU(RefitInt8(w, n_k, best), d, scales);
}

// ---- int4

// The weight furthest from zero of a group, with its sign.
HWY_INLINE V Extreme(const float* group) {
  const D d;
  V low = hn::Zero(d), high = hn::Zero(d);
  for (int64_t k = 0; k < kGroup; ++k) {
    const V x = hn::Load(d, group + k * kRows);
    low = hn::Min(low, x);
    high = hn::Max(high, x);
  }
  return hn::IfThenElse(hn::Ge(high, hn::Neg(low)), high, low);
}

HWY_INLINE V ClampMultiplier(V m) {
  const D d;
  return Clamp(m, hn::Set(d, 1.0f), hn::Set(d, kMaxMultiplier));
}

// Group errors under two steps (row scale times signed multiplier).
HWY_INLINE void Int4Errors(const float* group, V step_a, V step_b, V& error_a, V& error_b) {
  const D d;
  const V low = hn::Set(d, -8.0f), high = hn::Set(d, 7.0f);
  const V inverse_a = InverseOrZero(step_a), inverse_b = InverseOrZero(step_b);
  V sum_a = hn::Zero(d), sum_b = hn::Zero(d);
  for (int64_t k = 0; k < kGroup; ++k) {
    const V x = hn::Load(d, group + k * kRows);
    const V a = hn::Mul(x, inverse_a), b = hn::Mul(x, inverse_b);
    const V miss_a = hn::Sub(a, Clamp(hn::Round(a), low, high));
    const V miss_b = hn::Sub(b, Clamp(hn::Round(b), low, high));
    sum_a = AddProduct(sum_a, miss_a, miss_a);
    sum_b = AddProduct(sum_b, miss_b, miss_b);
  }
  error_a = hn::Mul(sum_a, hn::Mul(step_a, step_a));
  error_b = hn::Mul(sum_b, hn::Mul(step_b, step_b));
}

// Row scales tried: the one that gives the row's widest group the multiplier 15, times these.
constexpr int kScaleTries = 14;
constexpr float kScales[kScaleTries] = {1.12f, 1.06f, 1.0f, 0.95f, 0.9f, 0.86f, 0.82f,
                                        0.78f, 0.74f, 0.7f, 0.66f, 0.6f, 0.54f, 0.48f};

// The best of kScales by row, each group under the better of two multipliers around the one that
// puts the group's extreme on -8.
HWY_INLINE V SearchRowScale(const float* w, int64_t n_k) {
  const D d;
  V largest = hn::Zero(d);
  for (int64_t k = 0; k < n_k; ++k) largest = hn::Max(largest, hn::Abs(hn::Load(d, w + k * kRows)));
  const V whole = hn::Mul(largest, hn::Set(d, 1.0f / (8.0f * kMaxMultiplier)));
  HWY_ALIGN float errors[kScaleTries * kRows] = {};
  for (int64_t k = 0; k < n_k; k += kGroup) {
    const float* group = w + k * kRows;
    const V extreme = Extreme(group);
    const V eighth = hn::Mul(hn::Abs(extreme), hn::Set(d, 0.125f));
    for (int i = 0; i < kScaleTries; ++i) {
      const V scale = hn::Mul(whole, hn::Set(d, kScales[i]));
      const V exact = hn::Mul(eighth, InverseOrZero(scale));
      const V m = hn::Round(hn::Mul(exact, hn::Set(d, 0.95f)));
      const V signed_scale = hn::CopySign(scale, hn::Neg(extreme));
      V error_a = hn::Zero(d), error_b = hn::Zero(d);
      Int4Errors(group, hn::Mul(signed_scale, ClampMultiplier(m)),
                 hn::Mul(signed_scale, ClampMultiplier(hn::Add(m, hn::Set(d, 1.0f)))), error_a,
                 error_b);
      float* sum = errors + i * kRows;
      hn::Store(hn::Add(hn::Load(d, sum), hn::Min(error_a, error_b)), d, sum);
    }
  }
  V best = whole, best_error = hn::Set(d, 3e38f);
  for (int i = 0; i < kScaleTries; ++i) {
    const V error = hn::Load(d, errors + i * kRows);
    const auto better = hn::Lt(error, best_error);
    best = hn::IfThenElse(better, hn::Mul(whole, hn::Set(d, kScales[i])), best);
    best_error = hn::IfThenElse(better, error, best_error);
  }
  return best;
}

// The best signed multiplier of a group under a row scale: both signs (q reaches -8 but only 7) of
// four sizes around the one that keeps the extreme; more gain nothing (docs/tensor_file.md).
HWY_INLINE V SearchMultiplier(const float* group, V scale) {
  const D d;
  const V one = hn::Set(d, 1.0f), seven = hn::Set(d, 7.0f), eight = hn::Set(d, 8.0f);
  const V exact =
      hn::Mul(hn::Mul(hn::Abs(Extreme(group)), hn::Set(d, 0.125f)), InverseOrZero(scale));
  V m = hn::Sub(hn::Round(exact), hn::Set(d, 2.0f));
  V best = one, best_error = hn::Set(d, 3e38f);
  for (int i = 0; i < 4; ++i, m = hn::Add(m, one)) {
    const V size = ClampMultiplier(m);
    const V step = hn::Mul(scale, size), inverse = InverseOrZero(step);
    V sum = hn::Zero(d), negative_sum = hn::Zero(d);
    for (int64_t k = 0; k < kGroup; ++k) {
      const V x = hn::Mul(hn::Load(d, group + k * kRows), inverse), rounded = hn::Round(x);
      const V miss = hn::Sub(x, Clamp(rounded, hn::Neg(eight), seven));
      const V negative_miss = hn::Sub(x, Clamp(rounded, hn::Neg(seven), eight));
      sum = AddProduct(sum, miss, miss);
      negative_sum = AddProduct(negative_sum, negative_miss, negative_miss);
    }
    const V squared = hn::Mul(step, step);
    const V error = hn::Mul(sum, squared), negative_error = hn::Mul(negative_sum, squared);
    const auto better = hn::Lt(error, best_error);
    best = hn::IfThenElse(better, size, best);
    best_error = hn::IfThenElse(better, error, best_error);
    const auto negative_better = hn::Lt(negative_error, best_error);
    best = hn::IfThenElse(negative_better, hn::Neg(size), best);
    best_error = hn::IfThenElse(negative_better, negative_error, best_error);
  }
  return best;
}

HWY_INLINE V QuantiseInt4(V x, V inverse) {
  const D d;
  return Clamp(hn::Round(hn::Mul(x, inverse)), hn::Set(d, -8.0f), hn::Set(d, 7.0f));
}

// Chooses every group's multiplier and q under `scale`, and returns the scale that fits them best.
V Int4Groups(const float* w, int64_t n_k, V scale, int8_t* m, int8_t* q) {
  const D d;
  V wv = hn::Zero(d), vv = hn::Zero(d);
  for (int64_t k = 0; k < n_k; k += kGroup) {
    const V multiplier = SearchMultiplier(w + k * kRows, scale);
    StoreInt8(multiplier, m + k / kGroup * kRows);
    const V inverse = InverseOrZero(hn::Mul(scale, multiplier));
    for (int64_t i = k; i < k + kGroup; ++i) {
      const V x = hn::Load(d, w + i * kRows);
      const V quantised = QuantiseInt4(x, inverse);
      StoreInt8(quantised, q + i * kRows);
      const V value = hn::Mul(quantised, multiplier);
      wv = AddProduct(wv, x, value);
      vv = AddProduct(vv, value, value);
    }
  }
  return hn::Mul(wv, InverseOrZero(vv));
}

void Int4Rows(const float* w, int64_t n_k, float* scales, int8_t* m, int8_t* q) {
  V scale = SearchRowScale(w, n_k);
  for (int round = 0; round < 2; ++round) scale = Int4Groups(w, n_k, scale, m, q);
  hn::StoreU(scale, D(), scales);
}

// Rows are independent: as many at once as a vector holds.
void Int8Panel(const float* w, int64_t n_k, float* scales, int8_t* q) {
  for (int64_t row = 0; row < kRows; row += static_cast<int64_t>(hn::Lanes(D())))
    Int8Rows(w + row, n_k, scales + row, q + row);
}

void Int4Panel(const float* w, int64_t n_k, float* scales, int8_t* m, int8_t* q) {
  for (int64_t row = 0; row < kRows; row += static_cast<int64_t>(hn::Lanes(D())))
    Int4Rows(w + row, n_k, scales + row, m + row, q + row);
}

}  // namespace
}  // namespace exo::weights::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace exo::weights {

HWY_EXPORT(Int8Panel);
HWY_EXPORT(Int4Panel);

void quantise_panel_int8(const float* w, int64_t n_k, float* scales, int8_t* q) {
  HWY_DYNAMIC_DISPATCH(Int8Panel)(w, n_k, scales, q);
}

void quantise_panel_int4(const float* w, int64_t n_k, float* scales, int8_t* m, int8_t* q) {
  HWY_DYNAMIC_DISPATCH(Int4Panel)(w, n_k, scales, m, q);
}

}  // namespace exo::weights
#endif  // HWY_ONCE
