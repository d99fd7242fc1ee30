/// i8 activations times int8 and int4 weights with AVX2: exact int32 sums, the same bits as every
/// other way. vpmaddubsw saturates at words, so int8 weights are widened to words first; int4's q
/// (0..15) times a byte can't reach that, and even a group's eight lines fit: 8 * 2 * 15 * 127 =
/// 30480.
#if defined(__x86_64__)
#include <immintrin.h>

#include "kernels/cpu/matmul_layout.h"
#include "kernels/cpu/matmul_x86.h"

namespace exo::kernels::cpu {
namespace {

constexpr int64_t kPrefetch = 4096;  // bytes that weights are asked for ahead of their use
constexpr int kMaxRows = 4;

inline __m256i load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

// out (+)= float(sum) * (x_scale * row_scale), the reference's order of rounding.
inline void write_sums(const __m256i* sums, const MatmulTask& task, int64_t row, int64_t panel) {
  alignas(32) float v[16];
  const __m256 x_scale = _mm256_set1_ps(task.x->scales[row]);
  for (int i = 0; i < 2; ++i) {
    const __m256 scale =
        _mm256_mul_ps(x_scale, _mm256_loadu_ps(task.w->row_scales + panel * kPanelRows + i * 8));
    _mm256_store_ps(v + i * 8, _mm256_mul_ps(_mm256_cvtepi32_ps(sums[i]), scale));
  }
  const int64_t n = min_of(kPanelRows, task.w->n_out - panel * kPanelRows);
  float* out =
      task.out + (row - task.row_begin) * task.out_stride + (panel - task.panel_begin) * kPanelRows;
  for (int64_t i = 0; i < n; ++i) out[i] = task.accumulate ? out[i] + v[i] : v[i];
}

// R rows with one panel of int8. Each 16 bytes of a line are 4 outputs' 4 columns; acc[r][i] holds
// two half sums of each of outputs 4i .. 4i+3.
template <int R>
inline void int8_panel(const int16_t* x, int64_t x_stride, const uint8_t* w, int64_t n_tiles,
                       __m256i (*sums)[2]) {
  for (int pair = 0; pair < 2; ++pair) {  // 8 outputs at a time: their sums stay in registers
    __m256i acc[R][2];
    for (int r = 0; r < R; ++r) acc[r][0] = acc[r][1] = _mm256_setzero_si256();
    for (int64_t t = 0; t < n_tiles; ++t) {
      for (int line = 0; line < 16; ++line) {
        const uint8_t* at = w + t * kTile + line * kLine + pair * 32;
        if (pair == 0) _mm_prefetch(reinterpret_cast<const char*>(at + kPrefetch), _MM_HINT_T0);
        const __m256i a =
            _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
        const __m256i b =
            _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at + 16)));
        for (int r = 0; r < R; ++r) {
          int64_t four;
          __builtin_memcpy(&four, x + r * x_stride + t * 64 + line * 4, 8);
          const __m256i v = _mm256_set1_epi64x(four);
          acc[r][0] = _mm256_add_epi32(acc[r][0], _mm256_madd_epi16(a, v));
          acc[r][1] = _mm256_add_epi32(acc[r][1], _mm256_madd_epi16(b, v));
        }
      }
    }
    for (int r = 0; r < R; ++r) {
      // hadd: a01 a23 b01 b23 of each lane, lanes hold outputs (0, 1) and (2, 3).
      const __m256i s = _mm256_hadd_epi32(acc[r][0], acc[r][1]);
      sums[r][pair] = _mm256_permute4x64_epi64(s, 0xD8);
    }
  }
}

