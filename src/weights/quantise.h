/// The searches behind the integer formats: row scales and group multipliers of the least squared
/// error (docs/tensor_file.md has the mathematics and the measured figures). One body for all
/// instruction sets (Highway), a lane for each row, no fused multiply-adds: a cache has the same
/// bytes whatever machine made it. Owner: weights/pack.cc.
#pragma once

#include <cstdint>

namespace exo::weights {

/// A panel's 16 rows side by side: w [n_k, 16] f32, finite, |w| <= 2, 64-byte aligned. A row of
/// zeros gets scale 0.

/// weight = scale * q, |q| <= 127. scales: [16]; q: [n_k, 16].
void quantise_panel_int8(const float* w, int64_t n_k, float* scales, int8_t* q);

/// weight = scale * m * q, 1 <= |m| <= 15, q in -8..7. n_k: a multiple of 32. scales: [16]; m:
/// [n_k / 32, 16]; q: [n_k, 16].
void quantise_panel_int4(const float* w, int64_t n_k, float* scales, int8_t* m, int8_t* q);

}  // namespace exo::weights
