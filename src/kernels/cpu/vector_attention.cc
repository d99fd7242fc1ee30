/// Attention over one page of keys. Every sum has one order, whatever rows are computed together:
/// score_rows sums a dot product in kLanes interleaved chains and then over the lanes,
/// score_columns in one chain, add_values in one chain over the keys.
#include <algorithm>
#include <limits>

#include "kernels/cpu/vector_parts.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/vector_attention.cc"
#include "kernels/cpu/highway_targets.h"
//
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/cpu/vector_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace exo::kernels::cpu {
namespace HWY_NAMESPACE {

constexpr int64_t kPage = 64;
// Vectors side by side in a register block of 4 rows: 16 accumulators where there are 32 registers.
constexpr int kWide = HWY_CAP_GE512 || !HWY_CAP_GE256 ? 4 : 2;

// -- scores, keys as rows -------------------------------------------------------------------------

template <int kQ, int kK>
HWY_INLINE void ScoreBlock(const float* q, int64_t q_stride, const float* keys, int64_t key_stride,
                           int64_t dim, float scale, float* p) {
  const DF df;
  VF sum[kQ][kK];
  EXO_UNROLL
  for (int i = 0; i < kQ; ++i) {
    EXO_UNROLL
    for (int t = 0; t < kK; ++t) sum[i][t] = hn::Zero(df);
  }
  for (int64_t d = 0; d < dim; d += kLanes) {
    VF k[kK];
    EXO_UNROLL
    for (int t = 0; t < kK; ++t) k[t] = hn::Load(df, keys + t * key_stride + d);
    EXO_UNROLL
    for (int i = 0; i < kQ; ++i) {
      const VF v = hn::Load(df, q + i * q_stride + d);
      EXO_UNROLL
      for (int t = 0; t < kK; ++t) sum[i][t] = hn::MulAdd(v, k[t], sum[i][t]);
    }
  }
  EXO_UNROLL
  for (int i = 0; i < kQ; ++i) {
    EXO_UNROLL
    for (int t = 0; t < kK; ++t)
      p[i * kPage + t] = scale * hn::GetLane(hn::SumOfLanes(df, sum[i][t]));
  }
}

template <int kQ>
HWY_INLINE void ScoreKeys(const float* q, int64_t q_stride, const float* keys, int64_t key_stride,
                          int64_t n_keys, int64_t dim, float scale, float* p) {
  int64_t t = 0;
  for (; t + kWide <= n_keys; t += kWide)
    ScoreBlock<kQ, kWide>(q, q_stride, keys + t * key_stride, key_stride, dim, scale, p + t);
  for (; t < n_keys; ++t)
    ScoreBlock<kQ, 1>(q, q_stride, keys + t * key_stride, key_stride, dim, scale, p + t);
}

void ScoreRows(const float* q, int64_t q_stride, int64_t n_q, const float* keys, int64_t key_stride,
               int64_t n_keys, int64_t dim, float scale, float* p) {
  const int64_t padded = (dim + 15) / 16 * 16;
  int64_t i = 0;
  for (; i + 4 <= n_q; i += 4)
    ScoreKeys<4>(q + i * q_stride, q_stride, keys, key_stride, n_keys, padded, scale,
                 p + i * kPage);
  for (; i < n_q; ++i)
    ScoreKeys<1>(q + i * q_stride, q_stride, keys, key_stride, n_keys, padded, scale,
                 p + i * kPage);
}

// -- scores, keys as columns ----------------------------------------------------------------------

template <int kQ>
HWY_INLINE void ScoreColumnsBlock(const float* q, int64_t q_stride, const float* keys_t,
                                  int64_t dim, float scale, float* p) {
  const DF df;
  for (int64_t t = 0; t < kPage; t += kWide * kLanes) {
    VF sum[kQ][kWide];
    EXO_UNROLL
    for (int i = 0; i < kQ; ++i) {
      EXO_UNROLL
      for (int j = 0; j < kWide; ++j) sum[i][j] = hn::Zero(df);
    }
    for (int64_t d = 0; d < dim; ++d) {
      VF k[kWide];
      EXO_UNROLL
      for (int j = 0; j < kWide; ++j) k[j] = hn::Load(df, keys_t + d * kPage + t + j * kLanes);
      EXO_UNROLL
      for (int i = 0; i < kQ; ++i) {
        const VF v = hn::Set(df, q[i * q_stride + d]);
        EXO_UNROLL
        for (int j = 0; j < kWide; ++j) sum[i][j] = hn::MulAdd(v, k[j], sum[i][j]);
      }
    }
    const VF s = hn::Set(df, scale);
    EXO_UNROLL
    for (int i = 0; i < kQ; ++i) {
      EXO_UNROLL
      for (int j = 0; j < kWide; ++j)
        hn::StoreU(hn::Mul(sum[i][j], s), df, p + i * kPage + t + j * kLanes);
    }
  }
}

void ScoreColumns(const float* q, int64_t q_stride, int64_t n_q, const float* keys_t, int64_t dim,
                  float scale, float* p) {
  int64_t i = 0;
  for (; i + 4 <= n_q; i += 4)
    ScoreColumnsBlock<4>(q + i * q_stride, q_stride, keys_t, dim, scale, p + i * kPage);
  for (; i < n_q; ++i)
    ScoreColumnsBlock<1>(q + i * q_stride, q_stride, keys_t, dim, scale, p + i * kPage);
}

// -- softmax --------------------------------------------------------------------------------------

float SoftmaxPage(float* p, int64_t n, SoftmaxState& state) {
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

// -- values ---------------------------------------------------------------------------------------

template <int kQ, int kVecs>
HWY_INLINE void AddValuesBlock(const float* p, const float* keep, const int64_t* n_keys,
                               const float* values, int64_t value_stride, float* out,
                               int64_t out_stride) {
  const DF df;
  VF sum[kQ][kVecs];
  int64_t shared = n_keys[0];
  EXO_UNROLL
  for (int i = 0; i < kQ; ++i) {
    shared = std::min(shared, n_keys[i]);
    EXO_UNROLL
    for (int j = 0; j < kVecs; ++j)
      sum[i][j] = hn::Mul(hn::LoadU(df, out + i * out_stride + j * kLanes), hn::Set(df, keep[i]));
  }
  for (int64_t t = 0; t < shared; ++t) {
    VF v[kVecs];
    EXO_UNROLL
    for (int j = 0; j < kVecs; ++j) v[j] = hn::LoadU(df, values + t * value_stride + j * kLanes);
    EXO_UNROLL
    for (int i = 0; i < kQ; ++i) {
      const VF weight = hn::Set(df, p[i * kPage + t]);
      EXO_UNROLL
      for (int j = 0; j < kVecs; ++j) sum[i][j] = hn::MulAdd(weight, v[j], sum[i][j]);
    }
  }
  EXO_UNROLL
  for (int i = 0; i < kQ; ++i) {
    // A key that a row may not see contributes nothing, not 0 * its value.
    for (int64_t t = shared; t < n_keys[i]; ++t) {
      const VF weight = hn::Set(df, p[i * kPage + t]);
      EXO_UNROLL
      for (int j = 0; j < kVecs; ++j)
        sum[i][j] =
            hn::MulAdd(weight, hn::LoadU(df, values + t * value_stride + j * kLanes), sum[i][j]);
    }
    EXO_UNROLL
    for (int j = 0; j < kVecs; ++j) hn::StoreU(sum[i][j], df, out + i * out_stride + j * kLanes);
  }
}

HWY_INLINE void AddValuesTail(const float* p, const float* keep, const int64_t* n_keys, int64_t n_q,
                              const float* values, int64_t value_stride, int64_t dim, float* out,
                              int64_t out_stride) {
  for (int64_t i = 0; i < n_q; ++i) {
    VF sum = hn::Mul(LoadTail(out + i * out_stride, dim), hn::Set(DF(), keep[i]));
    for (int64_t t = 0; t < n_keys[i]; ++t)
      sum = hn::MulAdd(hn::Set(DF(), p[i * kPage + t]), LoadTail(values + t * value_stride, dim),
                       sum);
    StoreTail(sum, out + i * out_stride, dim);
  }
}

template <int kQ>
HWY_INLINE void AddValuesRows(const float* p, const float* keep, const int64_t* n_keys,
                              const float* values, int64_t value_stride, int64_t dim, float* out,
                              int64_t out_stride) {
  int64_t j = 0;
  for (; j + kWide * kLanes <= dim; j += kWide * kLanes)
    AddValuesBlock<kQ, kWide>(p, keep, n_keys, values + j, value_stride, out + j, out_stride);
  for (; j + kLanes <= dim; j += kLanes)
    AddValuesBlock<kQ, 1>(p, keep, n_keys, values + j, value_stride, out + j, out_stride);
  if (j < dim)
    AddValuesTail(p, keep, n_keys, kQ, values + j, value_stride, dim - j, out + j, out_stride);
}

void AddValues(const float* p, const float* keep, const int64_t* n_keys, int64_t n_q,
               const float* values, int64_t value_stride, int64_t dim, float* out,
               int64_t out_stride) {
  int64_t i = 0;
  for (; i + 4 <= n_q; i += 4)
    AddValuesRows<4>(p + i * kPage, keep + i, n_keys + i, values, value_stride, dim,
                     out + i * out_stride, out_stride);
  for (; i < n_q; ++i)
    AddValuesRows<1>(p + i * kPage, keep + i, n_keys + i, values, value_stride, dim,
                     out + i * out_stride, out_stride);
}

void Divide(float* x, float divisor, int64_t n) {
  const DF df;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    hn::StoreU(hn::Div(hn::LoadU(df, x + i), hn::Set(df, divisor)), df, x + i);
  for (; i < n; ++i) x[i] /= divisor;
}

void Mix(float a, float* y, float b, const float* x, int64_t n) {
  const DF df;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const VF scaled = hn::Mul(hn::Set(df, b), hn::LoadU(df, x + i));
    hn::StoreU(hn::MulAdd(hn::Set(df, a), hn::LoadU(df, y + i), scaled), df, y + i);
  }
  if (i < n) {
    const VF scaled = hn::Mul(hn::Set(df, b), LoadTail(x + i, n - i));
    StoreTail(hn::MulAdd(hn::Set(df, a), LoadTail(y + i, n - i), scaled), y + i, n - i);
  }
}

void TransposePage(const float* in, int64_t in_stride, int64_t n_rows, int64_t n_cols, float* out) {
  // 8 x 8 blocks: each line of either side is touched whole while it is in the first-level cache.
  for (int64_t i0 = 0; i0 < n_rows; i0 += 8) {
    for (int64_t j0 = 0; j0 < n_cols; j0 += 8) {
      const int64_t i1 = std::min(i0 + 8, n_rows), j1 = std::min(j0 + 8, n_cols);
      for (int64_t j = j0; j < j1; ++j) {
        for (int64_t i = i0; i < i1; ++i) out[j * kPage + i] = in[i * in_stride + j];
      }
    }
  }
}

void SetAttentionKernels(VectorKernels& k) {
  k.score_rows = ScoreRows;
  k.score_columns = ScoreColumns;
  k.softmax_page = SoftmaxPage;
  k.add_values = AddValues;
  k.divide = Divide;
  k.mix = Mix;
  k.transpose_page = TransposePage;
}

}  // namespace HWY_NAMESPACE
}  // namespace exo::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace exo::kernels::cpu {

void set_attention_kernels(Isa isa, VectorKernels& kernels) {
  EXO_ON_ISA(isa, SetAttentionKernels(kernels));
}

}  // namespace exo::kernels::cpu
#endif
