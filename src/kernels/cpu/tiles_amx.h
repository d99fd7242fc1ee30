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

/// Eight tiles of 16 lines of 64 bytes. GCC 12 believes that _tile_loadconfig reads only 8 bytes:
/// the barrier keeps the configuration's stores.
[[maybe_unused]] inline void configure_tiles() {
  struct alignas(64) Config {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t column_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } config;
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
