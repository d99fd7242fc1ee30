/// Stage 2: everything that is decided before a weight is touched, as typed configs per operation
/// and phase. Pure functions of config.json, placement and limits; printable as JSON, and readable
/// again (`exo run --plan FILE`). docs/three_stages.md tells the story.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "model/config.h"
#include "tensor/packed.h"

namespace exo::model {

/// What a weight is for: formats and devices are chosen by role.
enum class Role : uint8_t { embedding, attention, dense, experts, shared, lm_head };
inline constexpr int kRoleCount = 6;

/// `--format`: one format for all roles, or some roles apart: "int4,attention=int8,lm_head=bf16".
/// The embedding is a plain bf16 table in every format; the router always computes in f32.
struct FormatChoice {
  std::array<WeightFormat, kRoleCount> by_role{};
  WeightFormat of(Role role) const { return by_role[static_cast<size_t>(role)]; }
  std::string to_string() const;  ///< canonical: part of a cache's key
};
/// "" is what the checkpoint has (fp8 for FP8 checkpoints, else bf16). In an FP8 checkpoint the
/// head is bf16, and fp8 leaves it so; other checkpoints have no fp8 to keep.
Result<FormatChoice> parse_format(const std::string& text, const HfConfig& config);

struct Placement {
  int64_t layer_begin = 0;
  int64_t layer_end = 0;  ///< the embedding goes with layer 0, the head with the last layer
  int64_t tensor_rank = 0;
  int64_t tensor_size = 1;
  std::array<Device, kRoleCount> device{};
};
Placement whole_model(const HfConfig& config);

/// What a run is sized for.
struct Limits {
  int64_t max_context_tokens = 4096;  ///< of one sequence
  int64_t max_batch_tokens = 512;     ///< rows of one forward (the prefill chunk)
  int64_t max_sequences = 1;
  int64_t n_pages = 0;         ///< of the cache; 0: max_sequences * ceil(max_context / kPageTokens)
  int64_t max_logit_rows = 1;  ///< rows of one forward whose logits may be wanted
  int n_threads = 1;
  bool fp32_compute = false;
  /// Of the cached latents (ops::LatentPages); unset: bf16, f32 under fp32_compute.
  std::optional<DType> cache;
};
/// `--kv-cache`: "bf16", "int8", "fp8" or "fp32"; "" is unset.
Result<std::optional<DType>> parse_kv_cache(const std::string& text);
/// And back: "bf16", "int8", ...
std::string_view kv_cache_name(DType cache);

enum class Phase : uint8_t { prefill, decode };

/// One weight matrix times activations. Accumulation is f32 (i32 for i8 activations, exact).
struct LinearConfig {
  std::string path;  ///< the WeightConfig path
  int64_t n_in = 0, n_out = 0;
  int64_t count = 1;  ///< heads or experts, each [n_out, n_in]
  WeightFormat weight = WeightFormat::bf16;
  DType activation = DType::bf16;
  DType accumulate = DType::f32;
  Device device;
  int64_t k_block = 0;       ///< fp8: columns of a scale block
  int64_t weight_bytes = 0;  ///< of all `count`, scales and alignment included
};
struct NormConfig {
  std::string path;
  int64_t n = 0;
  float eps = 0;
};
/// The product of gate and up with SiLU fused, between two LinearConfigs.
struct MulConfig {
  int64_t n = 0;
  bool silu = true;
  DType out = DType::bf16;  ///< what `down` reads
};
/// How a sublayer's output is summed over the ranks of a mesh; absent while tensor_size is 1.
struct AllReduceConfig {
  int64_t axis = 0;
  enum class Topology : uint8_t { ring, linear } topology = Topology::ring;
  DType dtype = DType::f32;
  int64_t n_links = 1;
};
struct MlaConfig {
  ops::AttentionForm form = ops::AttentionForm::expanded;
  NormConfig input_norm;
  std::optional<LinearConfig> q_a;  ///< with q-LoRA: q_a, q_a_norm, q_b; else q_b is q_proj
  std::optional<NormConfig> q_a_norm;
  LinearConfig q_b;
  LinearConfig kv_a;
  NormConfig kv_a_norm;
  LinearConfig w_k;  ///< expanded: W_UK [qk_nope, kv_lora]; absorbed: W_UK^T [kv_lora, qk_nope]
  LinearConfig w_v;  ///< W_UV [v_head_dim, kv_lora]
  LinearConfig o;
  int64_t n_heads = 0, kv_lora_rank = 0, qk_nope_head_dim = 0, qk_rope_head_dim = 0, v_head_dim = 0;
  float softmax_scale = 1;
  DType cache = DType::bf16;
  std::optional<AllReduceConfig> all_reduce;
};
struct MlpConfig {
  LinearConfig gate_up;  ///< interleaved: n_out = 2 * align_up(n_inter, 16)
  MulConfig mul;
  LinearConfig down;
  std::optional<AllReduceConfig> all_reduce;
};
struct MoeConfig {
  ops::RouterConfig router;
  LinearConfig gate;           ///< f32 activations, always
  std::string bias_path;       ///< "" when the selection has none
  LinearConfig gate_up, down;  ///< count = n_experts
  MulConfig mul;
  std::optional<MlpConfig> shared;
  std::optional<AllReduceConfig> all_reduce;
};
struct DecoderLayerConfig {
  int64_t layer = 0;
  MlaConfig attention;
  NormConfig post_attention_norm;
  std::optional<MlpConfig> mlp;  ///< exactly one of the two
  std::optional<MoeConfig> moe;
};
struct EmbeddingConfig {
  std::string path;
  int64_t vocab_size = 0, hidden_size = 0;
  DType dtype = DType::bf16;
  int64_t weight_bytes = 0;
};
struct LmHeadConfig {
  NormConfig final_norm;
  LinearConfig linear;
};
/// The MTP layer's own parts around a decoder layer (DeepSeek-V3 section 2.2).
struct MtpConfig {
  NormConfig enorm, hnorm;
  LinearConfig eh_proj;  ///< [hidden, 2 * hidden]: embedding half first
  DecoderLayerConfig block;
  NormConfig shared_head_norm;
  std::optional<EmbeddingConfig> embedding;  ///< its own copy, when the placement lacks layer 0
};
/// What a layer caches for a token. One entry for MLA.
struct CacheSpec {
  std::string stream;  ///< "latent"
  DType dtype = DType::bf16;
  int64_t bytes_per_entry = 0;
  int64_t tokens_per_entry = 1;
  int64_t window_tokens = 0;  ///< 0: everything
};

/// One phase's configs: the PrefillConfig and the DecodeConfig are two values of this type. What
/// differs is MlaConfig::form with its w_k, and the rows that scratch is sized for.
struct PhaseConfig {
  Phase phase = Phase::prefill;
  int64_t max_tokens = 0;  ///< rows of this phase's form in one forward; both may be in one batch
  std::optional<EmbeddingConfig> embedding;  ///< when the placement holds layer 0
  std::vector<DecoderLayerConfig> layers;    ///< [layer_end - layer_begin]
  std::optional<LmHeadConfig> lm_head;       ///< when the placement holds the last layer
  std::vector<MtpConfig> mtp;
  int64_t scratch_bytes = 0;  ///< arena bytes of one forward
};

struct Plan {
  HfConfig config;
  FormatChoice format;
  Placement placement;
  Limits limits;
  PhaseConfig prefill, decode;
  std::vector<CacheSpec> cache;    ///< of one layer
  int64_t weight_bytes = 0;        ///< of this placement's weights in these formats, without MTP
  int64_t mtp_weight_bytes = 0;    ///< converted beside them; mapped only when MTP is used
  int64_t kv_bytes_per_token = 0;  ///< of this placement's layers
  int64_t kv_bytes = 0;            ///< of all pages
  int64_t scratch_bytes = 0;       ///< the larger phase's
  int64_t state_bytes = 0;         ///< all that create_state allocates beside pages and scratch
  int64_t total_bytes() const { return weight_bytes + kv_bytes + scratch_bytes + state_bytes; }
};

/// Pure: the same arguments give the same plan on every machine. Limits are completed (n_pages,
/// cache).
Result<Plan> make_plan(const HfConfig& config, const FormatChoice& format,
                       const Placement& placement, const Limits& limits);

/// `exo plan --json`: parameters, parameters_with_mtp, weight_bytes, kv_bytes_per_token, stages,
/// and every config.
OrderedJson plan_to_json(const Plan& plan);
/// Reads it back. Refuses a plan that disagrees with what this build makes of the same config,
/// format, placement and limits, naming the first field that differs (expected, got).
Result<Plan> plan_from_json(const Json& json, const std::string& where);

}  // namespace exo::model
