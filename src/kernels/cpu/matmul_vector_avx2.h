/// What the 256-bit vectors of matmul_blocks.h have in common, those of AVX2 and of AVX-VNNI: a
/// line is two, a group one panel. Include only from files compiled for one of them (see
/// matmul_layout.h about linkage).
#pragma once

#include "kernels/cpu/matmul_blocks.h"

namespace exo::kernels::cpu {
namespace {  // NOLINT: internal linkage on purpose

inline __m256i load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline __m256i broadcast4(const void* p) {
  int32_t v;
  __builtin_memcpy(&v, p, 4);
  return _mm256_set1_epi32(v);
}

struct Avx2Vector {
  using Int = __m256i;
  static constexpr int kPerLine = 2, kPanels = 1;
  static Int zero() { return _mm256_setzero_si256(); }
  static Int set(int32_t v) { return _mm256_set1_epi32(v); }
  static Int load(const uint8_t* p) { return cpu::load(p); }
  static void store(uint8_t* p, Int v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }

  class Writer {
   public:
    Writer(const PackedMatrix& w, int64_t panel, bool)
        : scales_(w.row_scales + panel * kPanelRows),
          n_(min_of(kPanelRows, w.n_out - panel * kPanelRows)) {}
    /// out (+)= float(sum) * (x_scale * row_scale), the reference's order of rounding.
    inline void write(const uint8_t* sums, float x_scale, bool accumulate, float* out) const {
      alignas(32) float v[16];
      for (int i = 0; i < 2; ++i) {
        const __m256 scale =
            _mm256_mul_ps(_mm256_set1_ps(x_scale), _mm256_loadu_ps(scales_ + i * 8));
        __m256 y = _mm256_mul_ps(_mm256_cvtepi32_ps(cpu::load(sums + i * 32)), scale);
        if (n_ < kPanelRows) {
          _mm256_store_ps(v + i * 8, y);
          continue;
        }
        if (accumulate) y = _mm256_add_ps(_mm256_loadu_ps(out + i * 8), y);
        _mm256_storeu_ps(out + i * 8, y);
      }
      if (n_ == kPanelRows) return;
      for (int64_t i = 0; i < n_; ++i) out[i] = accumulate ? out[i] + v[i] : v[i];
    }

   private:
    const float* scales_;
    int64_t n_;
  };
};

}  // namespace
}  // namespace exo::kernels::cpu
