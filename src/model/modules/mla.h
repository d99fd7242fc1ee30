/// Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1; modeling_deepseek.py,
/// DeepseekV3Attention). Both forms share everything up to the latent cache; they part where keys
/// are made:
///   expanded  k = [W_UK c | k_rope], v = W_UV c for every token attended to (a prompt's many rows
///   share them) absorbed  q' = W_UK^T q, attention over the latents c themselves, then W_UV on the
///   result (one row)
#pragma once

#include <span>

#include "model/model.h"
#include "model/modules/tap.h"

namespace exo::model::mla {

struct Args {
  const MlaConfig& prefill;  ///< of this layer: form expanded, w_k = W_UK
  const MlaConfig& decode;   ///< form absorbed, w_k = W_UK^T
  const MlaWeights& weights;
  const ops::LatentPages& pages;
  std::span<const ops::SequenceRows> sequences;
  TensorView cos, sin;  ///< [n_tokens, qk_rope_head_dim / 2] f32
  TensorView hidden;    ///< [n_tokens, hidden_size] f32: the residual stream, in and out
};

/// hidden += o_proj(attention(input_norm(hidden))); stores the tokens' latents.
Status forward(const Args& args, const Tap& tap, ops::OpContext& ctx);

/// Arena bytes of a forward of at most `n_tokens` rows, `n_absorbed` of them in the absorbed form.
int64_t scratch_bytes(const MlaConfig& config, int64_t hidden_size, int64_t n_tokens,
                      int64_t n_absorbed, int n_threads);

}  // namespace exo::model::mla
