/// The engine: one loaded model on this machine, its paged latent cache and the sequences in it.
/// One thread uses it. cli (and later server) speak to nothing below it.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/cpu/isa.h"
#include "model/model.h"

namespace exo::engine {

struct EngineOptions {
  std::string cache_folder;  ///< of stage 1
  model::Plan plan;          ///< of stage 2
  kernels::cpu::Isa isa = kernels::cpu::Isa::reference;
  /// Receives the inner tensors of prompts (prefill), never of decode. A prefill of which it wants
  /// attention probabilities uses the reference attention, which alone gives them.
  ops::Capture* capture = nullptr;
  /// Read all weights into memory first, instead of at their first use (`--warm`).
  bool warm = false;
  /// For weights larger than memory: model::Weights::stream_experts.
  bool stream_experts = false;
};

/// A sequence's tokens whose latents are in the cache, and its pages.
using SequenceId = int32_t;

class Engine {
 public:
  /// Maps the weights and creates the state. Threads: plan.limits.n_threads.
  static Result<std::unique_ptr<Engine>> create(EngineOptions options);
  ~Engine();

  const model::Plan& plan() const;

  /// An empty sequence; resource_exhausted beyond limits.max_sequences.
  Result<SequenceId> add_sequence();
  void remove_sequence(SequenceId id);
  int64_t n_tokens(SequenceId id) const;
  /// Takes back all but the first `n` tokens (speculation, an edited chat). Pages are freed.
  Status truncate(SequenceId id, int64_t n);

  /// Appends prompt tokens (expanded form), in chunks of limits.max_batch_tokens. `wanted` are the
  /// indices into `tokens`, ascending, whose logits are wanted: `on_logits` is called for each
  /// chunk that has some, in order, with its indices and their logits [n_indices, vocab_size] f32,
  /// valid during the call. A chunk ends early where it would exceed limits.max_logit_rows.
  /// failed_precondition when the context or the pages don't suffice. After any error, one of
  /// `on_logits` included, the sequence is as before.
  using OnLogits =
      std::function<Status(std::span<const int32_t> indices, const TensorView& logits)>;
  Status prefill(SequenceId id, std::span<const int32_t> tokens, std::span<const int32_t> wanted,
                 const OnLogits& on_logits);

  /// Appends one token to each of several sequences (absorbed form) in one forward; row i of the
  /// logits [n_steps, vocab_size] f32 belongs to steps[i]; valid until the next call. A sequence
  /// may appear once. Needs limits.max_logit_rows >= n_steps. After an error nothing has changed.
  struct Step {
    SequenceId id;
    int32_t token;
  };
  /// `capture`, if given, receives this forward's inner tensors.
  Result<TensorView> decode(std::span<const Step> steps, ops::Capture* capture = nullptr);

  /// Appends `n` tokens' worth of pseudo-random latents without computing anything: a context of a
  /// given depth, for benchmarks.
  Status fill_with_noise(SequenceId id, int64_t n, uint64_t seed);

  /// Times the operations of the forwards from now on (nullptr: no more).
  void set_profile(ops::Profile* profile);

 private:
  struct Impl;
  explicit Engine(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace exo::engine
