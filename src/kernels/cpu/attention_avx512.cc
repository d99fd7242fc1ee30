/// Attention to an int8 cache where there are no units for bf16: the rotated columns in f32.
#if defined(__x86_64__)
#include "kernels/cpu/attention_bytes_avx512.h"

namespace exo::kernels::cpu {
namespace {

// A pair of columns of 16 heads with one of a key, bf16.
struct DotWidened {
  using Sum = __m512;
  static constexpr int64_t kLineBytes = 128;
  struct Line {
    __m512 even, odd;
  };
  static Line line_at(const std::byte* p) { return {_mm512_loadu_ps(p), _mm512_loadu_ps(p + 64)}; }
  static __m512 add(__m512 sum, const Line& line, const std::byte* key) {
    int32_t pair;
    std::memcpy(&pair, key, sizeof(pair));
    const __m512i both = _mm512_set1_epi32(pair);
    const __m512i odd = _mm512_and_si512(both, _mm512_set1_epi32(-65536));
    sum = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32(both, 16)), line.even, sum);
    return _mm512_fmadd_ps(_mm512_castsi512_ps(odd), line.odd, sum);
  }
};

struct RopeWidened {
  using Dot = DotWidened;
  // [rope] lines of 16 heads.
  static void query(const float* q, int64_t q_stride, int64_t rope, std::byte* out) {
    for (int64_t c = 0; c < rope; c += 16)
      transpose_words(reinterpret_cast<const std::byte*>(q + c), q_stride * 4, out + c * 64, 64);
  }
};

}  // namespace

AbsorbedAttention absorbed_bytes_avx512() { return absorbed_bytes<RopeWidened>(); }

}  // namespace exo::kernels::cpu
#endif
