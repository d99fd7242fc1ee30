#if defined(__x86_64__)
#include "kernels/cpu/matmul_x86.h"

namespace exo::kernels::cpu {
namespace {

struct Kernels {
  MatmulKernel i8_int8, i8_int4, bf16_bf16, bf16_fp8;
};

}  // namespace

MatmulKernel find_matmul_x86(Isa isa, DType activation, WeightFormat format) {
  static constexpr Kernels kAvx2 = {matmul_i8_int8_avx2, matmul_i8_int4_avx2, matmul_bf16_bf16_avx2,
                                    matmul_bf16_fp8_avx2};
  static constexpr Kernels kAvxVnni = {matmul_i8_int8_avxvnni, matmul_i8_int4_avxvnni,
                                       matmul_bf16_bf16_avx2, matmul_bf16_fp8_avx2};
  static constexpr Kernels kAvx512 = {matmul_i8_int8_avx512, matmul_i8_int4_avx512,
                                      matmul_bf16_bf16_avx512, matmul_bf16_fp8_avx512};
  static constexpr Kernels kAvx512Bf16 = {matmul_i8_int8_avx512, matmul_i8_int4_avx512,
                                          matmul_bf16_bf16_avx512bf16, matmul_bf16_fp8_avx512bf16};
  static constexpr Kernels kAmx = {matmul_i8_int8_amx, matmul_i8_int4_amx, matmul_bf16_bf16_amx,
                                   matmul_bf16_fp8_amx};
  const Kernels* k = isa == Isa::avx2         ? &kAvx2
                     : isa == Isa::avxvnni    ? &kAvxVnni
                     : isa == Isa::avx512     ? &kAvx512
                     : isa == Isa::avx512bf16 ? &kAvx512Bf16
                     : isa == Isa::amx        ? &kAmx
                                              : nullptr;
  if (k == nullptr) return nullptr;
  if (activation == DType::i8) return format == WeightFormat::int8 ? k->i8_int8 : k->i8_int4;
  if (activation == DType::bf16) return format == WeightFormat::bf16 ? k->bf16_bf16 : k->bf16_fp8;
  return nullptr;
}

}  // namespace exo::kernels::cpu
#endif
