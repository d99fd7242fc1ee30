/// The instruction sets that this room has bodies for, and which of them this machine runs.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "base/status.h"
#include "ops/ops.h"

namespace exo::kernels::cpu {

/// Ascending capability on one architecture. avxvnni is avx2 with AVX-VNNI (Alder Lake on); avx512
/// means F, BW, DQ, VL, VNNI, VBMI (Ice Lake on); avx512bf16 is that with AVX512-BF16 (Zen 4 on);
/// amx adds AMX-TILE, AMX-INT8 and AMX-BF16 (Sapphire Rapids on).
enum class Isa { reference, avx2, avxvnni, avx512, avx512bf16, amx, neon };

/// Is it avx512, or more than that?
constexpr bool has_avx512(Isa isa) {
  return isa == Isa::avx512 || isa == Isa::avx512bf16 || isa == Isa::amx;
}
/// Has it products of bf16 pairs, with vectors or tiles?
constexpr bool has_bf16(Isa isa) { return isa == Isa::avx512bf16 || isa == Isa::amx; }

std::string_view to_string(Isa isa);
/// "auto" is the best one; an unknown name, or one this machine lacks, is an error that lists those
/// it has.
Result<Isa> parse_isa(std::string_view name);
/// Those this machine (processor, operating system, hypervisor) runs, `reference` first, best last.
/// AMX needs the kernel's permission for tile data (arch_prctl ARCH_REQ_XCOMP_PERM), which is asked
/// for here once.
std::span<const Isa> supported_isas();
/// The features this code looks for and found, for `exo bench`: "avx2 fma f16c avx512f avx512_vnni
/// amx_int8 ...".
std::string describe_features();

/// How many bytes before its use a line of streamed weights is best asked for: a property of the
/// processor, found by measuring (docs/performance.md).
int64_t read_ahead_bytes();
/// Do four or eight streams a thread find more of the memory's bandwidth than two? Likewise.
bool reads_in_many_streams();

/// The operations' bodies on one instruction set. Precondition: isa is in supported_isas().
const ops::OpTable& table(Isa isa);

}  // namespace exo::kernels::cpu
