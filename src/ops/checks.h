/// Operand checks shared by the operations: every failure is an internal error (a defect of the
/// caller) that names op, operand, expected and got.
#pragma once

#include <initializer_list>
#include <string_view>

#include "base/status.h"
#include "ops/ops.h"
#include "tensor/packed.h"
#include "tensor/tensor_view.h"

namespace exo::ops {

inline constexpr int64_t kAnyDim = -1;

/// A view of this dtype and shape (kAnyDim matches every size), contiguous in its last dimension,
/// on ctx's device, with memory unless it has no elements.
Status check_view(std::string_view op, std::string_view operand, const TensorView& view,
                  DType dtype, std::initializer_list<int64_t> shape, const OpContext& ctx);

/// Packed activations [n_rows, n_cols] of f32, bf16 or i8, with scales and sums where i8 needs
/// them.
Status check_rows(std::string_view op, std::string_view operand, const PackedRows& rows,
                  int64_t n_rows, int64_t n_cols);

/// A packed matrix [n_out, n_in] that may be multiplied with activations of `activation`.
Status check_matrix(std::string_view op, std::string_view operand, const PackedMatrix& matrix,
                    int64_t n_out, int64_t n_in, DType activation);

/// Matrices of one shape and one format, one for each of n.
Status check_matrices(std::string_view op, std::string_view operand,
                      std::span<const PackedMatrix> matrices, int64_t n, int64_t n_out,
                      int64_t n_in, DType activation);

/// Row ranges in order without overlap inside [0, n_rows), pages enough for n_past + n_rows tokens
/// and all of them inside the cache.
Status check_sequences(std::string_view op, std::span<const SequenceRows> sequences,
                       const LatentPages& pages, int64_t n_rows, int64_t kv_lora_rank,
                       int64_t rope_dim);

/// "experts: scratch: needs 4096 bytes, the arena has 1024 left of 8192 ..."
Status scratch_exhausted(std::string_view op, int64_t needed_bytes, const Arena& arena);

}  // namespace exo::ops
