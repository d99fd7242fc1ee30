#include <fmt/core.h>

#include <cmath>

#include "base/json.h"
#include "base/os.h"
#include "cli/commands.h"
#include "cli/console.h"
#include "model/config.h"
#include "model/convert.h"
#include "weights/random_checkpoint.h"

namespace exo::cli {
namespace {

constexpr uint64_t kShardBytes = 512 << 20;
constexpr int64_t kBytesPerWeight = 2;

/// A small model of V3's kind; `size` grows it.
OrderedJson own_config(int64_t n_layers, int64_t hidden_size, int64_t n_experts) {
  return {{"architectures", {"DeepseekV3ForCausalLM"}},
          {"model_type", "deepseek_v3"},
          {"vocab_size", 512},
          {"hidden_size", hidden_size},
          {"intermediate_size", 2 * hidden_size},
          {"moe_intermediate_size", hidden_size / 2},
          {"num_hidden_layers", n_layers},
          {"num_nextn_predict_layers", 0},
          {"num_attention_heads", 8},
          {"num_key_value_heads", 8},
          {"q_lora_rank", hidden_size / 2},
          {"kv_lora_rank", 64},
          {"qk_nope_head_dim", 32},
          {"qk_rope_head_dim", 16},
          {"v_head_dim", 32},
          {"n_routed_experts", n_experts},
          {"n_shared_experts", 1},
          {"num_experts_per_tok", 4},
          {"n_group", 4},
          {"topk_group", 2},
          {"first_k_dense_replace", 1},
          {"moe_layer_freq", 1},
          {"scoring_func", "sigmoid"},
          {"topk_method", "noaux_tc"},
          {"norm_topk_prob", true},
          {"routed_scaling_factor", 2.5},
          {"hidden_act", "silu"},
          {"rms_norm_eps", 1e-6},
          {"rope_theta", 10000.0},
          {"max_position_embeddings", 4096},
          {"tie_word_embeddings", false},
          {"attention_bias", false},
          {"bos_token_id", 0},
          {"eos_token_id", 1},
          {"torch_dtype", "bfloat16"}};
}

/// The smallest of our shapes that reaches the size asked for.
Result<OrderedJson> config_of_size(int64_t megabytes) {
  if (megabytes == 0) return own_config(4, 128, 16);
  const bool big = megabytes > 200;
  for (int64_t n_layers = 2;; ++n_layers) {
    OrderedJson json = own_config(n_layers, big ? 1024 : 256, 16);
    EXO_ASSIGN_OR_RETURN(const model::HfConfig config,
                         model::parse_config(Json(json), "random-checkpoint"));
    if (config.n_parameters(true) * kBytesPerWeight >= megabytes * 1000 * 1000) return json;
    if (n_layers >= 4000)
      return invalid_argument(
          fmt::format("--megabytes {}: too many for this model's shape", megabytes));
  }
}

Result<std::string> read_config(const Context& context, const RandomCheckpointOptions& options) {
  if (options.config.empty()) {
    EXO_ASSIGN_OR_RETURN(const OrderedJson json, config_of_size(options.megabytes));
    return json.dump(2) + "\n";
  }
  if (hub::file_exists(options.config)) return read_file(options.config, 16 << 20);
  EXO_ASSIGN_OR_RETURN(const hub::ModelLocation at, hub::locate(context.paths, options.config));
  if (at.folder_exists) return read_file(at.folder + "/config.json", 16 << 20);
  if (at.entry == nullptr)
    return not_found(fmt::format("--config {}: no such file or model", options.config));
  EXO_ASSIGN_OR_RETURN(const std::string_view json, hub::config_of(*at.entry));
  return std::string(json);
}

weights::RandomTensor random_tensor(const model::CheckpointTensor& tensor) {
  weights::RandomTensor random{.name = tensor.name, .shape = tensor.shape};
  if (tensor.f32) random.dtype = DType::f32;
  if (tensor.quantised) random.dtype = DType::f8_e4m3;
  if (tensor.shape.size() == 1 && !tensor.f32) {
    random.mean = 1;  // a norm
    random.stddev = 0.1f;
  } else if (tensor.shape.size() == 2) {
    // Keeps the size of activations whatever the width.
    random.stddev = 1 / std::sqrt(static_cast<float>(tensor.shape[1]));
  }
  return random;
}

}  // namespace

Status random_checkpoint_command(const Context& context, const RandomCheckpointOptions& options) {
  EXO_ASSIGN_OR_RETURN(const std::string config_json, read_config(context, options));
  EXO_ASSIGN_OR_RETURN(const Json json, parse_json(config_json, "config.json"));
  EXO_ASSIGN_OR_RETURN(const model::HfConfig config, model::parse_config(json, "config.json"));
  if (hub::has_checkpoint(options.folder))
    return failed_precondition(fmt::format(
        "{}: there is a checkpoint already; remove it, or name another folder", options.folder));
  std::vector<weights::RandomTensor> tensors;
  for (const model::CheckpointTensor& tensor : model::checkpoint_tensors(config))
    tensors.push_back(random_tensor(tensor));
  EXO_RETURN_IF_ERROR(weights::write_random_checkpoint(options.folder, config_json, tensors,
                                                       kShardBytes, options.seed));
  say(fmt::format("exo: {} parameters of random weights in {} ({})",
                  format_count(config.n_parameters(true)), options.folder,
                  format_bytes(hub::folder_bytes(options.folder))));
  return ok_status();
}

}  // namespace exo::cli
