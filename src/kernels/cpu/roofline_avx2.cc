#if defined(__x86_64__)
#include <immintrin.h>

#include "kernels/cpu/roofline_loops.h"

namespace exo::kernels::cpu {

namespace {

template <int kStreams, int64_t kAhead>
uint64_t read_streams(const std::byte* data, int64_t n_bytes) {
  const int64_t stream_bytes = n_bytes / kStreams;
  __m256i acc[kStreams] = {};
  for (int64_t i = 0; i < stream_bytes; i += 64) {
#pragma GCC unroll 8
    for (int s = 0; s < kStreams; ++s) {
      const std::byte* p = data + s * stream_bytes + i;
      if (kAhead != 0) _mm_prefetch(reinterpret_cast<const char*>(p + kAhead), _MM_HINT_T0);
      const auto* lines = reinterpret_cast<const __m256i*>(p);
      acc[s] = _mm256_or_si256(acc[s], _mm256_loadu_si256(lines));
      acc[s] = _mm256_or_si256(acc[s], _mm256_loadu_si256(lines + 1));
    }
  }
  uint64_t all = 0;
  for (const __m256i& v : acc) {
    alignas(64) uint64_t words[4];
    _mm256_store_si256(reinterpret_cast<__m256i*>(words), v);
    for (uint64_t word : words) all |= word;
  }
  return all;
}

}  // namespace

uint64_t read_avx2(const std::byte* data, int64_t n_bytes, Streams streams) {
  return read_in(streams, [&]<int kStreams, int64_t kAhead> {
    return read_streams<kStreams, kAhead>(data, n_bytes);
  });
}

// n rounds of `body`, whose operands are vectors a and b. In assembly: compilers keep an array of
// sums in memory as soon as it is hidden from them.
#define EXO_ROUNDS(body, n, a, b)                                                                  \
  asm volatile(EXO_ZERO(0) EXO_ZERO(1) EXO_ZERO(2) EXO_ZERO(3) EXO_ZERO(4) EXO_ZERO(5) EXO_ZERO(6) \
                   EXO_ZERO(7) EXO_ZERO(8) EXO_ZERO(9) EXO_ZERO(10)                                \
                       EXO_ZERO(11) "1:\n\t" body "dec %[n]\n\tjnz 1b"                             \
               : [n] "+r"(n)                                                                       \
               : [a] "x"(a), [b] "x"(b)                                                            \
               : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8",     \
                 "xmm9", "xmm10", "xmm11")
#define EXO_ZERO(acc) "vpxor %%xmm" #acc ", %%xmm" #acc ", %%xmm" #acc "\n\t"
#define EXO_FMA(acc) "vfmadd231ps %[b], %[a], %%ymm" #acc "\n\t"
#define EXO_FMAS \
  EXO_FMA(0)     \
  EXO_FMA(1)     \
  EXO_FMA(2)     \
  EXO_FMA(3)     \
  EXO_FMA(4) EXO_FMA(5) EXO_FMA(6) EXO_FMA(7) EXO_FMA(8) EXO_FMA(9) EXO_FMA(10) EXO_FMA(11)
#define EXO_SUM(multiply, add, product, acc)                                         \
  multiply " %[b], %[a], %%ymm" #product "\n\t" add " %%ymm" #product ", %%ymm" #acc \
           ", %%ymm" #acc "\n\t"
#define EXO_SUMS(multiply, add) \
  EXO_SUM(multiply, add, 6, 0)  \
  EXO_SUM(multiply, add, 7, 1)  \
  EXO_SUM(multiply, add, 8, 2)  \
  EXO_SUM(multiply, add, 9, 3) EXO_SUM(multiply, add, 10, 4) EXO_SUM(multiply, add, 11, 5)

double fp32_loop_avx2(int64_t n, const LoopOperands& operands) {
  const __m256 a = _mm256_load_ps(operands.f32[0]), b = _mm256_load_ps(operands.f32[1]);
  EXO_ROUNDS(EXO_FMAS, n, a, b);
  return 12 * 8 * 2;
}

// Bytes widened to words: a multiply-add and an addition for 16 products.
double int8_loop_avx2(int64_t n, const LoopOperands& operands) {
  const auto words = [](const int8_t* p) {
    return _mm256_cvtepi8_epi16(_mm_load_si128(reinterpret_cast<const __m128i*>(p)));
  };
  const __m256i a = words(operands.i8[0]), b = words(operands.i8[1]);
  EXO_ROUNDS(EXO_SUMS("vpmaddwd", "vpaddd"), n, a, b);
  return 6 * 16 * 2;
}

// Four bits times bytes, whose sums are words for a while: the same for 32 products.
double int4_loop_avx2(int64_t n, const LoopOperands& operands) {
  const auto bytes = [](const int8_t* p) {
    return _mm256_load_si256(reinterpret_cast<const __m256i*>(p));
  };
  const __m256i a = _mm256_and_si256(bytes(operands.i8[0]), _mm256_set1_epi8(15));
  const __m256i b = bytes(operands.i8[1]);
  EXO_ROUNDS(EXO_SUMS("vpmaddubsw", "vpaddw"), n, a, b);
  return 6 * 32 * 2;
}

#undef EXO_ROUNDS
#undef EXO_ZERO
#undef EXO_FMA
#undef EXO_FMAS
#undef EXO_SUM
#undef EXO_SUMS

}  // namespace exo::kernels::cpu
#endif
