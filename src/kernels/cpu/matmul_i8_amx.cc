/// i8 activations times int8 and int4 weights with AMX, few rows with VNNI: exact int32 sums, the
/// same bits as every other way. An int4 weight m * q fits a byte, so it is unpacked to int8 tiles.
#if defined(__x86_64__)
#include "kernels/cpu/matmul_amx.h"
#include "kernels/cpu/matmul_x86.h"
#include "kernels/cpu/unpack_int4_avx512.h"

namespace exo::kernels::cpu {
namespace {

struct Int8 {
  static constexpr bool kInteger = true, kUnpacked = false, kKept = false;
  static constexpr int64_t kSourceCols = 64, kSourceBytes = kTile, kTilesPerSource = 1;
  using Tables = NoTables;
  using Half = NothingToUnpack;
};

struct Int4 {
  static constexpr bool kInteger = true, kUnpacked = true, kKept = false;
  static constexpr int64_t kSourceCols = 128, kSourceBytes = kInt4Tile, kTilesPerSource = 2;
  using Tables = NoTables;
  struct Half : Int4Half<false> {
    Half(const uint8_t* tile, int half, uint8_t* to, const Tables& /*tables*/)
        : Int4Half(tile, half, to) {}
  };
};

}  // namespace

void matmul_i8_int8_amx(const MatmulTask& task) {
  if (task.n_rows < kAmxInt8Rows) return matmul_i8_int8_avx512(task);
  amx_product<Int8>(task);
}
void matmul_i8_int4_amx(const MatmulTask& task) {
  if (task.n_rows < kAmxInt4Rows) return matmul_i8_int4_avx512(task);
  amx_product<Int4>(task);
}

}  // namespace exo::kernels::cpu
#endif
