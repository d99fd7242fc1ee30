/// The 512-bit vector of matmul_blocks.h: a line each, 8 rows by two panels. Include only from
/// files compiled for AVX-512 (see matmul_layout.h about linkage).
#pragma once

#include "kernels/cpu/matmul_blocks.h"

namespace exo::kernels::cpu {
namespace {  // NOLINT: internal linkage on purpose

struct Vector512 {
  using Int = __m512i;
  static constexpr int kPerLine = 1, kRows = 8, kPanels = 2;
  static Int zero() { return _mm512_setzero_si512(); }
  static Int set(int32_t v) { return _mm512_set1_epi32(v); }
  static Int load(const uint8_t* p) { return _mm512_loadu_si512(p); }
  static void store(uint8_t* p, Int v) { _mm512_store_si512(p, v); }
  static Int add_128(Int v) { return _mm512_xor_si512(v, _mm512_set1_epi8(-128)); }
  static inline __attribute__((always_inline)) Int dot_bytes(Int sum, Int weights, Int x) {
    return _mm512_dpbusd_epi32(sum, weights, x);
  }
  /// before + part * scale, in f32.
  static Int multiply_add(Int part, float scale, Int before) {
    return _mm512_castps_si512(_mm512_fmadd_ps(_mm512_castsi512_ps(part), _mm512_set1_ps(scale),
                                               _mm512_castsi512_ps(before)));
  }

  /// A panel's sums of one row to its output.
  class Writer {
   public:
    Writer(const PackedMatrix& w, int64_t panel, bool integer)
        : mask_(output_mask(w, panel)), integer_(integer) {
      if (integer) row_scales_ = _mm512_loadu_ps(w.row_scales + panel * kPanelRows);
    }
    inline void write(const uint8_t* sums, float x_scale, bool accumulate, float* out) const {
      write(_mm512_load_ps(sums), x_scale, accumulate, out);
    }
    /// sums: of floats, or the bits of integers. Those become float(sum) * (x_scale * row_scale),
    /// the reference's order of rounding.
    inline void write(__m512 sums, float x_scale, bool accumulate, float* out) const {
      __m512 v = sums;
      if (integer_)
        v = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_castps_si512(v)),
                          _mm512_mul_ps(_mm512_set1_ps(x_scale), row_scales_));
      if (accumulate) v = _mm512_add_ps(_mm512_maskz_loadu_ps(mask_, out), v);
      _mm512_mask_storeu_ps(out, mask_, v);
    }

   private:
    __mmask16 mask_;
    bool integer_;
    __m512 row_scales_ = _mm512_setzero_ps();
  };
};

}  // namespace
}  // namespace exo::kernels::cpu
