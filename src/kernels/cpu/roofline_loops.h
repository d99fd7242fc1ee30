/// The loops behind measure_limits, one file an instruction set. Each does n rounds and returns the
/// operations of one round (a multiply-add is two).
#pragma once

#include <cstddef>
#include <cstdint>

namespace exo::kernels::cpu {

/// Reads n_bytes (a multiple of 1 KiB) once, in 2 or 8 streams, their lines asked for ahead or not:
/// which is quickest depends on the processor (Zen 3 reads a fifth slower when asked), and one
/// stream leaves a tenth of the bandwidth unused. Returns the OR of it all.
enum class Streams { two, eight, two_unasked, eight_unasked };
inline constexpr Streams kAllStreams[] = {Streams::two, Streams::eight, Streams::two_unasked,
                                          Streams::eight_unasked};
namespace {  // NOLINT: internal linkage on purpose (see matmul_layout.h)
/// read.operator()<streams, bytes that are asked for ahead>()
template <class F>
inline uint64_t read_in(Streams streams, F&& read) {
  switch (streams) {
    case Streams::two:
      return read.template operator()<2, 2048>();
    case Streams::eight:
      return read.template operator()<8, 1024>();
    case Streams::two_unasked:
      return read.template operator()<2, 0>();
    case Streams::eight_unasked:
      return read.template operator()<8, 0>();
  }
  return 0;
}
}  // namespace

uint64_t read_avx2(const std::byte* data, int64_t n_bytes, Streams streams);
uint64_t read_avx512(const std::byte* data, int64_t n_bytes, Streams streams);

/// What the loops multiply, of a normal distribution as a model's numbers are. Zeros take less
/// power and are multiplied faster than any model's numbers can be (Emerald Rapids: 1.2 to 1.6
/// times).
struct LoopOperands {
  alignas(64) int8_t i8[2][1024];
  alignas(64) uint16_t bf16[2][512];
  alignas(64) float f32[2][16];
};
/// n > 0 rounds.
using OpsLoop = double (*)(int64_t n, const LoopOperands& operands);

double fp32_loop_avx2(int64_t n, const LoopOperands& operands);
double int8_loop_avx2(int64_t n, const LoopOperands& operands);
double int4_loop_avx2(int64_t n, const LoopOperands& operands);
double int8_loop_avxvnni(int64_t n, const LoopOperands& operands);
double fp32_loop_avx512(int64_t n, const LoopOperands& operands);
double vnni_loop_avx512(int64_t n, const LoopOperands& operands);
double bf16_loop_avx512bf16(int64_t n, const LoopOperands& operands);
double int8_loop_amx(int64_t n, const LoopOperands& operands);
double bf16_loop_amx(int64_t n, const LoopOperands& operands);

}  // namespace exo::kernels::cpu
