#include "model/modules/decoder_layer.h"

#include <algorithm>

#include "model/modules/scratch.h"

namespace exo::model::decoder_layer {

Status forward(const Args& args, ops::OpContext& ctx) {
  const DecoderLayerConfig& c = args.prefill;
  const Tap tap(ctx.capture, c.layer);
  EXO_RETURN_IF_ERROR(mla::forward({.prefill = c.attention,
                                    .decode = args.decode.attention,
                                    .weights = args.weights.attention,
                                    .pages = args.pages,
                                    .sequences = args.sequences,
                                    .cos = args.cos,
                                    .sin = args.sin,
                                    .hidden = args.hidden},
                                   tap, ctx));
  ArenaScope scope(*ctx.arena);
  const int64_t n = args.hidden.dim(0), hidden_size = args.hidden.dim(1);
  EXO_ASSIGN_OR_RETURN(const TensorView normed, take_tensor<float>({n, hidden_size}, ctx));
  EXO_ASSIGN_OR_RETURN(const TensorView out, take_tensor<float>({n, hidden_size}, ctx));
  EXO_RETURN_IF_ERROR(ops::rms_norm({.x = args.hidden,
                                     .weight = args.weights.post_attention_norm,
                                     .eps = c.post_attention_norm.eps,
                                     .out = normed},
                                    ctx));
  tap("post_attention_layernorm", normed);
  if (c.moe) {
    EXO_RETURN_IF_ERROR(moe::forward(*c.moe, args.weights.moe, normed, args.forced, out, tap, ctx));
  } else {
    EXO_RETURN_IF_ERROR(mlp::forward(*c.mlp, args.weights.mlp, normed, out, ctx));
  }
  tap("mlp.out", out);
  EXO_RETURN_IF_ERROR(ops::add({.x = out, .y = args.hidden}, ctx));
  tap("out", args.hidden);
  return ok_status();
}

int64_t scratch_bytes(const DecoderLayerConfig& config, int64_t hidden_size, int64_t n_tokens,
                      int64_t n_absorbed, int n_threads) {
  const int64_t feed_forward = config.moe ? moe::scratch_bytes(*config.moe, n_tokens, n_threads)
                                          : mlp::scratch_bytes(*config.mlp, n_tokens, n_threads);
  return std::max(
      mla::scratch_bytes(config.attention, hidden_size, n_tokens, n_absorbed, n_threads),
      2 * tensor_bytes(n_tokens * hidden_size) + feed_forward);
}

}  // namespace exo::model::decoder_layer
