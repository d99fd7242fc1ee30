/// The hand-written x86 kernels that find_matmul chooses from; contract: MatmulTask. Each is in the
/// file of its activation and instruction set.
#pragma once

#include "kernels/cpu/matmul.h"

namespace exo::kernels::cpu {

/// The kernel of these operands on an x86 instruction set, or null where there is none by hand (f32
/// activations).
MatmulKernel find_matmul_x86(Isa isa, DType activation, WeightFormat format);

void matmul_i8_int8_avx2(const MatmulTask& task);
void matmul_i8_int4_avx2(const MatmulTask& task);
void matmul_bf16_bf16_avx2(const MatmulTask& task);
void matmul_bf16_fp8_avx2(const MatmulTask& task);

void matmul_i8_int8_avxvnni(const MatmulTask& task);
void matmul_i8_int4_avxvnni(const MatmulTask& task);

void matmul_i8_int8_avx512(const MatmulTask& task);
void matmul_i8_int4_avx512(const MatmulTask& task);
void matmul_bf16_bf16_avx512(const MatmulTask& task);
void matmul_bf16_fp8_avx512(const MatmulTask& task);

void matmul_bf16_bf16_avx512bf16(const MatmulTask& task);
void matmul_bf16_fp8_avx512bf16(const MatmulTask& task);

/// From so many rows on a tile product costs less than vector products for each row. Those tasks'
/// wide values (i8) are added beside the tiles, and their epilogue is done, by the next four
/// themselves.
inline constexpr int64_t kAmxInt8Rows = 5, kAmxInt4Rows = 4, kAmxBf16Rows = 3, kAmxFp8Rows = 2;
constexpr int64_t amx_rows(WeightFormat format) {
  return format == WeightFormat::int8   ? kAmxInt8Rows
         : format == WeightFormat::int4 ? kAmxInt4Rows
         : format == WeightFormat::bf16 ? kAmxBf16Rows
                                        : kAmxFp8Rows;
}
void matmul_i8_int8_amx(const MatmulTask& task);
void matmul_i8_int4_amx(const MatmulTask& task);
void matmul_bf16_bf16_amx(const MatmulTask& task);
void matmul_bf16_fp8_amx(const MatmulTask& task);

}  // namespace exo::kernels::cpu
