/// Attention over one page of keys. Every sum has one order, whatever rows are computed together:
/// scores one chain over the columns, values one chain over the keys.
#include <algorithm>
#include <cmath>
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
constexpr int64_t kHeads = kPageHeads;
// Are there 32 vector registers (AVX-512, NEON), or 16? Register blocks have 16 sums or 8.
constexpr bool kManyRegisters = HWY_CAP_GE512 || !HWY_CAP_GE256;
constexpr int kWide = kManyRegisters ? 4 : 2;  // vectors side by side in a block of 4 rows

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

#if HWY_ARCH_X86
// -- the same in words ----------------------------------------------------------------------------

using DW = hn::Repartition<int16_t, DI>;
using VW = hn::Vec<DW>;
constexpr int kWords = 2 * kLanes;

// The norm of a row of codes. Two rows' product, and each part of it, is at most the product of
// their norms (Cauchy-Schwarz), which is below 2^31 with what rounding adds (0.5 a column).
constexpr float kLargestNorm = 46000.0f;
constexpr float kLargestWord = 32767.0f;

// The nearest integers of 2 * kLanes floats that words can hold.
HWY_INLINE VW NearestWords(VF a, VF b) {
#if HWY_TARGET <= HWY_AVX3_DL
  const __m256i low = _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(a.raw));
  const __m256i high = _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(b.raw));
  return VW{_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1)};
#else
  const __m256i lanes = _mm256_packs_epi32(_mm256_cvtps_epi32(a.raw), _mm256_cvtps_epi32(b.raw));
  return VW{_mm256_permute4x64_epi64(lanes, 0xD8)};
#endif
}

// The norm where the sum of squares leaves the range of f32; NaN for what is not finite.
HWY_NOINLINE float ScaledNorm(const float* x, int64_t n, float largest) {
  if (largest == 0.0f) largest = 1.0f;  // zeros, or no numbers at all
  float sum = 0.0f;
  for (int64_t i = 0; i < n; ++i) sum += x[i] / largest * (x[i] / largest);
  return largest * std::sqrt(sum);
}

float RoundToWords(const float* x, int16_t* codes, int64_t n) {
  const DF df;
  constexpr int kSums = 4;
  VF largest[kSums], squares[kSums];
  EXO_UNROLL
  for (int j = 0; j < kSums; ++j) largest[j] = squares[j] = hn::Zero(df);
  int64_t i = 0;
  for (; i + kSums * kLanes <= n; i += kSums * kLanes) {
    EXO_UNROLL
    for (int j = 0; j < kSums; ++j) {
      const VF v = hn::LoadU(df, x + i + j * kLanes);
      largest[j] = hn::Max(largest[j], hn::Abs(v));
      squares[j] = hn::MulAdd(v, v, squares[j]);
    }
  }
  for (; i < n; i += kLanes) {
    const VF v = LoadTail(x + i, std::min<int64_t>(kLanes, n - i));
    largest[0] = hn::Max(largest[0], hn::Abs(v));
    squares[0] = hn::MulAdd(v, v, squares[0]);
  }
  const VF most = hn::Max(hn::Max(largest[0], largest[1]), hn::Max(largest[2], largest[3]));
  const VF sum = hn::Add(hn::Add(squares[0], squares[1]), hn::Add(squares[2], squares[3]));
  const float top = hn::GetLane(hn::MaxOfLanes(df, most));
  const float square = hn::GetLane(hn::SumOfLanes(df, sum));
  const float norm = square > 1e-30f && square < 1e38f ? std::sqrt(square) : ScaledNorm(x, n, top);
  const float scale = std::max(top * (1.0f / kLargestWord), norm * (1.0f / kLargestNorm));
  const float inverse = 1.0f / scale;
  // Not finite; or zeros, or so near to them that nothing remains.
  if (!(norm < std::numeric_limits<float>::infinity()) || inverse - inverse != 0.0f) {
    std::fill_n(codes, n, int16_t{0});
    return norm < std::numeric_limits<float>::infinity() ? 0.0f
                                                         : std::numeric_limits<float>::quiet_NaN();
  }
  const VF factor = hn::Set(df, inverse);
  const auto words = [&](const float* from) {
    return NearestWords(hn::Mul(hn::LoadU(df, from), factor),
                        hn::Mul(hn::LoadU(df, from + kLanes), factor));
  };
  for (i = 0; i + kWords <= n; i += kWords) hn::StoreU(words(x + i), DW(), codes + i);
  if (i < n) {
    float rest[kWords] = {};
    HWY_ALIGN int16_t tail[kWords];
    std::copy_n(x + i, n - i, rest);
    hn::Store(words(rest), DW(), tail);
    std::copy_n(tail, n - i, codes + i);
  }
  return scale;
}

