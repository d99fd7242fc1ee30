/// bf16 activations times bf16 and fp8 weights with AVX2 and FMA: widened to f32, f32 sums.
#if defined(__x86_64__)
#include "kernels/cpu/matmul_bf16_fma.h"
#include "kernels/cpu/matmul_x86.h"

namespace exo::kernels::cpu {
namespace {

struct Avx2 {
  using F = __m256;
  static constexpr int kLanes = 8, kVectors = 2, kRegisterRows = 3;
  static F zero() { return _mm256_setzero_ps(); }
  static F set(float v) { return _mm256_set1_ps(v); }
  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, F v) { _mm256_storeu_ps(p, v); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F fmadd(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static __m256i load_bytes(const uint8_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static void split(__m256i pairs, F* even, F* odd) {
    *even = _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16));
    *odd = _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(-65536)));
  }
  static void pair(const uint8_t* p, F* even, F* odd) { split(load_bytes(p), even, odd); }
  static void broadcast_pair(const uint8_t* p, F* even, F* odd) {
    int32_t v;
    __builtin_memcpy(&v, p, 4);
    split(_mm256_set1_epi32(v), even, odd);
  }
  static void widen_32(const uint8_t* p, float* out) {
    for (int i = 0; i < 4; ++i) {
      const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + i * 16));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i * 8),
                          _mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16));
    }
  }
  // e4m3 S EEEE MMM to bf16 S (E + 120) MMM0000 byte by byte; exponent 0 (zero and subnormals,
  // M * 2^-9) from tables, and S.1111.111 to a NaN.
  static void widen(const uint8_t* line, uint8_t* out) {
    const __m256i low_of_subnormal = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 0, -128, -64, 0, 32, 64, 96, 0, 0, 0, 0, 0, 0, 0, 0));
    const __m256i high_of_subnormal = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 59, 59, 59, 60, 60, 60, 60, 0, 0, 0, 0, 0, 0, 0, 0));
    for (int i = 0; i < 2; ++i) {
      const __m256i b = load_bytes(line + i * 32);
      const __m256i size = _mm256_and_si256(b, _mm256_set1_epi8(127));
      const __m256i subnormal = _mm256_cmpgt_epi8(_mm256_set1_epi8(8), size);
      const __m256i nan = _mm256_cmpeq_epi8(size, _mm256_set1_epi8(127));
      const __m256i shifted = _mm256_srli_epi16(b, 4);
      __m256i low = _mm256_and_si256(_mm256_slli_epi16(b, 4), _mm256_set1_epi8(-16));
      __m256i high =
          _mm256_add_epi8(_mm256_and_si256(shifted, _mm256_set1_epi8(7)), _mm256_set1_epi8(60));
      low = _mm256_blendv_epi8(low, _mm256_shuffle_epi8(low_of_subnormal, size), subnormal);
      high = _mm256_blendv_epi8(high, _mm256_shuffle_epi8(high_of_subnormal, size), subnormal);
      high = _mm256_or_si256(high, _mm256_and_si256(nan, _mm256_set1_epi8(127)));
      high = _mm256_or_si256(high, _mm256_and_si256(b, _mm256_set1_epi8(-128)));
      auto* to = reinterpret_cast<__m256i*>(out + i * 32);
      _mm256_store_si256(to, _mm256_unpacklo_epi8(low, high));
      _mm256_store_si256(to + 2, _mm256_unpackhi_epi8(low, high));
    }
  }
};

}  // namespace

void matmul_bf16_bf16_avx2(const MatmulTask& task) { fma_product<Avx2, LineBf16>(task); }
void matmul_bf16_fp8_avx2(const MatmulTask& task) { fma_product<Avx2, LineFp8>(task); }

}  // namespace exo::kernels::cpu
#endif
