/// What this machine can do at most, measured: the denominators of `exo bench` and of
/// docs/performance.md. Each limit is the best of several short runs of a loop that does nothing
/// else, all threads at once; about a second in total.
#pragma once

#include "base/status.h"
#include "base/thread_pool.h"
#include "kernels/cpu/isa.h"
#include "tensor/buffer.h"

namespace exo::kernels::cpu {

/// 0 where the instruction set has no such unit.
struct MachineLimits {
  double read_gb_per_s = 0;    ///< 10^9 bytes read a second from memory (256 MiB and more)
  double amx_int8_tops = 0;    ///< 10^12 operations (a multiply-add is two) of TDPBSSD
  double amx_bf16_tflops = 0;  ///< of TDPBF16PS
  double vnni_tops = 0;        ///< of VPDPBUSD on 512 bits (on 256: int8_tops)
  double int8_tops = 0;        ///< the best way of int8 products on this instruction set
  double int4_tops = 0;        ///< the same where weights have 4 bits: more with AVX2 alone
  double bf16_tflops = 0;      ///< the same of bf16 products
  double fp32_gflops = 0;      ///< 10^9 operations of fused multiply-adds
};

/// Precondition: isa is in supported_isas(). `memory` is what is read: empty the first time, kept
/// for the next. Error: no memory to read.
Result<MachineLimits> measure_limits(ThreadPool& pool, Isa isa, Buffer& memory);

}  // namespace exo::kernels::cpu