// The nearest integers of floats that int32 can hold.
HWY_INLINE VI Nearest(VF v) {
#if HWY_TARGET <= HWY_AVX3_DL
  return VI{_mm512_cvtps_epi32(v.raw)};
#else
  return VI{_mm256_cvtps_epi32(v.raw)};
#endif
}

// sum + a[2i] * b[2i] + a[2i + 1] * b[2i + 1]
HWY_INLINE VI AddProducts(VI sum, VW a, VW b) {
#if HWY_TARGET <= HWY_AVX3_DL
  // VNNI, which has_avx512 includes and the flags of Highway 1.0's target don't.
  asm("vpdpwssd %2, %1, %0" : "+v"(sum.raw) : "v"(a.raw), "v"(b.raw));
  return sum;
#else
  VI none = hn::Zero(DI());  // x86 adds all to the first sum
  return hn::ReorderWidenMulAccumulate(DI(), a, b, sum, none);
#endif
}
HWY_INLINE VW BroadcastPair(const void* p) {
  int32_t pair;
  std::memcpy(&pair, p, sizeof(pair));
  return hn::BitCast(DW(), hn::Set(DI(), pair));
}

// Lanes are heads: kVecs vectors of them with kKeys keys.
template <int kVecs, int kKeys>
HWY_INLINE void ScoreWords(const PageOfWords& page, int64_t t, const std::byte*& next) {
  const DF df;
  const DI di;
  VI sum[kKeys][kVecs];
  EXO_UNROLL
  for (int k = 0; k < kKeys; ++k) {
    EXO_UNROLL
    for (int j = 0; j < kVecs; ++j) sum[k][j] = hn::Zero(di);
  }
  const int16_t* keys = page.entries + t * page.stride;
  for (int64_t d = 0; d < page.dim; d += 2) {
    if (next < page.next_end) {
      __builtin_prefetch(next, 0, 2);
      next += 64;
    }
    VW q[kVecs];
    EXO_UNROLL
    for (int j = 0; j < kVecs; ++j) q[j] = hn::Load(DW(), page.q + d * kHeads + j * kWords);
    EXO_UNROLL
    for (int k = 0; k < kKeys; ++k) {
      const VW key = BroadcastPair(keys + k * page.stride + d);
      EXO_UNROLL
      for (int j = 0; j < kVecs; ++j) sum[k][j] = AddProducts(sum[k][j], q[j], key);
    }
  }
  EXO_UNROLL
  for (int k = 0; k < kKeys; ++k) {
    const VF scale = hn::Set(df, page.scales[t + k]);
    EXO_UNROLL
    for (int j = 0; j < kVecs; ++j)
      hn::Store(hn::Mul(hn::ConvertTo(df, sum[k][j]), scale), df,
                page.weights + (t + k) * kHeads + j * kLanes);
  }
}

// The weights of one vector of heads, times the scales of their entries, as codes of pairs of keys
// [32, kHeads]; units: what a code is worth. A code is at most kLargestWord and the sum of a head's
// less than 2^16, so that sums of products with entries stay below 2^31.
HWY_INLINE void WeightsToWords(const PageOfWords& page, int64_t first, int32_t* pairs,
                               float* units) {
  const DF df;
  const DI di;
  const float* p = page.weights + first;
  const auto weight = [&](int64_t t) {
    return hn::Mul(hn::Load(df, p + t * kHeads), hn::Set(df, page.scales[t]));
  };
  VF largest = hn::Zero(df), sum = hn::Zero(df);
  for (int64_t t = 0; t < page.n_keys; ++t) {
    const VF w = weight(t);
    largest = hn::Max(largest, w);
    sum = hn::Add(sum, w);
  }
  const VF unit = hn::Max(hn::Mul(largest, hn::Set(df, 1.0f / kLargestWord)),
                          hn::Mul(sum, hn::Set(df, 1.0f / 65500.0f)));
  const VF inverse =
      hn::IfThenElseZero(hn::Gt(unit, hn::Zero(df)), hn::Div(hn::Set(df, 1.0f), unit));
  for (int64_t t = 0; t < page.n_keys; t += 2) {
    const VI low = Nearest(hn::Mul(weight(t), inverse));
    const VI high = t + 1 < page.n_keys ? Nearest(hn::Mul(weight(t + 1), inverse)) : hn::Zero(di);
    hn::Store(hn::Or(hn::And(low, hn::Set(di, 0xFFFF)), hn::ShiftLeft<16>(high)), di,
              pairs + t / 2 * kHeads + first);
  }
  hn::Store(unit, df, units + first);
}

