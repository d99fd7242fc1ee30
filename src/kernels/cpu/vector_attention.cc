/// Attention over one page of keys. Every sum has one order, whatever rows are computed together:
/// scores one chain over the columns, values one chain over the keys.
#include <algorithm>

#include "kernels/cpu/vector_parts.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/vector_attention.cc"
#include "kernels/cpu/highway_targets.h"
//
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/cpu/vector_softmax-inl.h"

HWY_BEFORE_NAMESPACE();
namespace exo::kernels::cpu {
namespace HWY_NAMESPACE {

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

// -- values ---------------------------------------------------------------------------------------

// How the weight of row i and key t is found in p: at i * kRowStep + t * kKeyStep.
struct RowsOfKeys {
  static constexpr int64_t kRowStep = kPage, kKeyStep = 1;
};
struct KeysOfHeads {
  static constexpr int64_t kRowStep = 1, kKeyStep = kHeads;
};

template <class Layout, int kQ, int kVecs>
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
      const VF weight = hn::Set(df, p[i * Layout::kRowStep + t * Layout::kKeyStep]);
      EXO_UNROLL
      for (int j = 0; j < kVecs; ++j) sum[i][j] = hn::MulAdd(weight, v[j], sum[i][j]);
    }
  }
  EXO_UNROLL
  for (int i = 0; i < kQ; ++i) {
    // A key that a row may not see contributes nothing, not 0 * its value.
    for (int64_t t = shared; t < n_keys[i]; ++t) {
      const VF weight = hn::Set(df, p[i * Layout::kRowStep + t * Layout::kKeyStep]);
      EXO_UNROLL
      for (int j = 0; j < kVecs; ++j)
        sum[i][j] =
            hn::MulAdd(weight, hn::LoadU(df, values + t * value_stride + j * kLanes), sum[i][j]);
    }
    EXO_UNROLL
    for (int j = 0; j < kVecs; ++j) hn::StoreU(sum[i][j], df, out + i * out_stride + j * kLanes);
  }
}

template <class Layout, int kVecs>
HWY_INLINE void AddValuesOfRows(const float* p, const float* keep, const int64_t* n_keys,
                                int64_t n_q, const float* values, int64_t value_stride, float* out,
                                int64_t out_stride) {
  int64_t i = 0;
  for (; i + 4 <= n_q; i += 4)
    AddValuesBlock<Layout, 4, kVecs>(p + i * Layout::kRowStep, keep + i, n_keys + i, values,
                                     value_stride, out + i * out_stride, out_stride);
  for (; i < n_q; ++i)
    AddValuesBlock<Layout, 1, kVecs>(p + i * Layout::kRowStep, keep + i, n_keys + i, values,
                                     value_stride, out + i * out_stride, out_stride);
}

template <class Layout>
HWY_INLINE void AddValuesTail(const float* p, const float* keep, const int64_t* n_keys, int64_t n_q,
                              const float* values, int64_t value_stride, int64_t dim, float* out,
                              int64_t out_stride) {
  for (int64_t i = 0; i < n_q; ++i) {
    VF sum = hn::Mul(LoadTail(out + i * out_stride, dim), hn::Set(DF(), keep[i]));
    for (int64_t t = 0; t < n_keys[i]; ++t)
      sum = hn::MulAdd(hn::Set(DF(), p[i * Layout::kRowStep + t * Layout::kKeyStep]),
                       LoadTail(values + t * value_stride, dim), sum);
    StoreTail(sum, out + i * out_stride, dim);
  }
}

// Some columns for all rows, then the next: their values stay in the first-level cache.
template <class Layout>
HWY_INLINE void AddValuesInColumns(const float* p, const float* keep, const int64_t* n_keys,
                                   int64_t n_q, const float* values, int64_t value_stride,
                                   int64_t dim, float* out, int64_t out_stride) {
  int64_t j = 0;
  for (; j + kWide * kLanes <= dim; j += kWide * kLanes)
    AddValuesOfRows<Layout, kWide>(p, keep, n_keys, n_q, values + j, value_stride, out + j,
                                   out_stride);
  for (; j + kLanes <= dim; j += kLanes)
    AddValuesOfRows<Layout, 1>(p, keep, n_keys, n_q, values + j, value_stride, out + j, out_stride);
  if (j < dim)
    AddValuesTail<Layout>(p, keep, n_keys, n_q, values + j, value_stride, dim - j, out + j,
                          out_stride);
}

