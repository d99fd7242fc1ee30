/// One decoder layer: attention, then a dense MLP or a mixture of experts, each around the residual
/// stream.
#pragma once

#include "model/modules/mla.h"
#include "model/modules/mlp.h"

namespace exo::model::decoder_layer {

struct Args {
  const DecoderLayerConfig& prefill;
  const DecoderLayerConfig& decode;
  const DecoderLayerWeights& weights;
  const ops::LatentPages& pages;
  std::span<const ops::SequenceRows> sequences;
  TensorView cos, sin;  ///< [n_tokens, qk_rope_head_dim / 2] f32
  moe::Forced forced;
  TensorView hidden;  ///< [n_tokens, hidden_size] f32, in and out
};

Status forward(const Args& args, ops::OpContext& ctx);

int64_t scratch_bytes(const DecoderLayerConfig& config, int64_t hidden_size, int64_t n_tokens,
                      int64_t n_absorbed, int n_threads);

}  // namespace exo::model::decoder_layer
