/// bf16 activations times bf16 and fp8 weights with AVX2 and FMA: widened to f32, f32 sums.
#if defined(__x86_64__)
#include "kernels/cpu/matmul_bf16_fma.h"
#include "kernels/cpu/matmul_x86.h"

namespace exo::kernels::cpu {
namespace {

struct Avx2 {
  using F = __m256;
  using Pairs = __m256i;
  static constexpr int kLanes = 8, kVectors = 2, kFewRows = 4, kRows = 6, kPanels = 1;
  static constexpr int64_t kPrefetch = 768;  // as in matmul_i8_avx2.cc
  static F zero() { return _mm256_setzero_ps(); }
  static F set(float v) { return _mm256_set1_ps(v); }
  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, F v) { _mm256_storeu_ps(p, v); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F fmadd(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static __m256i load_bytes(const uint8_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  template <bool kOdd>
  static F half(__m256i pairs) {
    return _mm256_castsi256_ps(kOdd ? _mm256_and_si256(pairs, _mm256_set1_epi32(-65536))
                                    : _mm256_slli_epi32(pairs, 16));
  }
  static __m256i load_pairs(const uint8_t* p) { return load_bytes(p); }
  static __m256i broadcast_pair(const uint8_t* p) {
    int32_t v;
    __builtin_memcpy(&v, p, 4);
    return _mm256_set1_epi32(v);
  }
  static void widen_32(const uint8_t* p, float* out) {
    for (int i = 0; i < 4; ++i) {
      const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + i * 16));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i * 8),
                          _mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16));
    }
  }
  static void scale_32(const uint8_t* p, float scale, uint8_t* out) {
    for (int i = 0; i < 2; ++i) {
      const __m256i pairs = load_bytes(p + i * 32);
      const F even = _mm256_mul_ps(half<false>(pairs), set(scale));
      const F odd = _mm256_mul_ps(half<true>(pairs), set(scale));
      const __m256i low = _mm256_srli_epi32(_mm256_castps_si256(even), 16);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i * 32),
                          _mm256_or_si256(low, _mm256_castps_si256(odd)));
    }
  }

  // e4m3 S EEEE MMM to bf16 S 0000EEEE MMM0000: its value times 2^-120, subnormals included, for
  // what is subnormal in one is so in the other. S 1111 111 is a NaN, and would be a number.
  class Fp8 {
   public:
    static constexpr int kExponent = 120;
    void widen(Pairs codes, int i, Pairs* first, Pairs* second) {
      const __m256i zero = _mm256_setzero_si256(), size = _mm256_set1_epi8(127);
      nan_[i] = _mm256_or_si256(nan_[i], _mm256_cmpeq_epi8(_mm256_and_si256(codes, size), size));
      *first = shifted(_mm256_unpacklo_epi8(zero, codes));
      *second = shifted(_mm256_unpackhi_epi8(zero, codes));
    }
    void mark(F* sums) const {
      for (int i = 0; i < 2; ++i) {
        // As the codes are widened: two words of each line for each output.
        const __m256i of_output = _mm256_or_si256(_mm256_unpacklo_epi8(nan_[i], nan_[i]),
                                                  _mm256_unpackhi_epi8(nan_[i], nan_[i]));
        const __m256i finite = _mm256_cmpeq_epi32(of_output, _mm256_setzero_si256());
        const __m256i nan = _mm256_xor_si256(finite, _mm256_set1_epi32(-1));
        sums[i] = _mm256_or_ps(sums[i], _mm256_castsi256_ps(nan));
      }
    }

   private:
    static __m256i shifted(__m256i words) {
      return _mm256_and_si256(_mm256_srai_epi16(words, 4),
                              _mm256_set1_epi16(static_cast<int16_t>(0x87F0)));
    }
    // Of each byte of a line: all ones where a code was a NaN.
    __m256i nan_[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
  };
};

}  // namespace

void matmul_bf16_bf16_avx2(const MatmulTask& task) { fma_product<Avx2, LineBf16>(task); }
void matmul_bf16_fp8_avx2(const MatmulTask& task) { fma_product<Avx2, LineFp8>(task); }

}  // namespace exo::kernels::cpu
#endif
