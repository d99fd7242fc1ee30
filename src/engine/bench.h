/// Prefill and decode speed of a loaded model, each beside the least time that this machine's
/// measured limits allow for the same work. What `exo bench` prints.
///
/// Limits (docs/performance.md):
///   prefill  max(bytes of the touched weights / read bandwidth, matmul operations / peak), the
///            peak being the matrix units' rate for the activations' type
///   decode   (bytes of the touched weights + bytes of the cache read) / read bandwidth
/// The machine's limits are measured before and after each line, and the mean counts: a virtual
/// machine's neighbours change its bandwidth by half within a minute.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "ops/profile.h"

namespace exo::engine {

/// This machine's measured limits, in units per second; 0 where it has no such unit.
struct BenchLimits {
  double read_bytes = 0;  ///< memory bandwidth, all threads reading
  double int8_ops = 0;    ///< the best integer unit of the instruction set in use
  double int4_ops = 0;    ///< the same with weights of 4 bits
  double bf16_ops = 0;
  double f32_ops = 0;
};

struct BenchOptions {
  std::vector<int64_t> prefill_tokens = {512, 2048};
  std::vector<int64_t> depths = {0};   ///< decode: tokens in the cache before
  std::vector<int64_t> batches = {1};  ///< decode: sequences in one forward
  int64_t n_decode_steps = 24;         ///< timed steps for each depth and batch
  int64_t n_repeats = 3;               ///< timed prefills for each length
  bool profile = false;
  uint64_t seed = 1;
};

struct BenchLine {
  std::string test;      ///< "prefill" or "decode"
  int64_t n_tokens = 0;  ///< prefill: of the prompt; decode: timed steps
  int64_t depth = 0;
  int64_t batch = 1;
  double tokens_per_s = 0;  ///< of the median time
  double slowest_tokens_per_s = 0, fastest_tokens_per_s = 0;
  double bytes_per_token = 0;
  double ops_per_token = 0;
  BenchLimits limits;  ///< of the machine, measured around this line
  double limit_tokens_per_s = 0;
  double share_of_limit = 0;
  ops::Profile profile;  ///< of the timed forwards, when asked for
};

/// Runs everything once to warm up (weights are touched, threads started), then times it.
/// `measure_limits` is called before and after each line, `on_line` as results come. Needs
/// limits.max_context_tokens for the longest case and max_sequences for the largest batch.
Status run_bench(Engine& engine, const std::function<Result<BenchLimits>()>& measure_limits,
                 const BenchOptions& options, const std::function<void(const BenchLine&)>& on_line);

}  // namespace exo::engine
