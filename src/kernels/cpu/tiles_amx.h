/// The tile registers' configuration. Include only from files compiled for AMX (see matmul_layout.h
/// about linkage).
#pragma once

#include <immintrin.h>

#include <cstdint>

#if defined(EXO_EMULATE_AMX)
#include "kernels/cpu/testing/emulated_amx.h"
#endif

namespace exo::kernels::cpu {
namespace {  // NOLINT: internal linkage on purpose

/// Eight tiles of lines of 64 bytes: 16 lines in tile 6, `rows` in the others. A product takes 16
/// cycles with 16 rows, 10 with 8 and 8 with 4 and fewer. GCC 12 believes that _tile_loadconfig
/// reads only 8 bytes: the barrier keeps the configuration's stores.
[[maybe_unused]] inline void configure_tiles(int64_t rows = 16) {
  struct alignas(64) Config {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t column_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {};
  } config;
  for (int i = 0; i < 8; ++i) config.rows[i] = static_cast<uint8_t>(i == 6 ? 16 : rows);
  asm volatile("" : : "r"(&config) : "memory");
  _tile_loadconfig(&config);
}

/// Tiles 0 to 5.
[[maybe_unused]] inline void zero_tiles() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
}

}  // namespace
}  // namespace exo::kernels::cpu
