/// Stage 3: weights mapped, state created, forwards run. A model is plain data: Plan (configs),
/// Weights (views into the mapped cache), State (what changes). forward() is a function over them;
/// so are the modules it calls (modules/).
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "model/plan.h"
#include "ops/ops.h"
#include "weights/weight_config.h"

namespace exo::model {

/// Views into the mapped cache; names are the checkpoint's.
struct MlaWeights {
  TensorView input_norm;             ///< [hidden_size] f32
  PackedMatrix q_a;                  ///< [q_lora_rank, hidden_size]; empty without q-LoRA
  TensorView q_a_norm;               ///< [q_lora_rank] f32; empty without q-LoRA
  PackedMatrix q_b;                  ///< [n_heads * qk_head_dim, q_lora_rank or hidden_size]
  PackedMatrix kv_a;                 ///< [kv_lora_rank + qk_rope_head_dim, hidden_size]
  TensorView kv_a_norm;              ///< [kv_lora_rank] f32
  std::vector<PackedMatrix> w_uk;    ///< [n_heads] of [qk_nope_head_dim, kv_lora_rank]
  std::vector<PackedMatrix> w_uk_t;  ///< [n_heads] of [kv_lora_rank, qk_nope_head_dim]
  std::vector<PackedMatrix> w_uv;    ///< [n_heads] of [v_head_dim, kv_lora_rank]
  PackedMatrix o;                    ///< [hidden_size, n_heads * v_head_dim]
};
struct MlpWeights {
  PackedMatrix gate_up;  ///< [2 * align_up(n_inter, 16), hidden_size]
  PackedMatrix down;     ///< [hidden_size, n_inter]
};
struct MoeWeights {
  PackedMatrix gate;                  ///< [n_experts, hidden_size] f32 or bf16
  TensorView bias;                    ///< [n_experts] f32; empty unless noaux_tc
  std::vector<PackedMatrix> gate_up;  ///< [n_experts]
  std::vector<PackedMatrix> down;     ///< [n_experts]
  MlpWeights shared;                  ///< empty without shared experts
  bool read_ahead = false;            ///< Weights::stream_experts
};
struct DecoderLayerWeights {
  MlaWeights attention;
  TensorView post_attention_norm;  ///< [hidden_size] f32
  MlpWeights mlp;                  ///< dense layers
  MoeWeights moe;                  ///< MoE layers
};
struct Weights {
  weights::WeightCache cache;  ///< owns the mappings
  TensorView embedding;        ///< [vocab_size, hidden_size] bf16; with the first layer
  std::vector<DecoderLayerWeights> layers;
  TensorView final_norm;  ///< [hidden_size] f32; with the last layer
  PackedMatrix lm_head;   ///< [vocab_size, hidden_size]; with the last layer

  /// For weights that don't fit in memory: they stay in the page cache as far as they do, and the
  /// chosen experts of a layer are asked for all at once, whole, before the first is computed.
  void stream_experts();
};

/// Resolves every path of the plan in the cache: the only string look-ups of a run. A missing,
/// foreign or truncated tensor is an error naming file, path, expected and found.
Result<std::unique_ptr<Weights>> load_weights(const Plan& plan, const std::string& cache_folder);

/// Everything a run changes. Owned by one engine, used by one thread.
struct State {
  std::vector<ops::LatentPages> pages;  ///< [n_layers of the placement]
  Buffer page_memory;
  Buffer arena_memory;
  Arena arena;
  Rope rope;
  Buffer run_memory;    ///< of the four below
  TensorView hidden;    ///< [max_batch_tokens, hidden_size] f32: the residual stream
  TensorView logits;    ///< [max_logit_rows, vocab_size] f32
  TensorView cos, sin;  ///< [max_batch_tokens, qk_rope_head_dim / 2] f32
};
Result<std::unique_ptr<State>> create_state(const Plan& plan);

/// Expert choices to use instead of the router's, for tests against recorded ones: per layer of the
/// placement, ids i32 and weights f32 [n_tokens of the batch, top_k], or empty views.
struct ForcedExperts {
  std::vector<TensorView> ids;
  std::vector<TensorView> weights;
};

/// Rows of many sequences in one forward.
struct Batch {
  std::span<const int32_t> tokens;               ///< [n_tokens] ids (every stage gets them)
  std::span<const int32_t> positions;            ///< [n_tokens]
  std::span<const ops::SequenceRows> sequences;  ///< cover all rows, in order
  std::span<const int32_t> logit_rows;           ///< rows whose logits are wanted, ascending
  TensorView hidden;  ///< [n_tokens, hidden_size] f32 from the stage before; empty at layer 0
};
struct Output {
  TensorView hidden;  ///< [n_tokens, hidden_size] f32: after the placement's last layer, before the
                      ///< final norm; in State, valid until the next forward
  TensorView logits;  ///< [n_logit_rows, vocab_size] f32; empty on stages without the head
};

struct Run {
  const Plan* plan = nullptr;
  const Weights* weights = nullptr;
  State* state = nullptr;
  const ForcedExperts* forced_experts = nullptr;
};

/// One forward of layers [layer_begin, layer_end). Allocates nothing. Token ids, positions, pages
/// and sizes are checked: an id outside the vocabulary is invalid_argument, a batch beyond the
/// limits resource_exhausted.
Result<Output> forward(const Run& run, const Batch& batch, ops::OpContext& ctx);

}  // namespace exo::model