// R rows with one panel of int4: words of group sums of q * x, less 8 * the activations' sum, times
// the multiplier. offsets: -8 * group sum as words, [R][n_groups].
template <int R>
inline void int4_panel(const uint8_t* x, int64_t step, const uint8_t* w, int64_t n_tiles,
                       const int16_t* offsets, int64_t n_groups, __m256i (*sums)[2]) {
  const __m256i low = _mm256_set1_epi8(15);
  for (int r = 0; r < R; ++r) sums[r][0] = sums[r][1] = _mm256_setzero_si256();
  for (int64_t t = 0; t < n_tiles; ++t, w += kInt4Tile, x += 2 * step, offsets += 4) {
    for (int part = 0; part < 4; ++part) {  // (lines 0..7 or 8..15, outputs 0..7 or 8..15)
      const int half = part / 2, side = part % 2;
      __m256i acc[R][2];
      for (int r = 0; r < R; ++r) {
        for (int g = 0; g < 2; ++g)
          acc[r][g] =
              _mm256_set1_epi32(static_cast<uint16_t>(offsets[r * n_groups + half + 2 * g]));
      }
      for (int i = 0; i < 8; ++i) {
        const int line = half * 8 + i;
        const uint8_t* at = w + (line + 1) * kLine + side * 32;
        if (side == 0) _mm_prefetch(reinterpret_cast<const char*>(at + kPrefetch), _MM_HINT_T0);
        const __m256i q = load(at);
        const __m256i qa = _mm256_and_si256(q, low);
        const __m256i qb = _mm256_and_si256(_mm256_srli_epi16(q, 4), low);
        for (int r = 0; r < R; ++r) {
          int32_t a, b;
          __builtin_memcpy(&a, x + r * kLine + line * 4, 4);
          __builtin_memcpy(&b, x + step + r * kLine + line * 4, 4);
          acc[r][0] = _mm256_add_epi16(acc[r][0], _mm256_maddubs_epi16(qa, _mm256_set1_epi32(a)));
          acc[r][1] = _mm256_add_epi16(acc[r][1], _mm256_maddubs_epi16(qb, _mm256_set1_epi32(b)));
        }
      }
      for (int g = 0; g < 2; ++g) {
        // Multipliers as two equal words of each output.
        const __m128i bytes =
            _mm_loadl_epi64(reinterpret_cast<const __m128i*>(w + (half + 2 * g) * 16 + side * 8));
        const __m256i m = _mm256_cvtepi8_epi16(_mm_unpacklo_epi8(bytes, bytes));
        for (int r = 0; r < R; ++r)
          sums[r][side] = _mm256_add_epi32(sums[r][side], _mm256_madd_epi16(acc[r][g], m));
      }
    }
  }
}

// R rows of one row tile with all panels of the task.
template <int R>
void int8_rows(const MatmulTask& task, int64_t row) {
  const PackedMatrix& w = *task.w;
  const int64_t in_tile = row % 16, n_tiles = ceil_of(w.n_in, 64), x_stride = n_tiles * 64;
  const RowTile tile = row_tile(*task.x, row - in_tile);
  // The rows as words: up to 262,144 / R columns fit the scratch.
  auto* x = reinterpret_cast<int16_t*>(task.scratch);
  for (int r = 0; r < R; ++r) {
    for (int64_t t = 0; t < n_tiles; ++t) {
      const uint8_t* line = tile.data + t * tile.step + (in_tile + r) * kLine;
      for (int i = 0; i < 4; ++i)
        _mm256_storeu_si256(
            reinterpret_cast<__m256i*>(x + r * x_stride + t * 64 + i * 16),
            _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(line + i * 16))));
    }
  }
  for (int64_t p = task.panel_begin; p < task.panel_begin + task.n_panels; ++p) {
    __m256i sums[R][2];
    int8_panel<R>(x, x_stride, tiles_of(w) + p * n_tiles * kTile, n_tiles, sums);
    for (int r = 0; r < R; ++r) write_sums(sums[r], task, row + r, p);
  }
}

template <int R>
void int4_rows(const MatmulTask& task, int64_t row) {
  const PackedMatrix& w = *task.w;
  const int64_t in_tile = row % 16, n_tiles = ceil_of(w.n_in, 128), n_groups = n_tiles * 4;
  const RowTile tile = row_tile(*task.x, row - in_tile);
  auto* offsets = reinterpret_cast<int16_t*>(task.scratch);
  for (int r = 0; r < R; ++r) {
    const int32_t* group_sums = group_sums_of(*task.x, row + r);
    for (int64_t g = 0; g < n_groups; ++g)
      offsets[r * n_groups + g] = static_cast<int16_t>(-8 * group_sums[g]);
  }
  for (int64_t p = task.panel_begin; p < task.panel_begin + task.n_panels; ++p) {
    __m256i sums[R][2];
    int4_panel<R>(tile.data + in_tile * kLine, tile.step, tiles_of(w) + p * n_tiles * kInt4Tile,
                  n_tiles, offsets, n_groups, sums);
    for (int r = 0; r < R; ++r) write_sums(sums[r], task, row + r, p);
  }
}

using RowsKernel = void (*)(const MatmulTask&, int64_t);

inline void by_rows(const MatmulTask& task, const RowsKernel (&kernels)[kMaxRows]) {
  for (int64_t r = 0; r < task.n_rows; r += kMaxRows)
    kernels[min_of(kMaxRows, task.n_rows - r) - 1](task, task.row_begin + r);
}

}  // namespace

void matmul_i8_int8_avx2(const MatmulTask& task) {
  static constexpr RowsKernel kRows[kMaxRows] = {int8_rows<1>, int8_rows<2>, int8_rows<3>,
                                                 int8_rows<4>};
  by_rows(task, kRows);
}
void matmul_i8_int4_avx2(const MatmulTask& task) {
  static constexpr RowsKernel kRows[kMaxRows] = {int4_rows<1>, int4_rows<2>, int4_rows<3>,
                                                 int4_rows<4>};
  by_rows(task, kRows);
}

}  // namespace exo::kernels::cpu
#endif
