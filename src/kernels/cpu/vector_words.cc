/// Attention in integers of 16 bits, for x86 without units for bf16: products of words have twice
/// the rate of f32's (vpmaddwd, vpdpwssd). Rows are rounded to codes so small that every sum of
/// products is exact, whatever its order; scores, weights and sums are f32.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cpu/attention_tiles.h"
#include "kernels/cpu/vector_parts.h"

#if defined(__x86_64__)

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/vector_words.cc"
#include "kernels/cpu/highway_targets.h"
//
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/cpu/vector_softmax-inl.h"

HWY_BEFORE_NAMESPACE();
namespace exo::kernels::cpu {
namespace HWY_NAMESPACE {

using DW = hn::Repartition<int16_t, DI>;
using VW = hn::Vec<DW>;
constexpr int kWords = 2 * kLanes;

// The norm of a row of codes. Two rows' product, and each part of it, is at most the product of
// their norms (Cauchy-Schwarz), which is below 2^31 with what rounding adds (0.5 a column).
constexpr float kLargestNorm = 46000.0f;
constexpr float kLargestWord = 32767.0f;
// Codes of weights that are added up: with a value's at most kLargestWord they stay below 2^31.
constexpr float kLargestWeights = 65500.0f;
// Of what a code is worth: weights below it count as 0, for its inverse would leave f32.
constexpr float kSmallestUnit = std::numeric_limits<float>::min();

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

// sum + a[2i] * b[2i] + a[2i + 1] * b[2i + 1]
HWY_INLINE VI AddProducts(VI sum, VW a, VW b) {
#if HWY_TARGET <= HWY_AVX3_DL
  // VNNI, which has_avx512 includes and the flags of Highway 1.0's target don't.
  asm("vpdpwssd %2, %1, %0" : "+v"(sum.raw) : "v"(a.raw), "v"(b.raw));
  return sum;
#else
  VI none = hn::Zero(DI());  // x86 adds all to the first sum
  VI next = hn::ReorderWidenMulAccumulate(DI(), a, b, sum, none);
  asm("" : "+x"(next.raw));  // GCC 12 would begin with all products, more than there are registers
  return next;
#endif
}
HWY_INLINE VW BroadcastPair(const void* p) {
  int32_t pair;
  std::memcpy(&pair, p, sizeof(pair));
  return hn::BitCast(DW(), hn::Set(DI(), pair));
}

// -- heads of one row -----------------------------------------------------------------------------

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
                          hn::Mul(sum, hn::Set(df, 1.0f / kLargestWeights)));
  const VF inverse = hn::IfThenElseZero(hn::Gt(unit, hn::Set(df, kSmallestUnit)),
                                        hn::Div(hn::Set(df, 1.0f), unit));
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

// -- rows of one head -----------------------------------------------------------------------------

// A page of the expanded form, in the memory of its tiles.
struct WordTiles {
  int64_t dim;      // of q and k, a multiple of 32
  int16_t* keys;    // [dim / 2, 64, 2]: pairs of columns
  int16_t* values;  // [32, value, 2]: pairs of keys
  float* k_scales;  // [64], zeros where there is no key
  float* v_scales;  // [64]

