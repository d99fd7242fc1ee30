/// What a forward costs at the least: bytes that must be read and operations that must be done,
/// from the plan alone. `exo bench` divides them by the machine's measured limits.
#pragma once

#include <cstdint>
#include <span>

#include "model/plan.h"

namespace exo::model {

struct Work {
  int64_t weight_bytes = 0;  ///< weights that the forward reads, each once
  int64_t cache_bytes = 0;   ///< latents of earlier tokens, each once a layer
  int64_t matmul_ops =
      0;  ///< 2 * multiply-adds with weights, the head's only for rows whose logits are wanted
  int64_t attention_ops = 0;  ///< 2 * multiply-adds of scores and weighted sums
  int64_t bytes() const { return weight_bytes + cache_bytes; }
};

struct WorkShape {
  Phase phase = Phase::decode;
  int64_t n_tokens = 1;  ///< rows of the forward: a prompt's tokens, or one for each sequence
  int64_t n_past = 0;    ///< tokens in the cache before it, per sequence
  int64_t n_logit_rows = 1;
  /// Distinct experts that the forward touches, per MoE layer of the plan in order; empty:
  /// min(n_experts, n_tokens * top_k) in each, which is exact for one token.
  std::span<const int64_t> distinct_experts;
};

Work work_of(const Plan& plan, const WorkShape& shape);

}  // namespace exo::model
