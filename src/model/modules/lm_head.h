/// The final norm and the head, on the rows whose logits are wanted.
#pragma once

#include <span>

#include "model/model.h"
#include "model/modules/tap.h"

namespace exo::model::lm_head {

/// logits[i] = head * norm(hidden[rows[i]]). hidden [n_tokens, hidden_size], logits [n_rows,
/// vocab_size] f32.
Status forward(const LmHeadConfig& config, const TensorView& final_norm, const PackedMatrix& head,
               const TensorView& hidden, std::span<const int32_t> rows, const TensorView& logits,
               ops::OpContext& ctx);
int64_t scratch_bytes(const LmHeadConfig& config, int64_t n_rows, int n_threads);

}  // namespace exo::model::lm_head
