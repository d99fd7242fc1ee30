#if defined(__x86_64__)
#include "kernels/cpu/roofline_loops.h"
#include "kernels/cpu/tiles_amx.h"

namespace exo::kernels::cpu {
namespace {

// Four independent sums: a tile product takes 52 cycles, and one can begin every 16.
template <bool kInteger>
double tile_loop(int64_t n) {
  configure_tiles();
  zero_tiles();
  for (int64_t i = 0; i < n; ++i) {
    if constexpr (kInteger) {
      _tile_dpbssd(0, 4, 5);
      _tile_dpbssd(1, 4, 5);
      _tile_dpbssd(2, 4, 5);
      _tile_dpbssd(3, 4, 5);
    } else {
      _tile_dpbf16ps(0, 4, 5);
      _tile_dpbf16ps(1, 4, 5);
      _tile_dpbf16ps(2, 4, 5);
      _tile_dpbf16ps(3, 4, 5);
    }
  }
  _tile_release();
  return 4.0 * 16 * 16 * (kInteger ? 64 : 32) * 2;
}

}  // namespace

double int8_loop_amx(int64_t n) { return tile_loop<true>(n); }
double bf16_loop_amx(int64_t n) { return tile_loop<false>(n); }

}  // namespace exo::kernels::cpu
#endif
