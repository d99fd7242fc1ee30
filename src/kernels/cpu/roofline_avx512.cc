#if defined(__x86_64__)
#include <immintrin.h>

#include "kernels/cpu/roofline_chains.h"
#include "kernels/cpu/roofline_loops.h"

namespace exo::kernels::cpu {

namespace {

template <int kStreams, int64_t kAhead>
uint64_t read_streams(const std::byte* data, int64_t n_bytes) {
  const int64_t stream_bytes = n_bytes / kStreams;
  __m512i acc[kStreams] = {};
  for (int64_t i = 0; i < stream_bytes; i += 64) {
#pragma GCC unroll 8
    for (int s = 0; s < kStreams; ++s) {
      const std::byte* p = data + s * stream_bytes + i;
      if (kAhead != 0) _mm_prefetch(reinterpret_cast<const char*>(p + kAhead), _MM_HINT_T0);
      acc[s] = _mm512_or_si512(acc[s], _mm512_loadu_si512(p));
    }
  }
  uint64_t all = 0;
  for (const __m512i& v : acc) {
    alignas(64) uint64_t words[8];
    _mm512_store_si512(words, v);
    for (uint64_t word : words) all |= word;
  }
  return all;
}

}  // namespace

uint64_t read_avx512(const std::byte* data, int64_t n_bytes, Streams streams) {
  return read_in(streams, [&]<int kStreams, int64_t kAhead> {
    return read_streams<kStreams, kAhead>(data, n_bytes);
  });
}

double fp32_loop_avx512(int64_t n, const LoopOperands& operands) {
  const __m512 a = _mm512_load_ps(operands.f32[0]), b = _mm512_load_ps(operands.f32[1]);
  EXO_CHAINS("vfmadd231ps", n, a, b);
  return 16 * 16 * 2;
}

double vnni_loop_avx512(int64_t n, const LoopOperands& operands) {
  const __m512i a = _mm512_load_si512(operands.i8[0]), b = _mm512_load_si512(operands.i8[1]);
  EXO_CHAINS("vpdpbusd", n, a, b);
  return 16 * 64 * 2;
}

}  // namespace exo::kernels::cpu
#endif
