/// From logits to a token. The order is that of Hugging Face's generate(), whose
/// generation_config.json gives the defaults: logit bias and undefined ids, penalties, temperature,
/// then top-k, top-p, min-p, typical-p on the softmax, each on what the one before has left, then
/// one draw. (min-p is a share of the best probability, which the others before it don't change.)
#pragma once

#include <cstdint>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include "base/status.h"

namespace exo::engine {

struct SamplingOptions {
  double temperature = 0;  ///< 0: greedy, the lowest id of the highest logits
  int32_t top_k = 0;       ///< 0: off
  double top_p = 1;
  double min_p = 0;
  double typical_p = 1;           ///< locally typical sampling (Meister et al. 2022); 1: off
  double repetition_penalty = 1;  ///< of tokens in prompt or output (Keskar et al. 2019)
  double presence_penalty = 0;    ///< of tokens in the output (OpenAI's API)
  double frequency_penalty = 0;
  std::vector<std::pair<int32_t, float>> logit_bias;
  uint64_t seed = 0;  ///< the same seed, logits and options give the same tokens on every machine
};
/// Ranges: temperature 0..100, top_p (0, 1], ...; names the option, what was expected and what it
/// got.
Status check(const SamplingOptions& options);

/// The lowest id of the highest of `logits`. Precondition: not empty.
int32_t argmax(std::span<const float> logits);

class Sampler {
 public:
  /// `undefined_ids`: embedding rows that have no token; never sampled.
  Sampler(SamplingOptions options, std::vector<int32_t> undefined_ids);

  /// Tokens that penalties see as part of the prompt.
  void observe_prompt(std::span<const int32_t> tokens);
  /// Draws from `logits` [vocab_size], which is not changed, and counts the token as output. A NaN
  /// counts as minus infinity; when no token is left (all NaN or minus infinity) that is an
  /// internal error and nothing is counted. An infinite logit wins (the lowest id of them).
  Result<int32_t> sample(std::span<const float> logits);

 private:
  struct Candidate {
    double logit;
    int32_t id;
    double probability;  ///< not normalised: the best one's is 1
  };
  void adjust(std::span<const float> logits);
  int32_t draw();
  /// Fills candidates_ with the softmax of adjusted_. Like the two filters below, returns the sum
  /// of their probabilities.
  double softmax();
  double keep_head(double total);  ///< top-k, top-p, min-p
  double keep_typical(double total);

  SamplingOptions options_;
  std::vector<int32_t> undefined_ids_;
  std::mt19937_64 random_;
  std::vector<int32_t> prompt_counts_, output_counts_;  ///< by id, grown on demand
  std::vector<int32_t> seen_;          ///< ids with a count, each once: what penalties go over
  std::vector<double> adjusted_;       ///< scratch [vocab_size]
  std::vector<Candidate> candidates_;  ///< scratch
};

}  // namespace exo::engine
