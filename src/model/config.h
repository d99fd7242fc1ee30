/// HfConfig: a checkpoint's config.json as typed fields. Every branch of the model is driven by
/// these fields, never by a model's name. Names are the checkpoint's own.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/status.h"
#include "ops/ops.h"
#include "tensor/dtype.h"

namespace exo::model {

/// YaRN (arXiv 2309.00071) as DeepSeek uses it: DeepSeek-V3 inference/model.py,
/// precompute_freqs_cis.
struct YarnConfig {
  double factor = 1;
  int64_t original_max_position_embeddings = 4096;
  double beta_fast = 32;
  double beta_slow = 1;
  double mscale = 1;
  double mscale_all_dim = 0;
};

struct HfConfig {
  std::string model_type;
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;      ///< dense MLPs
  int64_t moe_intermediate_size = 0;  ///< one routed expert; shared: n_shared_experts times this
  int64_t num_hidden_layers = 0;
  int64_t num_nextn_predict_layers = 0;  ///< MTP layers, stored as layers num_hidden_layers ...
  int64_t num_attention_heads = 0;
  int64_t q_lora_rank = 0;  ///< 0: one q_proj
  int64_t kv_lora_rank = 0;
  int64_t qk_nope_head_dim = 0;
  int64_t qk_rope_head_dim = 0;
  int64_t v_head_dim = 0;
  int64_t n_shared_experts = 0;
  int64_t first_k_dense_replace = 0;
  int64_t moe_layer_freq = 1;
  ops::RouterConfig router;  ///< router.n_experts is n_routed_experts; 0: every layer is dense
  double rms_norm_eps = 1e-6;
  double rope_theta = 10000;
  std::optional<YarnConfig> yarn;
  int64_t max_position_embeddings = 0;
  bool tie_word_embeddings = false;
  int64_t fp8_block_rows = 0;  ///< quantization_config.weight_block_size; 0: not an FP8 checkpoint
  int64_t fp8_block_cols = 0;
  DType torch_dtype = DType::bf16;  ///< what unquantised tensors are stored as: bf16, f16 or f32
  int32_t bos_token_id = -1;        ///< -1: none
  std::vector<int32_t> eos_token_ids;

  int64_t qk_head_dim() const { return qk_nope_head_dim + qk_rope_head_dim; }
  int64_t shared_intermediate_size() const { return n_shared_experts * moe_intermediate_size; }
  /// Is layer `i` (MTP layers included) a mixture of experts? (modeling_deepseek.py,
  /// DeepseekV3DecoderLayer)
  bool is_moe_layer(int64_t i) const {
    return router.n_experts > 0 && i >= first_k_dense_replace && i % moe_layer_freq == 0;
  }
  /// Parameters as DeepSeek counts them: 671,026,419,200 for V3, 684,489,845,504 with the MTP layer
  /// and its copies of embedding and head.
  int64_t n_parameters(bool with_mtp) const;
  /// Parameters that one token touches (top_k experts), without the embedding table.
  int64_t n_active_parameters() const;
};

/// Parses and checks config.json: ranges, and what can't be combined. V3.2, V4 and other known
/// relatives are recognised and refused in one sentence; an unknown model_type lists the known
/// ones.
Result<HfConfig> parse_config(const Json& json, const std::string& where);

/// The same fields under config.json's own names: parse_config reads it back to an equal HfConfig.
OrderedJson config_to_json(const HfConfig& config);

/// Rotary frequencies after YaRN, and the two factors that go with it.
struct Rope {
  std::vector<float> inv_freq;  ///< [qk_rope_head_dim / 2]
  float cos_sin_scale = 1;      ///< m(mscale) / m(mscale_all_dim)
  float softmax_scale = 1;      ///< qk_head_dim^-1/2 * m(mscale_all_dim)^2
};
Rope make_rope(const HfConfig& config);

}  // namespace exo::model
