#if defined(__x86_64__)
#include "kernels/cpu/roofline_loops.h"
#include "kernels/cpu/tiles_amx.h"

namespace exo::kernels::cpu {
namespace {

// Four independent sums: a tile product takes 52 cycles, and one can begin every 16.
template <bool kInteger>
double tile_loop(int64_t n, const void* a, const void* b) {
  configure_tiles();
  zero_tiles();
  _tile_loadd(6, a, 64);
  _tile_loadd(7, b, 64);
  for (int64_t i = 0; i < n; ++i) {
    if constexpr (kInteger) {
      _tile_dpbssd(0, 6, 7);
      _tile_dpbssd(1, 6, 7);
      _tile_dpbssd(2, 6, 7);
      _tile_dpbssd(3, 6, 7);
    } else {
      _tile_dpbf16ps(0, 6, 7);
      _tile_dpbf16ps(1, 6, 7);
      _tile_dpbf16ps(2, 6, 7);
      _tile_dpbf16ps(3, 6, 7);
    }
  }
  _tile_release();
  return 4.0 * 16 * 16 * (kInteger ? 64 : 32) * 2;
}

}  // namespace

double int8_loop_amx(int64_t n, const LoopOperands& operands) {
  return tile_loop<true>(n, operands.i8[0], operands.i8[1]);
}
double bf16_loop_amx(int64_t n, const LoopOperands& operands) {
  return tile_loop<false>(n, operands.bf16[0], operands.bf16[1]);
}

}  // namespace exo::kernels::cpu
#endif