// What the weights of heads are on their way to the values.
struct HeadWords {
  HWY_ALIGN int32_t pairs[kPage / 2 * kHeads];
  HWY_ALIGN float units[kHeads], keep[kHeads];
};

// kQ heads with kWords columns: values holds them, interleaved by pairs of keys.
template <int kQ>
HWY_INLINE void AddWordsBlock(const HeadWords& w, int64_t head, const int16_t* values,
                              int64_t n_pairs, float* out, int64_t out_stride) {
  const DF df;
  VI sum[kQ][2];
  EXO_UNROLL
  for (int i = 0; i < kQ; ++i) sum[i][0] = sum[i][1] = hn::Zero(DI());
  for (int64_t t = 0; t < n_pairs; ++t) {
    const VW first = hn::Load(DW(), values + t * 2 * kWords);
    const VW second = hn::Load(DW(), values + t * 2 * kWords + kWords);
    EXO_UNROLL
    for (int i = 0; i < kQ; ++i) {
      const VW weight = BroadcastPair(w.pairs + t * kHeads + head + i);
      sum[i][0] = AddProducts(sum[i][0], first, weight);
      sum[i][1] = AddProducts(sum[i][1], second, weight);
    }
  }
  EXO_UNROLL
  for (int i = 0; i < kQ; ++i) {
    const VF keep = hn::Set(df, w.keep[head + i]), unit = hn::Set(df, w.units[head + i]);
    EXO_UNROLL
    for (int j = 0; j < 2; ++j) {
      float* to = out + i * out_stride + j * kLanes;
      const VF before = hn::Mul(hn::LoadU(df, to), keep);
      hn::StoreU(hn::MulAdd(hn::ConvertTo(df, sum[i][j]), unit, before), df, to);
    }
  }
}

void AddWords(const PageOfWords& page, const HeadWords& w) {
  constexpr int kQ = kManyRegisters ? 8 : 4;
  HWY_ALIGN int16_t values[kPage * kWords];
  const int64_t n_pairs = (page.n_keys + 1) / 2;
  for (int64_t c = 0; c < page.rank; c += kWords) {
    for (int64_t t = 0; t < n_pairs; ++t) {
      const int16_t* from = page.entries + 2 * t * page.stride + c;
      const VW a = hn::LoadU(DW(), from), b = hn::LoadU(DW(), from + page.stride);
      hn::Store(hn::InterleaveLower(a, b), DW(), values + t * 2 * kWords);
      hn::Store(hn::InterleaveUpper(DW(), a, b), DW(), values + t * 2 * kWords + kWords);
    }
    float* out = page.sum + c;
    int64_t h = 0;
    for (; h + kQ <= page.n_heads; h += kQ)
      AddWordsBlock<kQ>(w, h, values, n_pairs, out + h * page.sum_stride, page.sum_stride);
    for (; h < page.n_heads; ++h)
      AddWordsBlock<1>(w, h, values, n_pairs, out + h * page.sum_stride, page.sum_stride);
  }
}

template <int kVecs>
HWY_INLINE void AttendWordsOf(const PageOfWords& page) {
  constexpr int kKeys = (kManyRegisters ? 16 : 8) / kVecs;
  const std::byte* next = page.next;
  int64_t t = 0;
  for (; t + kKeys <= page.n_keys; t += kKeys) ScoreWords<kVecs, kKeys>(page, t, next);
  for (; t < page.n_keys; ++t) ScoreWords<kVecs, 1>(page, t, next);
  HeadWords w;
  for (int j = 0; j < kVecs; ++j) {
    SoftmaxHeads(page, j * kLanes, hn::Load(DF(), page.q_scales + j * kLanes), w.keep);
    WeightsToWords(page, j * kLanes, w.pairs, w.units);
  }
  AddWords(page, w);
}

void AttendWords(const PageOfWords& page) {
  static_assert(kHeads == kLanes || kHeads == 2 * kLanes);
  if constexpr (kHeads > kLanes) {
    if (page.n_heads > kLanes) return AttendWordsOf<2>(page);
  }
  AttendWordsOf<1>(page);
}
#endif

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
#if HWY_ARCH_X86
  k.round_to_words = RoundToWords;
  k.attend_words = AttendWords;
  k.words_interleaved = kWords;
#endif
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
