/// Which FP8 matrices keep the checkpoint's own block scales once they are packed. One rule for the
/// plan, which knows config.json alone, and for the converter. Pure; no errors.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>

#include "tensor/packed.h"

namespace exo::weights {

/// Rows [row_begin, row_begin + n_rows) of a stored matrix with `n_cols` columns whose scales cover
/// blocks of block_rows x block_cols, or the transpose of these rows.
struct Fp8Region {
  int64_t block_rows = 0, block_cols = 0;
  int64_t row_begin = 0;
  int64_t n_rows = 0, n_cols = 0;
  bool transposed = false;
};

/// The width of the packed matrix's k blocks (a multiple of 64), such that all rows of each 16-row
/// panel and all columns of each k block share one scale; 0 if there is no such width (the matrix
/// is then packed as f32).
inline int64_t fp8_k_block(const Fp8Region& r) {
  struct Axis {
    int64_t begin, n, block;
    bool in_one_block() const { return begin / block == (begin + n - 1) / block; }
  };
  const Axis rows{r.row_begin, r.n_rows, r.block_rows};
  const Axis cols{0, r.n_cols, r.block_cols};
  if (rows.n <= 0 || cols.n <= 0 || rows.block <= 0 || cols.block <= 0) return 0;
  const Axis& out = r.transposed ? cols : rows;  // rows of the packed matrix
  const Axis& in = r.transposed ? rows : cols;   // its columns

  if (!out.in_one_block()) {
    for (int64_t p = 0; p < out.n; p += kPanelRows) {
      const Axis panel{out.begin + p, std::min(kPanelRows, out.n - p), out.block};
      if (!panel.in_one_block()) return 0;
    }
  }
  if (in.in_one_block()) return align_up(in.n, 64);
  const int64_t to_first_edge = in.block - in.begin % in.block;
  const int64_t width = std::gcd(to_first_edge, in.block);
  return width % 64 == 0 ? width : 0;
}

/// The width for matrices that share an entry (experts, heads, gate and up): 0 if one of them has
/// none.
inline int64_t common_k_block(int64_t a, int64_t b) {
  return a == 0 || b == 0 ? 0 : std::gcd(a, b);
}

}  // namespace exo::weights
