/// bf16 activations times bf16 and fp8 weights with AMX, few rows with AVX512-BF16. fp8 codes are
/// widened to bf16 (exactly), and each block's f32 sums are scaled after it. The matrix unit rounds
/// to nearest and takes denormals as zero; a row's value doesn't depend on the other rows of its
/// product, as long as they are enough for tiles.
#if defined(__x86_64__)
#include "kernels/cpu/matmul_amx.h"
#include "kernels/cpu/matmul_x86.h"
#include "kernels/cpu/widen_fp8_avx512.h"

namespace exo::kernels::cpu {
namespace {

struct Bf16 {
  static constexpr bool kInteger = false, kUnpacked = false, kKept = false, kScaled = false;
  static constexpr int64_t kSourceCols = 32, kSourceBytes = kTile, kTilesPerSource = 1;
  using Half = NothingToUnpack;
};

struct Fp8 {
  static constexpr bool kInteger = false, kUnpacked = true, kKept = true, kScaled = true;
  static constexpr int64_t kSourceCols = 64, kSourceBytes = kTile, kTilesPerSource = 2;
  static float scale(const PackedMatrix& w, int64_t panel, int64_t block) {
    return w.block_scales[panel * ceil_of(w.n_in, w.k_block) + block];
  }
  // Lines 8 * half .. of a source tile on their way to the same lines of two bf16 tiles.
  struct Half {
    const uint8_t* from;
    uint8_t* to;
    Fp8Widener widener;
    Half(const uint8_t* tile, int half, uint8_t* tiles)
        : from(tile + 8 * half * kLine), to(tiles + 8 * half * kLine) {}
    inline __attribute__((always_inline)) void lines(int begin, int end) const {
#pragma GCC unroll 8
      for (int line = begin; line < end; ++line) {
        __m512i first, second;
        widener.widen(_mm512_loadu_si512(from + line * kLine), &first, &second);
        _mm512_store_si512(to + line * kLine, first);
        _mm512_store_si512(to + kTile + line * kLine, second);
      }
    }
  };
};

}  // namespace

void matmul_bf16_bf16_amx(const MatmulTask& task) {
  if (task.n_rows < kAmxBf16Rows) return matmul_bf16_bf16_avx512bf16(task);
  amx_product<Bf16>(task);
}
void matmul_bf16_fp8_amx(const MatmulTask& task) {
  if (task.n_rows < kAmxFp8Rows) return matmul_bf16_fp8_avx512bf16(task);
  amx_product<Fp8>(task);
}

}  // namespace exo::kernels::cpu
#endif
