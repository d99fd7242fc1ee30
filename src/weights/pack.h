/// Packing: rows of f32 (or of checkpoint FP8) into the tiles of tensor/packed.h, and the
/// quantisers of the integer formats. Pure functions over memory; nothing here reads files.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "base/thread_pool.h"
#include "tensor/packed.h"
#include "weights/source_matrix.h"

namespace exo::weights {

/// A packed matrix that owns its memory: one panel range of a matrix, or all of it.
struct PackedPart {
  std::vector<std::byte> tiles;
  std::vector<float> row_scales;
  std::vector<int32_t> row_sums;
  std::vector<float> block_scales;
};

/// Packs `n_rows` rows (n_rows a multiple of 16 unless they are the last) of f32 weights [n_rows,
/// n_in] to `format`, appending to `out`. format: f32, bf16, int8, int4. int8: scale = max|w| / 127
/// refined for the least squared error. int4: per row and group of 32 columns the signed multiplier
/// m (1 <= |m| <= 15) and q in -8..7 that minimise the squared error under one row scale
/// (docs/tensor_file.md).
void pack_rows_f32(WeightFormat format, std::span<const float> rows, int64_t n_rows, int64_t n_in,
                   PackedPart& out);

/// Packs FP8 rows without changing a bit; k_block as SourceMatrix::fp8_k_block.
void pack_rows_fp8(std::span<const f8_e4m3> rows, std::span<const float> panel_scales,
                   int64_t n_rows, int64_t n_in, PackedPart& out);

/// How a checkpoint matrix becomes a packed one.
struct PackSpec {
  WeightFormat format =
      WeightFormat::bf16;  ///< fp8 only from FP8 sources; f32 is used where fp8's scales don't fit
};

/// Packs a whole source a few panels at a time through `sink` (called with consecutive parts): peak
/// memory is a few hundred rows. With `up`, the result is the interleaved gate_up matrix of source
/// (gate) and *up.
Status pack_matrix(const SourceMatrix& source, const SourceMatrix* up, const PackSpec& spec,
                   ThreadPool& pool, const std::function<Status(const PackedPart&)>& sink);

/// A packed matrix as f32 again [n_out, n_in]: for tests and references.
std::vector<float> unpack_f32(const PackedMatrix& matrix);

}  // namespace exo::weights
