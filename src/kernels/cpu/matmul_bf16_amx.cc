/// bf16 activations times bf16 and fp8 weights with AMX, few rows with AVX512-BF16. fp8 codes are
/// widened to bf16 (exactly) a block of K at a time, and each block's f32 sums are scaled after it.
/// The matrix unit rounds to nearest and takes denormals as zero; a row's value doesn't depend on
/// the other rows among kAmxRows and more.
#if defined(__x86_64__)
#include "kernels/cpu/matmul_amx.h"
#include "kernels/cpu/matmul_x86.h"
#include "kernels/cpu/widen_fp8_avx512.h"

namespace exo::kernels::cpu {
namespace {

// From this many rows on a tile product costs less than vector products for each row.
constexpr int64_t kAmxRows = 5;

struct Bf16 {
  static constexpr bool kInteger = false, kUnpacked = false, kScaled = false;
  static constexpr int64_t kSourceCols = 32, kSourceBytes = kTile, kTilesPerSource = 1;
  static int64_t steps(const PackedMatrix&) { return kMaxSteps; }
  static const uint8_t* source(const PackedMatrix& w, const Block<Bf16>& block, int64_t panel) {
    return tiles_of(w) + (block.panel + panel) * panel_stride(w, kSourceCols, kSourceBytes) +
           block.tile * kTile;
  }
};

struct Fp8 {
  static constexpr bool kInteger = false, kUnpacked = true, kScaled = true;
  static constexpr int64_t kSourceCols = 64, kSourceBytes = kTile, kTilesPerSource = 2;
  // A block of K tiles must lie in one block of scales.
  static int64_t steps(const PackedMatrix& w) {
    const int64_t in_block = w.k_block / 32;
    for (int64_t steps = kMaxSteps; steps > 2; steps -= 2) {
      if (in_block % steps == 0) return steps;
    }
    return 2;
  }
  static const uint8_t* source(const PackedMatrix& w, const Block<Fp8>& block, int64_t panel) {
    return tiles_of(w) + (block.panel + panel) * panel_stride(w, kSourceCols, kSourceBytes) +
           block.tile / 2 * kTile;
  }
  static float scale(const PackedMatrix& w, const Block<Fp8>& block, int64_t panel) {
    return w.block_scales[(block.panel + panel) * ceil_of(w.n_in, w.k_block) +
                          block.tile * 32 / w.k_block];
  }
  static void unpack_half(const uint8_t* tile, int half, uint8_t* to) {
    const Fp8Widener widener;
    tile += 8 * half * kLine;
    to += 8 * half * kLine;
#pragma GCC unroll 8
    for (int line = 0; line < 8; ++line) {
      __m512i first, second;
      widener.widen(_mm512_loadu_si512(tile + line * kLine), &first, &second);
      _mm512_store_si512(to + line * kLine, first);
      _mm512_store_si512(to + kTile + line * kLine, second);
    }
  }
};

}  // namespace

void matmul_bf16_bf16_amx(const MatmulTask& task) {
  if (task.n_rows < kAmxRows) return matmul_bf16_bf16_avx512bf16(task);
  amx_product<Bf16>(task);
}
void matmul_bf16_fp8_amx(const MatmulTask& task) {
  if (task.n_rows < kAmxRows) return matmul_bf16_fp8_avx512bf16(task);
  amx_product<Fp8>(task);
}

}  // namespace exo::kernels::cpu
#endif
