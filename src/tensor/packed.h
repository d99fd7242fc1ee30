/// Packed operands of the matrix products: one weight layout for every instruction set, and the
/// activations' layout that goes with it. docs/tensor_file.md describes the same bytes for people
/// who read the files.
///
/// WEIGHTS. A matrix [n_out, n_in] is cut into panels of 16 output rows; a panel is a run of tiles
/// along K, tile after tile, panel after panel: tile (p, t) begins at (p * n_tiles_per_panel + t) *
/// tile_bytes. A tile is 16 lines of 64 bytes. Rows and columns beyond the matrix are zero (int4: q
/// = 0, m = 1).
///
///   format  k/tile  line r (0..15), output n (0..15) of the panel
///   f32     16      4 bytes at 4n: w[n][r]
///   bf16    32      4 bytes at 4n: w[n][2r], w[n][2r+1]
///   int8    64      4 bytes at 4n: w[n][4r .. 4r+3]
///   fp8     64      16-byte lane L (0..3): bytes 0..7 are outputs 4L..4L+3, two k each: w[n][2r],
///   w[n][2r+1] (the first
///                   bf16 tile, k 0..31); bytes 8..15 the same outputs' w[n][32+2r], w[n][32+2r+1]
///                   (the second bf16 tile): one interleave of the widened halves within 128-bit
///                   lanes gives two bf16 lines
///   int4    128     4 bytes at 4n: byte i holds q[n][4r+i] in its low nibble and q[n][64+4r+i] in
///   its high nibble,
///                   stored as q + 8 (0..15). Before the 16 lines the tile has one more line of 64
///                   int8 multipliers: byte 16g + n is m of output n for the tile's columns 32g ..
///                   32g+31. tile_bytes = 1088.
///
/// A bf16 tile is the B operand of TDPBF16PS, an int8 tile that of TDPBSSD, and each line a VNNI /
/// sdot operand.
///
/// Scales. int8, int4: row_scales[panel * 16 + n], weight = row_scale * q (int8) or row_scale * m *
/// q (int4); |m * q| <= 127 always, so a whole row is one exact int32 sum. fp8: block_scales[panel
/// * n_k_blocks + b] holds for the panel's 16 rows and columns b * k_block ..: weight = scale *
/// e4m3.
///
/// GATE AND UP of an MLP are one matrix of 2 * ceil(n_inter / 16) panels: gate panel 0, up panel 0,
/// gate panel 1, ... (gate_up == true; n_out is then 2 * align_up(n_inter, 16)).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "tensor/buffer.h"
#include "tensor/dtype.h"

namespace exo {

enum class WeightFormat : uint8_t { f32, bf16, fp8, int8, int4 };

inline constexpr int64_t kPanelRows = 16;      ///< output rows of a panel
inline constexpr int64_t kTileLineBytes = 64;  ///< bytes of a tile's line
inline constexpr int64_t kInt4GroupCols = 32;  ///< columns that share an int4 multiplier
/// Activations are padded with zeros to a multiple of this many columns: every format's tile
/// divides it.
inline constexpr int64_t kKPad = 128;

constexpr std::string_view to_string(WeightFormat f) {
  switch (f) {
    case WeightFormat::f32:
      return "f32";
    case WeightFormat::bf16:
      return "bf16";
    case WeightFormat::fp8:
      return "fp8";
    case WeightFormat::int8:
      return "int8";
    case WeightFormat::int4:
      return "int4";
  }
  return "?";
}
constexpr int64_t tile_cols(WeightFormat f) {
  switch (f) {
    case WeightFormat::f32:
      return 16;
    case WeightFormat::bf16:
      return 32;
    case WeightFormat::fp8:
    case WeightFormat::int8:
      return 64;
    case WeightFormat::int4:
      return 128;
  }
  return 0;
}
constexpr int64_t tile_bytes(WeightFormat f) {
  return kPanelRows * kTileLineBytes + (f == WeightFormat::int4 ? kTileLineBytes : 0);
}
constexpr int64_t n_panels(int64_t n_out) { return ceil_div(n_out, kPanelRows); }
constexpr int64_t panel_bytes(WeightFormat f, int64_t n_in) {
  return ceil_div(n_in, tile_cols(f)) * tile_bytes(f);
}

/// A packed matrix in borrowed memory (a mapped tensor file).
struct PackedMatrix {
  WeightFormat format = WeightFormat::bf16;
  bool gate_up = false;
  int64_t n_out = 0;
  int64_t n_in = 0;
  const std::byte* tiles = nullptr;   ///< n_panels() * panel_bytes()
  const float* row_scales = nullptr;  ///< int8, int4: [n_panels * 16]
  const int32_t* row_sums =
      nullptr;  ///< int8: [n_panels * 16], sum over K of q (for VNNI's unsigned operand)
  const float* block_scales = nullptr;  ///< fp8: [n_panels, n_k_blocks]
  int64_t k_block = 0;                  ///< fp8: columns of a scale block, a multiple of 64