void AddValues(const float* p, const float* keep, const int64_t* n_keys, int64_t n_q,
               const float* values, int64_t value_stride, int64_t dim, float* out,
               int64_t out_stride) {
  AddValuesInColumns<RowsOfKeys>(p, keep, n_keys, n_q, values, value_stride, dim, out, out_stride);
}

// -- heads of one row -----------------------------------------------------------------------------

// Lanes are heads: kVecs vectors of them with kKeys keys, whose columns are broadcast.
template <int kVecs, int kKeys>
HWY_INLINE void ScoreKeys(const PageOfHeads& page, int64_t t, const std::byte*& next) {
  const DF df;
  VF sum[kKeys][kVecs];
  EXO_UNROLL
  for (int k = 0; k < kKeys; ++k) {
    EXO_UNROLL
    for (int j = 0; j < kVecs; ++j) sum[k][j] = hn::Zero(df);
  }
  const float* keys = page.entries + t * page.stride;
  for (int64_t d = 0; d < page.dim; ++d) {
    if (d % 2 == 0 && next < page.next_end) {
      __builtin_prefetch(next, 0, 2);
      next += 64;
    }
    VF q[kVecs];
    EXO_UNROLL
    for (int j = 0; j < kVecs; ++j) q[j] = hn::Load(df, page.q_t + d * kHeads + j * kLanes);
    EXO_UNROLL
    for (int k = 0; k < kKeys; ++k) {
      const VF key = hn::Set(df, keys[k * page.stride + d]);
      EXO_UNROLL
      for (int j = 0; j < kVecs; ++j) sum[k][j] = hn::MulAdd(key, q[j], sum[k][j]);
    }
  }
  EXO_UNROLL
  for (int k = 0; k < kKeys; ++k) {
    EXO_UNROLL
    for (int j = 0; j < kVecs; ++j)
      hn::Store(sum[k][j], df, page.weights + (t + k) * kHeads + j * kLanes);
  }
}

template <int kVecs>
HWY_INLINE void AttendHeadsOf(const PageOfHeads& page) {
  constexpr int kKeys = std::min(16, (kManyRegisters ? 16 : 8) / kVecs);
  const std::byte* next = page.next;
  int64_t t = 0;
  for (; t + kKeys <= page.n_keys; t += kKeys) ScoreKeys<kVecs, kKeys>(page, t, next);
  for (; t < page.n_keys; ++t) ScoreKeys<kVecs, 1>(page, t, next);
  float keep[kHeads];
  int64_t n_keys[kHeads];
  const VF scale = hn::Set(DF(), page.scale);
  for (int j = 0; j < kVecs; ++j) SoftmaxHeads(page, j * kLanes, scale, keep);
  for (int64_t h = 0; h < page.n_heads; ++h) n_keys[h] = page.n_keys;
  AddValuesInColumns<KeysOfHeads>(page.weights, keep, n_keys, page.n_heads, page.entries,
                                  page.stride, page.rank, page.sum, page.sum_stride);
}

void AttendHeads(const PageOfHeads& page) {
  static_assert(kHeads % kLanes == 0);
  constexpr int kMostVecs = kHeads / kLanes;
  const int64_t n_vecs = (page.n_heads + kLanes - 1) / kLanes;
  if constexpr (kMostVecs >= 4) {
    if (n_vecs == 4) return AttendHeadsOf<4>(page);
    if (n_vecs == 3) return AttendHeadsOf<3>(page);
  }
  if constexpr (kMostVecs >= 2) {
    if (n_vecs == 2) return AttendHeadsOf<2>(page);
  }
  AttendHeadsOf<1>(page);
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
  k.score_columns = ScoreColumns;
  k.softmax_page = SoftmaxPage;
  k.add_values = AddValues;
  k.attend_heads = AttendHeads;
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
