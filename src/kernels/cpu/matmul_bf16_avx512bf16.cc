/// bf16 activations times bf16 and fp8 weights with AVX512-BF16 (Zen 4 and 5, Cooper Lake; few rows
/// on AMX machines): vdpbf16ps adds the products of two bf16 pairs to an f32 sum, rounds to nearest
/// and takes denormals as zero. fp8 codes are widened to bf16 (exactly), each block's sums scaled
/// after it. A row's value doesn't depend on the other rows among kManyRows and more.
#if defined(__x86_64__)
#include <immintrin.h>

#include "kernels/cpu/matmul_layout.h"
#include "kernels/cpu/matmul_vector_avx512.h"
#include "kernels/cpu/matmul_x86.h"
#include "kernels/cpu/widen_fp8_avx512.h"

namespace exo::kernels::cpu {
namespace {

// From here on in blocks. fp8 is widened there into the L1 cache: 8 rows take two thirds of that
// time in registers.
template <bool kFp8>
constexpr int64_t kManyRows = kFp8 ? 9 : 5;

// Weights are streamed from memory while few rows are computed: a line is asked for so many bytes
// before its use, or fewer (ahead_of_streams).
constexpr int64_t kPrefetch = 2048;

inline __m512bh as_bf16(__m512i v) { return reinterpret_cast<__m512bh>(v); }

inline __m512bh broadcast_pair(const uint8_t* p) {
  int32_t v;
  __builtin_memcpy(&v, p, 4);
  return as_bf16(_mm512_set1_epi32(v));
}

template <int R>
inline __attribute__((always_inline)) void add_line(__m512i line, const uint8_t* x, __m512* acc) {
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
    acc[r] = _mm512_dpbf16_ps(acc[r], as_bf16(line), broadcast_pair(x + r * kLine));
}

// How codes of fp8 are widened: by shifts, lines with unusual codes by tables; and where there are
// many of those, all by tables.
struct ByShifts {
  int64_t n_unusual = 0;

  inline __attribute__((always_inline)) void widen(__m512i line, __m512i* first, __m512i* second) {
    shift_fp8(line, first, second);
    if (__builtin_expect(is_unusual_fp8(line), 0)) {
      const Fp8Tables* tables = &kShiftedFp8Tables;
      asm("" : "+r"(tables));  // not kept in registers
      Fp8Widener(*tables).widen(line, first, second);
      ++n_unusual;
    }
  }
};
struct ByTables {
  const Fp8Widener widener{kShiftedFp8Tables};