  WordTiles(std::byte* tiles, int64_t qk, int64_t value)
      : dim((qk + 31) / 32 * 32),
        keys(reinterpret_cast<int16_t*>(tiles)),
        values(keys + dim * kPage),
        k_scales(reinterpret_cast<float*>(values + value * kPage)),
        v_scales(k_scales + kPage) {}
};

void QueriesToWords(const float* q, int64_t q_stride, int64_t n_rows, int64_t qk, std::byte* out,
                    float* scales) {
  for (int64_t i = 0; i < n_rows; ++i, out += query_row_bytes(qk)) {
    auto* codes = reinterpret_cast<int16_t*>(out);
    scales[i] = RoundToWords(q + i * q_stride, codes, qk);
    std::fill(codes + qk, reinterpret_cast<int16_t*>(out + query_row_bytes(qk)), int16_t{0});
  }
}

// A key's columns from its two parts. Returns whether they are finite.
HWY_INLINE bool KeyToWords(const ExpandedPage& page, int64_t t, const WordTiles& to,
                           int16_t* codes) {
  alignas(64) float row[kMostExpandedColumns];
  std::copy_n(page.k + t * page.k_stride, page.nope, row);
  std::copy_n(page.k_rope + t * page.rope_stride, page.rope, row + page.nope);
  std::fill(row + page.nope + page.rope, row + to.dim, 0.0f);
  to.k_scales[t] = RoundToWords(row, codes, to.dim);
  return !std::isnan(to.k_scales[t]);
}

bool PageToWords(const ExpandedPage& page, std::byte* tiles, std::byte* scratch) {
  const WordTiles to(tiles, page.nope + page.rope, page.value);
  std::fill_n(to.k_scales, 2 * kPage, 0.0f);
  bool finite = true;
  auto* rows = reinterpret_cast<int16_t*>(scratch);  // [64, dim], then [2, value]
  std::fill(rows + page.n_keys * to.dim, rows + kPage * to.dim, int16_t{0});
  for (int64_t t = 0; t < page.n_keys; ++t) finite &= KeyToWords(page, t, to, rows + t * to.dim);
  // 8 x 8 pairs: each line of either side is touched whole while it is in the first-level cache.
  for (int64_t t = 0; t < kPage; t += 8) {
    for (int64_t d = 0; d < to.dim; d += 16) {
      for (int64_t i = 0; i < 64; ++i)
        std::memcpy(to.keys + (d / 2 + i / 8) * 2 * kPage + (t + i % 8) * 2,
                    rows + (t + i % 8) * to.dim + d + i / 8 * 2, 4);
    }
  }
  for (int64_t t = 0; t < kPage; t += 2) {
    std::fill_n(rows, 2 * page.value, int16_t{0});
    for (int64_t i = 0; i < 2 && t + i < page.n_keys; ++i) {
      to.v_scales[t + i] =
          RoundToWords(page.v + (t + i) * page.v_stride, rows + i * page.value, page.value);
      finite &= !std::isnan(to.v_scales[t + i]);
    }
    int16_t* pairs = to.values + t * page.value;
    for (int64_t c = 0; c < page.value; ++c) {
      pairs[2 * c] = rows[c];
      pairs[2 * c + 1] = rows[page.value + c];
    }
  }
  return finite;
}

// sum[i] = the products of row i's n pairs with those lines of pairs, kVecs vectors of each.
template <int kQ, int kVecs>
HWY_INLINE void MultiplyPairs(const int16_t* rows, int64_t row_stride, const int16_t* lines,
                              int64_t line_stride, int64_t n, VI (&sum)[kQ][kVecs]) {
  EXO_UNROLL
  for (int i = 0; i < kQ; ++i) {
    EXO_UNROLL
    for (int j = 0; j < kVecs; ++j) sum[i][j] = hn::Zero(DI());
  }
  for (int64_t t = 0; t < n; ++t, lines += line_stride) {
    VW line[kVecs];
    EXO_UNROLL
    for (int j = 0; j < kVecs; ++j) line[j] = hn::LoadU(DW(), lines + j * kWords);
    EXO_UNROLL
    for (int i = 0; i < kQ; ++i) {
      const VW pair = BroadcastPair(rows + i * row_stride + 2 * t);
      EXO_UNROLL
      for (int j = 0; j < kVecs; ++j) sum[i][j] = AddProducts(sum[i][j], line[j], pair);
    }
  }
}

// Scores of kQ rows with the keys before n_keys, and perhaps a few behind.
template <int kQ>
HWY_INLINE void ScoreRowsInWords(const int16_t* q, int64_t row_words, const float* factors,
                                 const WordTiles& tiles, int64_t n_keys, float* p) {
  const DF df;
  for (int64_t t = 0; t < n_keys; t += kWide * kLanes) {
    VI sum[kQ][kWide];
    MultiplyPairs(q, row_words, tiles.keys + 2 * t, 2 * kPage, tiles.dim / 2, sum);
    EXO_UNROLL
    for (int j = 0; j < kWide; ++j) {
      const VF scale = hn::Load(df, tiles.k_scales + t + j * kLanes);
      EXO_UNROLL
      for (int i = 0; i < kQ; ++i)
        hn::Store(hn::Mul(hn::Mul(hn::ConvertTo(df, sum[i][j]), scale), hn::Set(df, factors[i])),
                  df, p + i * kPage + t + j * kLanes);
    }
  }
}

// A row's weights, times the scales of their values, as codes like WeightsToWords'. Returns what a
// code is worth.
HWY_INLINE float RowWeightsToWords(const float* p, const float* scales, int16_t* codes) {
  const DF df;
  VF w[kPage / kLanes], largest = hn::Zero(df), sum = hn::Zero(df);
  EXO_UNROLL
  for (int j = 0; j < kPage / kLanes; ++j) {
    w[j] = hn::Mul(hn::Load(df, p + j * kLanes), hn::Load(df, scales + j * kLanes));
    largest = hn::Max(largest, w[j]);
    sum = hn::Add(sum, w[j]);
  }
  const float most = hn::GetLane(hn::MaxOfLanes(df, largest)),
              total = hn::GetLane(hn::SumOfLanes(df, sum));
  const float unit = std::max(total * (1.0f / kLargestWeights), most * (1.0f / kLargestWord));
  const VF inverse = hn::Set(df, unit > kSmallestUnit ? 1.0f / unit : 0.0f);
  EXO_UNROLL
  for (int j = 0; j < kPage / kLanes; j += 2)
    hn::Store(NearestWords(hn::Mul(w[j], inverse), hn::Mul(w[j + 1], inverse)), DW(),
              codes + j * kLanes);
  return unit;
}

// What kQ rows add to their sums: kVecs vectors of columns from `values` on.
template <int kQ, int kVecs>
HWY_INLINE void AddRowsBlock(const int16_t* weights, const float* units, const float* keep,
                             const int16_t* values, int64_t value, int64_t n_pairs, float* sums) {
  const DF df;
  VI sum[kQ][kVecs];
  MultiplyPairs(weights, kPage, values, 2 * value, n_pairs, sum);
  EXO_UNROLL
  for (int i = 0; i < kQ; ++i) {
    EXO_UNROLL
    for (int j = 0; j < kVecs; ++j) {
      float* to = sums + i * value + j * kLanes;
      const VF before = hn::Mul(hn::LoadU(df, to), hn::Set(df, keep[i]));
      hn::StoreU(hn::MulAdd(hn::ConvertTo(df, sum[i][j]), hn::Set(df, units[i]), before), df, to);
    }
  }
}

template <int kQ>
HWY_INLINE void RowsOfWords(const ExpandedRows& r, int64_t first, const WordTiles& tiles) {
  HWY_ALIGN float p[kQ * kPage];
  HWY_ALIGN int16_t weights[kQ * kPage];
  float factors[kQ], units[kQ], keep[kQ];
  for (int i = 0; i < kQ; ++i) factors[i] = r.q_scales[first + i] * r.scale;
  const auto n_keys = [&](int64_t i) { return std::min<int64_t>(kPage, r.n_keys + first + i); };
  const int64_t most_keys = n_keys(kQ - 1), row_words = query_row_bytes(r.qk) / 2;
  ScoreRowsInWords<kQ>(reinterpret_cast<const int16_t*>(r.q) + first * row_words, row_words,
                       factors, tiles, most_keys, p);
  for (int i = 0; i < kQ; ++i) {
    keep[i] = SoftmaxPage(p + i * kPage, n_keys(i), r.softmax[first + i]);
    units[i] = RowWeightsToWords(p + i * kPage, tiles.v_scales, weights + i * kPage);
  }
  const int64_t n_pairs = (most_keys + 1) / 2;
  float* sums = r.sums + first * r.value;
  int64_t c = 0;
  for (; c + kWide * kLanes <= r.value; c += kWide * kLanes)
    AddRowsBlock<kQ, kWide>(weights, units, keep, tiles.values + 2 * c, r.value, n_pairs, sums + c);
  for (; c < r.value; c += kLanes)
    AddRowsBlock<kQ, 1>(weights, units, keep, tiles.values + 2 * c, r.value, n_pairs, sums + c);
}

void ExpandedRowsInWords(const ExpandedRows& rows, const std::byte* tiles, std::byte*) {
  const WordTiles t(const_cast<std::byte*>(tiles), rows.qk, rows.value);
  int64_t i = 0;
  for (; i + 4 <= rows.n_rows; i += 4) RowsOfWords<4>(rows, i, t);
  for (; i < rows.n_rows; ++i) RowsOfWords<1>(rows, i, t);
}

constexpr ExpandedAttention kExpandedWords = {
    .queries = QueriesToWords, .page = PageToWords, .rows = ExpandedRowsInWords};

void SetWordKernels(VectorKernels& k) {
  k.round_to_words = RoundToWords;
  k.attend_words = AttendWords;
  k.words_interleaved = kWords;
  k.expanded_words = &kExpandedWords;
}

}  // namespace HWY_NAMESPACE
}  // namespace exo::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace exo::kernels::cpu {

void set_word_kernels(Isa isa, VectorKernels& kernels) { EXO_ON_ISA(isa, SetWordKernels(kernels)); }

}  // namespace exo::kernels::cpu
#endif
#endif
