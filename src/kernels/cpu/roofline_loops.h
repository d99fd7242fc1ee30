/// The loops behind measure_limits, one file an instruction set. Each does n rounds and returns the
/// operations of one round (a multiply-add is two).
#pragma once

#include <cstdint>

namespace exo::kernels::cpu {

double fp32_loop_avx2(int64_t n);
double int8_loop_avx2(int64_t n);
double fp32_loop_avx512(int64_t n);
double vnni_loop_avx512(int64_t n);
double int8_loop_amx(int64_t n);
double bf16_loop_amx(int64_t n);

}  // namespace exo::kernels::cpu
