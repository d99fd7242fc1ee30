/// A weight matrix of a checkpoint as rows of f32, whatever its stored type: what packers read.
#pragma once

#include <memory>
#include <string>

#include "weights/checkpoint.h"

namespace exo::weights {

/// FP8 block scales as the checkpoint has them: weight[r, c] = e4m3[r, c] * scale[r / block_rows, c
/// / block_cols] (one fp32 product; DeepSeek-V3 README_WEIGHTS.md).
struct BlockScales {
  int64_t block_rows = 0, block_cols = 0;
  int64_t grid_rows = 0, grid_cols = 0;  ///< ceil sizes
  std::vector<float> scales;             ///< [grid_rows, grid_cols]
  float at(int64_t row, int64_t col) const {
    return scales[static_cast<size_t>(row / block_rows * grid_cols + col / block_cols)];
  }
};

/// Rows of a matrix, read on demand. A view may select a row range (one head of kv_b_proj) and be
/// transposed (W_UK for the absorbed form): then rows are the stored columns, and the range stays
/// mapped while the view lives. The checkpoint must outlive its matrices. Reads of
/// one matrix by several threads are safe.
class SourceMatrix {
 public:
  /// The 2-D tensor `name`; its scales are `name + "_scale_inv"` when it is F8_E4M3 (F32 or UE8M0),
  /// with `block_rows` x `block_cols` from quantization_config.weight_block_size.
  static Result<SourceMatrix> open(const Checkpoint& checkpoint, const std::string& name,
                                   int64_t block_rows, int64_t block_cols);
  /// Rows [begin, begin + n) of this one; data_loss if it has fewer.
  Result<SourceMatrix> slice_rows(int64_t begin, int64_t n) const;
  /// Once only; slice first.
  Result<SourceMatrix> transposed() const;

  const std::string& name() const;
  DType dtype() const;  ///< as stored
  int64_t n_rows() const;
  int64_t n_cols() const;
  /// Rows as f32 weights, scales applied. out: [n_rows, n_cols()].
  Status read_f32(int64_t row_begin, int64_t n_rows, std::span<float> out) const;
  /// FP8 only: rows as stored bytes, and the scale of an element.
  Status read_fp8(int64_t row_begin, int64_t n_rows, std::span<f8_e4m3> out) const;
  float scale_at(int64_t row, int64_t col) const;
  /// FP8: the k block's width if panels of 16 rows can keep the checkpoint's own scales
  /// (weights/fp8_blocks.h), else 0.
  int64_t fp8_k_block() const;

 private:
  struct State;
  Status check_range(int64_t row_begin, int64_t n_rows, size_t n_out) const;
  /// Rows of this view as stored bytes [n_rows, n_cols()], to `use`.
  template <typename Use>
  Status with_stored(int64_t row_begin, int64_t n_rows, const Use& use) const;
  std::shared_ptr<const State> state_;
  int64_t row_begin_ = 0, n_rows_ = 0;
  bool transposed_ = false;
};

}  // namespace exo::weights
