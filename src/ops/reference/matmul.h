/// The scalar meaning of packed operands: what a tile's bytes stand for, and one row's product.
#pragma once

#include <span>

#include "tensor/packed.h"

namespace exo::ops::reference {

/// The 16 x tile_cols codes of tile t of panel p before the row's or block's scale (int4: m * q),
/// exactly as f32. codes: [16, tile_cols(w.format)].
void unpack_tile(const PackedMatrix& w, int64_t panel, int64_t tile, std::span<float> codes);

/// Element k of a packed row before its scale (i8: q).
float row_element(const PackedRows& x, int64_t row, int64_t k);

/// Rows [row_begin, row_begin + n_rows) of x times w: out[r * out_stride + n] (=, or += with
/// accumulate) sum_k x[row_begin + r, k] * w[n, k] for every n < w.n_out, k ascending.
void matmul_rows(const PackedRows& x, int64_t row_begin, int64_t n_rows, const PackedMatrix& w,
                 float* out, int64_t out_stride, bool accumulate = false);

/// Packs one row of n_cols floats as row `row` of `out` (PackRowsArgs).
void pack_row(const float* x, int64_t row, const PackedRows& out);

}  // namespace exo::ops::reference
