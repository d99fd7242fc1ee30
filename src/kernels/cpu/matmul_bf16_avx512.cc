/// bf16 activations times bf16 and fp8 weights with AVX-512 without BF16 instructions (Ice Lake):
/// widened to f32, f32 sums.
#if defined(__x86_64__)
#include "kernels/cpu/matmul_bf16_fma.h"
#include "kernels/cpu/matmul_x86.h"
#include "kernels/cpu/widen_fp8_avx512.h"

namespace exo::kernels::cpu {
namespace {

struct Avx512 {
  using F = __m512;
  using Pairs = __m512i;
  static constexpr int kLanes = 16, kVectors = 1, kFewRows = 8, kRows = 12, kPanels = 2;
  static constexpr int64_t kPrefetch = 4096;
  static F zero() { return _mm512_setzero_ps(); }
  static F set(float v) { return _mm512_set1_ps(v); }
  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, F v) { _mm512_storeu_ps(p, v); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F fmadd(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  template <bool kOdd>
  static F half(__m512i pairs) {
    return _mm512_castsi512_ps(kOdd ? _mm512_and_si512(pairs, _mm512_set1_epi32(-65536))
                                    : _mm512_slli_epi32(pairs, 16));
  }
  static __m512i load_pairs(const uint8_t* p) { return _mm512_loadu_si512(p); }
  static __m512i broadcast_pair(const uint8_t* p) {
    int32_t v;
    __builtin_memcpy(&v, p, 4);
    return _mm512_set1_epi32(v);
  }
  static void widen_32(const uint8_t* p, float* out) {
    for (int i = 0; i < 2; ++i) {
      const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + i * 32));
      _mm512_storeu_si512(out + i * 16, _mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16));
    }
  }
  class Fp8 {
   public:
    static constexpr int kExponent = 0;
    void widen(Pairs codes, int, Pairs* first, Pairs* second) const {
      widener_.widen(codes, first, second);
    }
    void mark(F*) const {}  // NaNs are widened to NaNs

   private:
    Fp8Widener widener_;
  };
};

}  // namespace

void matmul_bf16_bf16_avx512(const MatmulTask& task) { fma_product<Avx512, LineBf16>(task); }
void matmul_bf16_fp8_avx512(const MatmulTask& task) { fma_product<Avx512, LineFp8>(task); }

}  // namespace exo::kernels::cpu
#endif
