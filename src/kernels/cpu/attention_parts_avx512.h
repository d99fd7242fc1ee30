/// Vector pieces of both attentions on AVX-512. Include only from files compiled for it (see
/// matmul_layout.h about linkage).
#pragma once

#include <immintrin.h>

#include <cstring>

#include "kernels/cpu/attention_tiles.h"

namespace exo::kernels::cpu {
namespace {  // NOLINT: internal linkage on purpose

constexpr int64_t kTileBytes = 1024;
constexpr int64_t kPageKeys = 64;
constexpr int64_t kScaleCols = 128;  // ops::kLatentPartCols

// 2^y for y <= 0 or so, within 3e-6; 0 from -288 on, NaN for NaN: 2^n times a polynomial in the
// rest, by Taylor at 0.
inline __m512 exp2_16(__m512 x) {
  const __m512 y = _mm512_max_ps(_mm512_set1_ps(-288.0f), x);
  const __m512 n = _mm512_roundscale_ps(y, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 r = _mm512_sub_ps(y, n);
  __m512 p = _mm512_set1_ps(1.33335581e-3f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(9.61812911e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.55041087e-2f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(2.40226507e-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(6.93147181e-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(p, n);
}
constexpr float kLog2E = 1.44269504f;
inline __m512 exp16(__m512 x) { return exp2_16(_mm512_mul_ps(x, _mm512_set1_ps(kLog2E))); }

inline __m512 load_tail(const float* p, int64_t n) {
  if (n >= 16) return _mm512_loadu_ps(p);
  if (n <= 0) return _mm512_setzero_ps();
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p);
}

// to[j][i] = from[i][j], 16 x 16 words of 32 bits; lines `from_stride` bytes apart.
inline void transpose_words(const std::byte* from, int64_t from_stride, std::byte* to,
                            int64_t to_stride) {
  __m512i a[16], b[16];
  for (int i = 0; i < 16; ++i) a[i] = _mm512_loadu_si512(from + i * from_stride);
  for (int i = 0; i < 16; i += 2) {
    b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
    a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
    a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
    a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
  }
  // a[4q + c] has, in lane L, column 4L + c of the rows 4q .. 4q + 3.
  for (int c = 0; c < 4; ++c) {
    const __m512i low01 = _mm512_shuffle_i32x4(a[c], a[4 + c], 0x44);
    const __m512i high01 = _mm512_shuffle_i32x4(a[c], a[4 + c], 0xEE);
    const __m512i low23 = _mm512_shuffle_i32x4(a[8 + c], a[12 + c], 0x44);
    const __m512i high23 = _mm512_shuffle_i32x4(a[8 + c], a[12 + c], 0xEE);
    _mm512_storeu_si512(to + c * to_stride, _mm512_shuffle_i32x4(low01, low23, 0x88));
    _mm512_storeu_si512(to + (4 + c) * to_stride, _mm512_shuffle_i32x4(low01, low23, 0xDD));
    _mm512_storeu_si512(to + (8 + c) * to_stride, _mm512_shuffle_i32x4(high01, high23, 0x88));
    _mm512_storeu_si512(to + (12 + c) * to_stride, _mm512_shuffle_i32x4(high01, high23, 0xDD));
  }
}

// -- absorbed: lanes are 16 heads of a row -------------------------------------------------------

// The next page's lines, asked for one by one while this one is computed.
struct NextPage {
  const std::byte *at = nullptr, *end = nullptr;
  void ask() {
    if (at >= end) return;
    _mm_prefetch(reinterpret_cast<const char*>(at), _MM_HINT_T1);
    at += 64;
  }
  // Of each 4 KiB the first `bytes`: the L2 streamer brings the rest once it is read in order, but
  // starts afresh in each.
  void ask_head(int64_t bytes) {
    ask();
    if (static_cast<int64_t>(reinterpret_cast<uintptr_t>(at) % 4096) < bytes) return;
    at += 4096 - static_cast<int64_t>(reinterpret_cast<uintptr_t>(at) % 4096);
  }
};
inline NextPage page_at(const AbsorbedPages& task, int64_t i) {
  if (i >= task.n_pages) return {nullptr, nullptr};
  const std::byte* page = task.data + task.numbers[i] * task.page_bytes;
  return {page, page + task.page_bytes};
}

// The sums and the running softmax of 16 heads.
struct AbsorbedState {
  float* sum;      // [16, stride]
  float* softmax;  // [16] pairs: largest, sum
  int64_t stride;

  AbsorbedState(const AbsorbedPages& task, int64_t block)
      : sum(reinterpret_cast<float*>(task.states + block * task.state_bytes)),
        softmax(sum + 16 * task.sum_stride),
        stride(task.sum_stride) {}
};

struct HeadsSoftmax {
  __m512 largest, sum;
};
inline HeadsSoftmax load_softmax(const float* state) {
  const __m512i even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
  const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
  const __m512 first = _mm512_loadu_ps(state), second = _mm512_loadu_ps(state + 16);
  return {_mm512_permutex2var_ps(first, even, second), _mm512_permutex2var_ps(first, odd, second)};
}
inline void store_softmax(const HeadsSoftmax& s, float* state) {
  const __m512i low = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
  _mm512_storeu_ps(state, _mm512_permutex2var_ps(s.largest, low, s.sum));
  _mm512_storeu_ps(state + 16, _mm512_permutex2var_ps(s.largest, high, s.sum));
}

// A page's scores [n_keys, 16] times scale join the softmax, whose sum is brought to the new
// largest score; returns the factor for what was summed before.
inline __m512 add_scores(float* scores, float scale, int64_t n_keys, HeadsSoftmax& s) {
  const __m512 by = _mm512_set1_ps(scale);
  __m512 largest = s.largest;
  for (int64_t t = 0; t < n_keys; ++t) {
    const __m512 score = _mm512_mul_ps(_mm512_loadu_ps(scores + 16 * t), by);
    _mm512_storeu_ps(scores + 16 * t, score);
    largest = _mm512_max_ps(score, largest);
  }
  const __m512 keep = exp16(_mm512_sub_ps(s.largest, largest));
  s = {largest, _mm512_mul_ps(s.sum, keep)};
  return keep;
}

// sums[i] += key i (of 16, key_bytes apart) times the heads' lines: n lines of Dot::kLineBytes, of
// a key 4 bytes each. Keys are reached from every fourth. Every kAskEvery lines one of the next
// page is asked for.
template <class Dot, int kAskEvery>
inline __attribute__((always_inline)) void add_16_keys(const std::byte* keys, int64_t key_bytes,
                                                       const std::byte* lines, int64_t n,
                                                       NextPage& next,
                                                       typename Dot::Sum (&sums)[16]) {
  const std::byte* fourth[4];
  for (int64_t i = 0; i < 4; ++i) fourth[i] = keys + 4 * i * key_bytes;
  const int64_t three = 3 * key_bytes;
  NextPage asked = next;  // in registers
  for (int64_t j = 0; j < n; ++j) {
    const auto line = Dot::line_at(lines + j * Dot::kLineBytes);
    if (j % kAskEvery == 0) asked.ask();
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const std::byte* key = fourth[i];
      sums[4 * i] = Dot::add(sums[4 * i], line, key);
      sums[4 * i + 1] = Dot::add(sums[4 * i + 1], line, key + key_bytes);
      sums[4 * i + 2] = Dot::add(sums[4 * i + 2], line, key + 2 * key_bytes);
      sums[4 * i + 3] = Dot::add(sums[4 * i + 3], line, key + three);
      fourth[i] += 4;
    }
  }
  next = asked;
}

}  // namespace
}  // namespace exo::kernels::cpu