  bool empty() const { return tiles == nullptr; }
  int64_t n_panels() const { return exo::n_panels(n_out); }
  int64_t panel_bytes() const { return exo::panel_bytes(format, n_in); }
  int64_t n_k_blocks() const { return ceil_div(n_in, k_block); }
  int64_t weight_bytes() const { return n_panels() * panel_bytes(); }
  const std::byte* panel(int64_t p) const { return tiles + p * panel_bytes(); }
};

/// A value of a row of i8 activations that is kept beside the int8 ones: x = scale * q, |q| <=
/// 32767.
struct WideValue {
  int32_t column;
  int32_t q;
};
/// The most wide values of a row of n_cols: a five-hundredth, but 4 at least.
constexpr int64_t max_wide(int64_t n_cols) {
  const int64_t n = ceil_div(n_cols, 512);
  return n < 4 ? 4 : n > 512 ? 512 : n;
}

/// Activations ready for a matrix product, in borrowed memory (the forward's arena).
///
/// f32: row-major, row stride n_cols_padded. bf16 and i8: cut into row tiles of 16 rows (the last
/// may have fewer: R = min(16, n_rows - 16 * i)) and K tiles of 64 bytes; row tile i begins at 16 *
/// i * row_bytes() and holds, K tile after K tile, R lines of 64 bytes (so one row alone is simply
/// row-major, and 16 rows are AMX A tiles). n_cols_padded = align_up(n_cols, kKPad); the padding is
/// zero. i8 rows hold 0 at their wide columns (ops/wide_columns.h).
struct PackedRows {
  DType dtype = DType::f32;  ///< f32, bf16 or i8
  int64_t n_rows = 0;
  int64_t n_cols = 0;
  std::byte* data = nullptr;
  float* scales = nullptr;  ///< i8: [n_rows], x = scale * q; round to nearest even, |q| <= 127
  int32_t* group_sums =
      nullptr;  ///< i8: [n_rows, n_cols_padded / 32], sums of q over 32 columns (for int4)
  int32_t* n_wide = nullptr;  ///< i8: [n_rows], wide values of each row
  WideValue* wide = nullptr;  ///< i8: [n_rows, max_wide(n_cols)], by column; n_wide of each are set

  int64_t n_cols_padded() const { return align_up(n_cols, kKPad); }
  int64_t row_bytes() const { return n_cols_padded() * exo::size_bytes(dtype); }
  int64_t data_bytes() const { return n_rows * row_bytes(); }
  WideValue* wide_of(int64_t row) const { return wide + row * max_wide(n_cols); }
  /// bf16, i8: the 64-byte line of `row` in K tile `t`.
  std::byte* line(int64_t row, int64_t t) const {
    const int64_t tile = row / 16, r = row % 16,
                  rows_here = n_rows - tile * 16 < 16 ? n_rows - tile * 16 : 16;
    return data + tile * 16 * row_bytes() + (t * rows_here + r) * 64;
  }
};

}  // namespace exo