  inline __attribute__((always_inline)) void widen(__m512i line, __m512i* first,
                                                   __m512i* second) const {
    widener.widen(line, first, second);
  }
};
// A tile's lines by tables take as long as lines by shifts of which one in this many is unusual.
constexpr int64_t kUnusualLines = 16;

// R rows of one row tile with P panels, `apart` from one another: several streams at once find more
// of the memory's bandwidth than one.
template <int R, int P, bool kFp8>
inline void rows_of_panels(const MatmulTask& task, int64_t panel, int64_t apart, int64_t ahead) {
  // Whatever P: a panel gives the same bits in any company.
  constexpr int kChains = R > 4 ? 1 : 2;
  const PackedMatrix& w = *task.w;
  const RowTile tile = row_tile(*task.x, task.row_begin);
  const int64_t cols = kFp8 ? 64 : 32, n_tiles = ceil_of(w.n_in, cols);
  const int64_t stride = apart * n_tiles * kTile;  // from stream to stream
  const int64_t n_k_blocks = kFp8 ? ceil_of(w.n_in, w.k_block) : 0;
  const uint8_t* line = tiles_of(w) + panel * n_tiles * kTile;
  const uint8_t* x = tile.data;
  __m512 total[P][R], acc[kChains][P][R];
  for (int p = 0; p < P; ++p) {
    for (int r = 0; r < R; ++r) {
      total[p][r] = _mm512_setzero_ps();
      for (int c = 0; c < kChains; ++c) acc[c][p][r] = _mm512_setzero_ps();
    }
  }
  const auto multiply = [&](auto codes) __attribute__((always_inline)) {
#pragma GCC unroll 4
    for (int j = 0; j < 16; ++j, line += kLine) {
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) {
        _mm_prefetch(reinterpret_cast<const char*>(line + p * stride + ahead), _MM_HINT_T0);
        const __m512i v = _mm512_loadu_si512(line + p * stride);
        if constexpr (kFp8) {
          __m512i first, second;
          codes.widen(v, &first, &second);
          add_line<R>(first, x + j * 4, acc[j * 2 % kChains][p]);
          add_line<R>(second, x + tile.step + j * 4, acc[(j * 2 + 1) % kChains][p]);
        } else {
          add_line<R>(v, x + j * 4, acc[j % kChains][p]);
        }
      }
    }
    return codes;
  };
  bool by_shifts = kFp8;
  for (int64_t t = 0; t < n_tiles; ++t) {
    if constexpr (!kFp8) {
      multiply(0);
    } else if (by_shifts) {
      by_shifts = multiply(ByShifts()).n_unusual * kUnusualLines <= P * 16;
    } else {
      multiply(ByTables());
    }
    x += (kFp8 ? 2 : 1) * tile.step;
    const int64_t end = (t + 1) * cols;
    if (t + 1 < n_tiles && (!kFp8 || end % w.k_block != 0)) continue;
    for (int p = 0; p < P; ++p) {
      const __m512 scale = _mm512_set1_ps(
          kFp8 ? w.block_scales[(panel + p * apart) * n_k_blocks + (end - 1) / w.k_block] *
                     (1 << -kShiftedFp8Power)
               : 1.0f);
      for (int r = 0; r < R; ++r) {
        __m512 sum = acc[0][p][r];
        acc[0][p][r] = _mm512_setzero_ps();
        for (int c = 1; c < kChains; ++c) {
          sum = _mm512_add_ps(sum, acc[c][p][r]);
          acc[c][p][r] = _mm512_setzero_ps();
        }
        total[p][r] = _mm512_fmadd_ps(sum, scale, total[p][r]);
      }
    }
  }
  for (int p = 0; p < P; ++p) {
    const int64_t at = panel + p * apart;
    const Vector512::Writer writer(w, at, false);
    for (int r = 0; r < R; ++r)
      writer.write(total[p][r], 1.0f, task.accumulate,
                   task.out + r * task.out_stride + (at - task.panel_begin) * kPanelRows);
  }
}

template <int R, bool kFp8>
void rows_of_tile(const MatmulTask& task) {
  const int64_t panel_bytes = ceil_of(task.w->n_in, kFp8 ? 64 : 32) * kTile;
  // fp8 in eight would not fit the registers.
  constexpr int kStreams = R == 1 && !kFp8 ? 8 : R <= 2 ? 4 : 2;
  const int64_t ahead = ahead_of_streams(kStreams, kPrefetch);
  in_streams<kStreams>(task, panel_bytes, ahead, [&]<int P>(int64_t first, int64_t apart) {
    rows_of_panels<R, P, kFp8>(task, first, apart, ahead);
  });
}

template <bool kFp8, int R = 1>
void few_rows(const MatmulTask& task) {
  if constexpr (R + 1 < kManyRows<kFp8>) {
    if (task.n_rows > R) return few_rows<kFp8, R + 1>(task);
  }
  rows_of_tile<R, kFp8>(task);
}

// -- many rows ------------------------------------------------------------------------------------

struct Pairs {
  using Vector = Vector512;
  static constexpr bool kInteger = false;
  static inline __attribute__((always_inline)) __m512i dot(__m512i sum, __m512i weights,
                                                           __m512i x) {
    return _mm512_castps_si512(
        _mm512_dpbf16_ps(_mm512_castsi512_ps(sum), as_bf16(weights), as_bf16(x)));
  }
};

struct Bf16 : Pairs {
  static constexpr bool kScaled = false;
  static constexpr int64_t kUnpackedTile = 0, kSourceCols = 32, kSourceBytes = kTile,
                           kTilesPerSource = 1;
  static int64_t block_tiles(const PackedMatrix&) { return kBlockTiles; }
};

struct Fp8 : Pairs {
  static constexpr bool kScaled = true;
  static constexpr int64_t kUnpackedTile = kTile, kSourceCols = 64, kSourceBytes = kTile,
                           kTilesPerSource = 2;
  // A block of K tiles must lie in one block of scales.
  static int64_t block_tiles(const PackedMatrix& w) {
    int64_t tiles = kBlockTiles;
    while (w.k_block / 32 % tiles != 0) tiles -= 2;
    return tiles;
  }
  static float scale(const PackedMatrix& w, int64_t panel, int64_t tile) {
    return w.block_scales[panel * ceil_of(w.n_in, w.k_block) + tile * 32 / w.k_block];
  }
  static void unpack(const uint8_t* tile, uint8_t* to) {
    const Fp8Widener widener;
    for (int64_t i = 0; i < kTile; i += kLine) {
      __m512i first, second;
      widener.widen(_mm512_loadu_si512(tile + i), &first, &second);
      _mm512_store_si512(to + i, first);
      _mm512_store_si512(to + kTile + i, second);
    }
  }
};

}  // namespace

void matmul_bf16_bf16_avx512bf16(const MatmulTask& task) {
  if (task.n_rows < kManyRows<false>) return few_rows<false>(task);
  many_rows<Bf16>(task);
}
void matmul_bf16_fp8_avx512bf16(const MatmulTask& task) {
  if (task.n_rows < kManyRows<true>) return few_rows<true>(task);
  many_rows<Fp8>(task);
}

}  // namespace exo::kernels::cpu
#endif
