/// bf16 activations times bf16 and fp8 weights with AMX, few rows with AVX512-BF16. fp8 codes are
/// widened to bf16 with their block's scale in them, as DeepSeek's own conversion of its
/// checkpoints to bf16 does (fp8_cast_bf16.py), so that sums stay in the tile registers over all of
/// K: scaled after each block they took 1.3 to 1.6 times as long. The weights are rounded once
/// more, by at most 2^-9 of themselves, unless their scale is a power of two; the activations were,
/// too. The matrix unit rounds to nearest and takes denormals as zero; a row's value doesn't depend
/// on the other rows of its product, as long as they are enough for tiles.
#if defined(__x86_64__)
#include "kernels/cpu/matmul_amx.h"
#include "kernels/cpu/matmul_x86.h"
#include "kernels/cpu/widen_fp8_avx512.h"

namespace exo::kernels::cpu {
namespace {

struct Bf16 {
  static constexpr bool kInteger = false, kUnpacked = false, kKept = false;
  static constexpr int64_t kSourceCols = 32, kSourceBytes = kTile, kTilesPerSource = 1;
  using Tables = NoTables;
  using Half = NothingToUnpack;
};

/// The tables' values times `scale`, rounded to bf16.
inline Fp8Tables scaled_tables(float scale) {
  const auto wide = [](const uint8_t* bytes) {  // 16
    return _mm512_cvtepu8_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(bytes)));
  };
  const auto scaled = [&](int code) {  // of 16 codes
    const __m512i low = _mm512_slli_epi32(wide(kFp8Tables.low + code), 16);
    const __m512i high = _mm512_slli_epi32(wide(kFp8Tables.high + code), 24);
    return _mm512_mul_ps(_mm512_castsi512_ps(_mm512_or_si512(low, high)), _mm512_set1_ps(scale));
  };
  const auto store = [](uint8_t* to, __m512i words) {  // their low bytes
    _mm256_store_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi16_epi8(words));
  };
  Fp8Tables t;
  for (int code = 0; code < 128; code += 32) {
    const __m512bh rounded = _mm512_cvtne2ps_pbh(scaled(code + 16), scaled(code));
    const auto words = reinterpret_cast<__m512i>(rounded);
    store(t.low + code, words);
    store(t.high + code, _mm512_srli_epi16(words, 8));
  }
  return t;
}

struct Fp8 {
  static constexpr bool kInteger = false, kUnpacked = true, kKept = true;
  static constexpr int64_t kSourceCols = 64, kSourceBytes = kTile, kTilesPerSource = 2;
  // The codes' values times their block's scale.
  struct Tables {
    Fp8Tables scaled;
    inline __attribute__((always_inline)) void begin(const PackedMatrix& w, int64_t panel,
                                                     int64_t source) {
      const int64_t sources = w.k_block / kSourceCols;
      if (source % sources != 0) return;
      const int64_t n_blocks = ceil_of(w.n_in, w.k_block);
      scaled = scaled_tables(w.block_scales[panel * n_blocks + source / sources]);
    }
  };
  // Lines 8 * half .. of a source tile on their way to the same lines of two bf16 tiles.
  struct Half {
    const uint8_t* from;
    uint8_t* to;
    Fp8Widener widener;
    Half(const uint8_t* tile, int half, uint8_t* tiles, const Tables& tables)
        : from(tile + 8 * half * kLine), to(tiles + 8 * half * kLine), widener(tables.scaled) {}
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
