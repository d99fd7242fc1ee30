/// Which of Highway's targets this room compiles: AVX2 and AVX3_DL (has_avx512) on x86, NEON on
/// ARM. Included before hwy/foreach_target.h in every vector source. Highway's own dispatch is not
/// used: EXO_ON_ISA names the target, so that a forced instruction set really is the one that runs.
#pragma once

#include "kernels/cpu/isa.h"

#if defined(__x86_64__)
#define HWY_BASELINE_TARGETS HWY_AVX2
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3)
#define HWY_WANT_AVX3_DL
#define EXO_ON_ISA(isa, call) \
  (::exo::kernels::cpu::has_avx512(isa) ? N_AVX3_DL::call : N_AVX2::call)
#elif defined(__aarch64__)
#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128)
#define EXO_ON_ISA(isa, call) (static_cast<void>(isa), N_NEON::call)
#else
#error "kernels/cpu has bodies for x86-64 and AArch64"
#endif

/// Unrolls the next loop completely: arrays of vectors live in registers only then.
#if defined(__clang__)
#define EXO_UNROLL _Pragma("clang loop unroll(full)")
#else
#define EXO_UNROLL _Pragma("GCC unroll 16")
#endif
