/// The engine: one loaded model on this machine, its paged latent cache and the sequences in it.
/// One thread uses it. cli (and later server) speak to nothing below it.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/sampler.h"
#include "kernels/cpu/isa.h"
#include "model/model.h"

namespace exo::engine {

struct EngineOptions {
  std::string cache_folder;  ///< of stage 1
  model::Plan plan;          ///< of stage 2
  kernels::cpu::Isa isa = kernels::cpu::Isa::reference;
  int n_threads = 1;
  ops::Capture* capture = nullptr;
};

/// A sequence's tokens whose latents are in the cache, and its pages.
using SequenceId = int32_t;

class Engine {
 public:
  static Result<std::unique_ptr<Engine>> create(EngineOptions options);
  ~Engine();

  const model::Plan& plan() const;

  /// An empty sequence; resource_exhausted beyond limits.max_sequences.
  Result<SequenceId> add_sequence();
  void remove_sequence(SequenceId id);
  int64_t n_tokens(SequenceId id) const;
  /// Takes back all but the first `n` tokens (speculation, an edited chat). Pages are freed.
  Status truncate(SequenceId id, int64_t n);

  /// Which rows' logits a forward should give.
  enum class Want { none, last, all };
  /// Appends prompt tokens (expanded form), in chunks of limits.max_batch_tokens. With Want::all,
  /// `on_logits` is called for each chunk in order. Logits are [n_rows, vocab_size] f32, valid
  /// during the call. failed_precondition, with nothing changed, when the context or the pages
  /// don't suffice.
  using OnLogits = std::function<Status(int64_t first_position, const TensorView& logits)>;
  Status prefill(SequenceId id, std::span<const int32_t> tokens, Want want,
                 const OnLogits& on_logits);

  /// Appends one token to each of several sequences (absorbed form) in one forward; logits[i]
  /// belongs to steps[i].
  struct Step {
    SequenceId id;
    int32_t token;
  };
  Result<TensorView> decode(std::span<const Step> steps);

 private:
  struct Impl;
  explicit Engine(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace exo::engine
