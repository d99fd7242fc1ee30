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

/// Packs `n_rows` rows of f32 weights [n_rows, n_in] to `format`, appending to `out`; n_rows is a
/// multiple of 16 unless they are the last. format: f32, bf16 (round to nearest even), int8, int4.
/// int8: a scale per row near max|w| / 127, refined for the least squared error. int4: per row and
/// group of 32 columns the signed multiplier m (1 <= |m| <= 15) and q in -8..7 that minimise the
/// squared error under one row scale (docs/tensor_file.md). A row of an integer format that holds a
/// value that isn't finite gets the scale NaN.
void pack_rows_f32(WeightFormat format, std::span<const float> rows, int64_t n_rows, int64_t n_in,
                   PackedPart& out);

/// Packs FP8 rows [n_rows, n_in] without changing a bit. panel_scales: [n_panels, n_k_blocks], with
/// k_block as SourceMatrix::fp8_k_block.
void pack_rows_fp8(std::span<const f8_e4m3> rows, std::span<const float> panel_scales,
                   int64_t n_rows, int64_t n_in, PackedPart& out);

/// How checkpoint matrices become packed ones.
struct PackSpec {
  WeightFormat format = WeightFormat::bf16;
  int64_t k_block = 0;  ///< fp8: columns of a scale block
};

/// What `wanted` comes to for these sources (and up halves, or none), which share an entry: fp8 is
/// kept only if all are FP8, with the widest k_block that all allow; FP8 sources whose scales don't
/// fit the panels become f32 (exactly their values), and others bf16.
PackSpec resolve_spec(WeightFormat wanted, std::span<const SourceMatrix> sources,
                      std::span<const SourceMatrix> ups);

/// Packs a whole source a few panels at a time through `sink`, called with consecutive parts, one
/// at a time, from any thread of the pool (a part is written while the next is packed): peak memory
/// is two parts of about 2 MB. With `up`, the result is the interleaved gate_up matrix of source
/// (gate) and *up. spec: from resolve_spec. A value that isn't finite is an error for the integer
/// formats.
Status pack_matrix(const SourceMatrix& source, const SourceMatrix* up, const PackSpec& spec,
                   ThreadPool& pool, const std::function<Status(const PackedPart&)>& sink);

/// A packed matrix as f32 again [n_out, n_in]: for tests and references.
std::vector<float> unpack_f32(const PackedMatrix& matrix);

}  // namespace exo::weights
