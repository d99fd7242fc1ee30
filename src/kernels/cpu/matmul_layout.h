/// Where things lie in a MatmulTask's operands, for the hand-written kernels. Their files are
/// compiled with flags for one instruction set, so everything here has internal linkage: an inline
/// function of another header, compiled with AVX-512, could be the copy that the linker keeps for
/// all (the ctest `kernels_have_no_weak_symbols` checks it). Call no inline function of tensor/ or
/// ops/ from such a file.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/matmul.h"

namespace exo::kernels::cpu {
namespace {  // NOLINT: internal linkage on purpose, see above

constexpr int64_t kTile = 1024;      ///< bytes of 16 lines
constexpr int64_t kInt4Tile = 1088;  ///< multipliers and 16 lines
constexpr int64_t kLine = 64;

[[maybe_unused]] constexpr int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
[[maybe_unused]] inline int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }
[[maybe_unused]] inline int64_t ceil_of(int64_t a, int64_t b) { return (a + b - 1) / b; }

/// Rows of one row tile: row r's line of K tile t is at data + t * step + r * 64.
struct RowTile {
  const uint8_t* data;
  int64_t step;
};

/// Bytes of a packed row: columns padded to 128, of 1 (i8) or 2 bytes (bf16).
[[maybe_unused]] inline int64_t row_bytes_of(const PackedRows& x) {
  return ceil_of(x.n_cols, kKPad) * kKPad * (x.dtype == DType::i8 ? 1 : 2);
}

/// The row tile that begins at `row`, a multiple of 16.
[[maybe_unused]] inline RowTile row_tile(const PackedRows& x, int64_t row) {
  return {reinterpret_cast<const uint8_t*>(x.data) + row * row_bytes_of(x),
          min_of(16, x.n_rows - row) * kLine};
}

/// Groups of 32 columns of a padded row.
[[maybe_unused]] inline int64_t padded_groups(const PackedRows& x) {
  return ceil_of(x.n_cols, kKPad) * (kKPad / kInt4GroupCols);
}

/// The group sums of `row` (i8), one for 32 columns.
[[maybe_unused]] inline const int32_t* group_sums_of(const PackedRows& x, int64_t row) {
  return x.group_sums + row * padded_groups(x);
}

/// The sum of a row (i8).
[[maybe_unused]] inline int32_t row_sum_of(const PackedRows& x, int64_t row) {
  const int32_t* group_sums = group_sums_of(x, row);
  int32_t sum = 0;
  for (int64_t g = 0; g < ceil_of(x.n_cols, kInt4GroupCols); ++g) sum += group_sums[g];
  return sum;
}

/// Bytes of a panel of a format whose tiles have `cols` columns and `bytes` bytes.
[[maybe_unused]] inline int64_t panel_stride(const PackedMatrix& w, int64_t cols, int64_t bytes) {
  return ceil_of(w.n_in, cols) * bytes;
}

[[maybe_unused]] inline const uint8_t* tiles_of(const PackedMatrix& w) {
  return reinterpret_cast<const uint8_t*>(w.tiles);
}

/// Asks for the first n_bytes of each stream of what comes next.
[[maybe_unused]] inline void prefetch_streams(const Panels& next, int64_t n_streams,
                                              int64_t panel_bytes, int64_t n_bytes) {
  if (next.w == nullptr || next.count == 0) return;
  const uint8_t* at = tiles_of(*next.w) + next.begin * panel_bytes;
  const int64_t n = min_of(next.count, n_streams), apart = next.count / n * panel_bytes;
  for (int64_t i = 0; i < n_bytes; i += kLine) {
    for (int64_t s = 0; s < n; ++s) __builtin_prefetch(at + s * apart + i, 0, 2);
  }
}

/// How many bytes before their use those of each of kMost streams are asked for (in_streams): as
/// many as of two, but what is on its way has to fit the L1 cache.
[[maybe_unused]] inline int64_t ahead_of_streams(int64_t most, int64_t of_two) {
  constexpr int64_t kAheadBytes = 8 << 10;  // of all streams
  return reads_in_many_streams() ? min_of(of_two, kAheadBytes / most) : of_two;
}

/// Asks for the row scales of a panel, a line, which are used at its end.
[[maybe_unused]] inline void ask_for_scales(const PackedMatrix& w, int64_t panel) {
  __builtin_prefetch(w.row_scales + panel * kPanelRows);
}

/// A task's panels from `panel` on, n at a time as long as there are so many left, then half as
/// many: each of the n is a run of panels, a stream of bytes. multiply<n>(first, apart) multiplies
/// panel `first`, that `apart` behind it, and so on.
template <int kMost, int n, class Multiply>
inline void panels_in_streams(const MatmulTask& task, int64_t panel, int64_t panel_bytes,
                              int64_t ahead, const Multiply& multiply) {
  const int64_t left = task.panel_begin + task.n_panels - panel, apart = left / n;
  for (int64_t i = 0; i < apart; ++i) {
    if (i + 1 == apart && apart * n == left) prefetch_streams(task.next, kMost, panel_bytes, ahead);
    multiply.template operator()<n>(panel + i, apart);
  }
  if constexpr (n > 1)
    panels_in_streams<kMost, n / 2>(task, panel + apart * n, panel_bytes, ahead, multiply);
}

/// How the kernels of few rows read a task's panels: in kMost streams, or in two where more are not
/// known to be faster. What is asked for `ahead` bytes before its use is what comes.
template <int kMost, class Multiply>
inline void in_streams(const MatmulTask& task, int64_t panel_bytes, int64_t ahead,
                       const Multiply& multiply) {
  if (kMost > 2 && reads_in_many_streams())
    return panels_in_streams<kMost, kMost>(task, task.panel_begin, panel_bytes, ahead, multiply);
  panels_in_streams<2, 2>(task, task.panel_begin, panel_bytes, ahead, multiply);
}

/// A bit for each output of `panel` that exists.
[[maybe_unused]] inline uint16_t output_mask(const PackedMatrix& w, int64_t panel) {
  const int64_t n = w.n_out - panel * kPanelRows;
  return n >= kPanelRows ? 0xFFFF : static_cast<uint16_t>((1u << n) - 1);
}

}  // namespace
}  // namespace exo::kernels::cpu
