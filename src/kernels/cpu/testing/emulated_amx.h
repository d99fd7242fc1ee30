/// AMX tiles in software, under the names of the intrinsics: with EXO_EMULATE_AMX the kernels'
/// tests run the bodies of Isa::amx on any machine with AVX512-BF16. Values are those of the units
/// (TDPBF16PS rounds as VDPBF16PS does); speed is not. All lines have 64 bytes, as
/// configure_tiles() has it.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stream_loadd
#undef _tile_stored
#undef _tile_dpbssd
#undef _tile_dpbf16ps

namespace exo::kernels::cpu {
namespace {  // NOLINT: internal linkage on purpose (matmul_layout.h)

struct EmulatedTile {
  alignas(64) uint8_t bytes[16][64];
  int n_rows;
};

[[maybe_unused]] inline EmulatedTile& emulated_tile(int i) {
  static thread_local EmulatedTile tiles[8];
  return tiles[i];
}

// A configuration's rows lie at byte 48.
[[maybe_unused]] inline void emulated_config(const void* config) {
  for (int i = 0; i < 8; ++i) emulated_tile(i).n_rows = static_cast<const uint8_t*>(config)[48 + i];
}

[[maybe_unused]] inline void emulated_load(int i, const void* from, int64_t stride) {
  for (int64_t r = 0; r < emulated_tile(i).n_rows; ++r)
    std::memcpy(emulated_tile(i).bytes[r], static_cast<const uint8_t*>(from) + r * stride, 64);
}

[[maybe_unused]] inline void emulated_store(int i, void* to, int64_t stride) {
  for (int64_t r = 0; r < emulated_tile(i).n_rows; ++r)
    std::memcpy(static_cast<uint8_t*>(to) + r * stride, emulated_tile(i).bytes[r], 64);
}

// sums[row] += sum over k of row's 4 bytes at k, signed, times line k of `right`, signed.
[[maybe_unused]] inline void emulated_dpbssd(int sums, int left, int right) {
  const EmulatedTile &a = emulated_tile(left), &b = emulated_tile(right);
  for (int row = 0; row < emulated_tile(sums).n_rows; ++row) {
    int32_t sum[16];
    std::memcpy(sum, emulated_tile(sums).bytes[row], 64);
    for (int k = 0; k < 64; ++k) {
      const int v = static_cast<int8_t>(a.bytes[row][k]);
      for (int n = 0; n < 16; ++n) sum[n] += v * static_cast<int8_t>(b.bytes[k / 4][4 * n + k % 4]);
    }
    std::memcpy(emulated_tile(sums).bytes[row], sum, 64);
  }
}

[[maybe_unused]] inline void emulated_dpbf16ps(int sums, int left, int right) {
  for (int row = 0; row < emulated_tile(sums).n_rows; ++row) {
    uint8_t* to = emulated_tile(sums).bytes[row];
    __m512 sum = _mm512_load_ps(to);
    for (int k = 0; k < 16; ++k) {
      int32_t pair;
      std::memcpy(&pair, emulated_tile(left).bytes[row] + 4 * k, 4);
      sum = _mm512_dpbf16_ps(
          sum, reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair)),
          reinterpret_cast<__m512bh>(_mm512_load_si512(emulated_tile(right).bytes[k])));
    }
    _mm512_store_ps(to, sum);
  }
}

}  // namespace
}  // namespace exo::kernels::cpu

// NOLINTBEGIN(cppcoreguidelines-macro-usage): they stand for macros of the same names
#define _tile_loadconfig(config) exo::kernels::cpu::emulated_config(config)
#define _tile_release() static_cast<void>(0)
#define _tile_zero(i) std::memset(exo::kernels::cpu::emulated_tile(i).bytes, 0, 1024)
#define _tile_loadd(i, from, stride) exo::kernels::cpu::emulated_load(i, from, stride)
#define _tile_stream_loadd(i, from, stride) exo::kernels::cpu::emulated_load(i, from, stride)
#define _tile_stored(i, to, stride) exo::kernels::cpu::emulated_store(i, to, stride)
#define _tile_dpbssd(sums, left, right) exo::kernels::cpu::emulated_dpbssd(sums, left, right)
#define _tile_dpbf16ps(sums, left, right) exo::kernels::cpu::emulated_dpbf16ps(sums, left, right)
// NOLINTEND(cppcoreguidelines-macro-usage)
