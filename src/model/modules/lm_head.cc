#include "model/modules/lm_head.h"

#include <algorithm>
#include <vector>

#include "model/modules/scratch.h"

namespace exo::model::lm_head {
namespace {

// The reference's `final_norm` is of all rows, not only of those that have logits.
Status tap_final_norm(const LmHeadConfig& config, const TensorView& final_norm,
                      const TensorView& hidden, ops::OpContext& ctx) {
  const Tap tap(ctx.capture, -1);
  if (!tap.wants("final_norm")) return ok_status();
  std::vector<float> all(static_cast<size_t>(hidden.n_elements()));
  const TensorView out = make_view(all.data(), {hidden.dim(0), hidden.dim(1)});
  EXO_RETURN_IF_ERROR(ops::rms_norm(
      {.x = hidden, .weight = final_norm, .eps = config.final_norm.eps, .out = out}, ctx));
  tap("final_norm", out);
  return ok_status();
}

}  // namespace

Status forward(const LmHeadConfig& config, const TensorView& final_norm, const PackedMatrix& head,
               const TensorView& hidden, std::span<const int32_t> rows, const TensorView& logits,
               ops::OpContext& ctx) {
  EXO_RETURN_IF_ERROR(tap_final_norm(config, final_norm, hidden, ctx));
  if (rows.empty()) return ok_status();
  ArenaScope scope(*ctx.arena);
  const int64_t n = static_cast<int64_t>(rows.size()), hidden_size = hidden.dim(1);
  EXO_ASSIGN_OR_RETURN(const TensorView x, take_tensor<float>({n, hidden_size}, ctx));
  for (int64_t i = 0; i < n; ++i) {
    const float* row = hidden.row<float>(rows[static_cast<size_t>(i)]);
    std::copy(row, row + hidden_size, x.row<float>(i));
  }
  EXO_RETURN_IF_ERROR(
      ops::rms_norm({.x = x, .weight = final_norm, .eps = config.final_norm.eps, .out = x}, ctx));
  EXO_ASSIGN_OR_RETURN(const PackedRows packed, ops::pack(x, config.linear.activation, ctx));
  return ops::linear({.x = packed, .w = &head, .out = logits}, ctx);
}

int64_t scratch_bytes(const LmHeadConfig& config, int64_t n_rows, int n_threads) {
  return tensor_bytes(n_rows * config.linear.n_in) +
         ops::packed_rows_bytes(config.linear.activation, n_rows, config.linear.n_in) +
         ops::linear_scratch_bytes(n_threads);
}

}  // namespace exo::model::lm_head
