/// The feed-forward sublayers: a dense gated MLP (mlp), and a mixture of experts (moe) with its
/// gate. DeepSeek-V2 section 2.2, DeepSeek-V3 section 2.1.2; modeling_deepseek.py, DeepseekV3MLP,
/// MoEGate, DeepseekV3MoE.
#pragma once

#include "model/model.h"
#include "model/modules/tap.h"

namespace exo::model {

namespace mlp {

/// out = down(silu(gate x) * (up x)). x, out [n_tokens, hidden_size] f32.
Status forward(const MlpConfig& config, const MlpWeights& weights, const TensorView& x,
               const TensorView& out, ops::OpContext& ctx);
int64_t scratch_bytes(const MlpConfig& config, int64_t n_tokens, int n_threads);

}  // namespace mlp

namespace moe {

/// Expert choices to use instead of the gate's; empty views: the gate's own.
struct Forced {
  TensorView ids;      ///< [n_tokens, top_k] i32
  TensorView weights;  ///< [n_tokens, top_k] f32
};

/// out = sum of the chosen experts, weighted, + the shared experts. x, out [n_tokens, hidden_size]
/// f32.
Status forward(const MoeConfig& config, const MoeWeights& weights, const TensorView& x,
               const Forced& forced, const TensorView& out, const Tap& tap, ops::OpContext& ctx);
int64_t scratch_bytes(const MoeConfig& config, int64_t n_tokens, int n_threads);

/// Asks the system to read the experts named in ids [n_tokens, top_k] i32 from the disk, without
/// waiting. Those of large batches are asked for up to kMostReadAhead bytes.
inline constexpr int64_t kMostReadAhead = int64_t{1} << 30;
void read_ahead(const MoeWeights& weights, const TensorView& ids);

}  // namespace moe

}  // namespace exo::model
