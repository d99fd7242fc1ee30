#include "engine/bench.h"

#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <random>
#include <set>

#include "model/work.h"

namespace exo::engine {
namespace {

using Seconds = std::chrono::duration<double>;

std::vector<int32_t> random_tokens(int64_t n, int64_t vocab_size, std::mt19937_64& random) {
  std::vector<int32_t> tokens(static_cast<size_t>(n));
  for (int32_t& t : tokens) t = static_cast<int32_t>(random() % static_cast<uint64_t>(vocab_size));
  return tokens;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t n = values.size();
  return n % 2 == 1 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

// Counts the distinct experts that each MoE layer of a forward chose.
class ExpertCounter final : public ops::Capture {
 public:
  bool wants(std::string_view name) override { return name.ends_with(".mlp.gate.topk_idx"); }
  void on_tensor(std::string_view, const TensorView& ids) override {
    std::set<int32_t> distinct;
    for (int64_t i = 0; i < ids.dim(0); ++i)
      distinct.insert(ids.row<int32_t>(i), ids.row<int32_t>(i) + ids.dim(1));
    counts.push_back(static_cast<int64_t>(distinct.size()));
  }
  std::vector<int64_t> counts;
};

// The rate of the unit that multiplies the experts' (or, without experts, the dense layers')
// weights.
double matmul_peak(const model::Plan& plan, const BenchLimits& limits) {
  const auto& layer = plan.prefill.layers.back();
  const DType activation =
      layer.moe ? layer.moe->gate_up.activation : layer.mlp->gate_up.activation;
  if (activation == DType::i8) return limits.int8_ops;
  return activation == DType::bf16 ? limits.bf16_ops : limits.f32_ops;
}

// Times are of n_forward_tokens each.
void summarise(const std::vector<double>& times_s, int64_t n_forward_tokens, double limit_s,
               const model::Work& work, BenchLine& line) {
  const auto n = static_cast<double>(n_forward_tokens);
  const auto [least, most] = std::minmax_element(times_s.begin(), times_s.end());
  line.tokens_per_s = n / median(times_s);
  line.fastest_tokens_per_s = n / *least;
  line.slowest_tokens_per_s = n / *most;
  line.bytes_per_token = static_cast<double>(work.bytes()) / n;
  line.ops_per_token = static_cast<double>(work.matmul_ops + work.attention_ops) / n;
  line.limit_tokens_per_s = limit_s > 0 ? n / limit_s : 0;
  line.share_of_limit = limit_s > 0 ? line.tokens_per_s / line.limit_tokens_per_s : 0;
}

class Bench {
 public:
  Bench(Engine& engine, const BenchLimits& limits, const BenchOptions& options)
      : engine_(engine), limits_(limits), options_(options), random_(options.seed) {}

  Result<BenchLine> prefill(int64_t n_tokens) {
    BenchLine line{.test = "prefill", .n_tokens = n_tokens};
    EXO_ASSIGN_OR_RETURN(const SequenceId id, engine_.add_sequence());
    const auto tokens = random_tokens(n_tokens, engine_.plan().config.vocab_size, random_);
    const int32_t last = static_cast<int32_t>(n_tokens) - 1;
    std::vector<double> times_s;
    for (int repeat = 0; repeat <= options_.n_repeats; ++repeat) {  // the first one warms up
      if (repeat == 1 && options_.profile) engine_.set_profile(&line.profile);
      EXO_RETURN_IF_ERROR(engine_.truncate(id, 0));
      const auto begin = std::chrono::steady_clock::now();
      EXO_RETURN_IF_ERROR(engine_.prefill(id, tokens, std::span(&last, 1),
                                          [](auto, const TensorView&) { return ok_status(); }));
      if (repeat > 0) times_s.push_back(Seconds(std::chrono::steady_clock::now() - begin).count());
    }
    engine_.set_profile(nullptr);
    engine_.remove_sequence(id);
    const model::Work work =
        work_of(engine_.plan(), {.phase = model::Phase::prefill, .n_tokens = n_tokens});
    const double peak = matmul_peak(engine_.plan(), limits_);
    const double read_s =
        limits_.read_bytes > 0 ? static_cast<double>(work.weight_bytes) / limits_.read_bytes : 0;
    const double compute_s = peak > 0 ? static_cast<double>(work.matmul_ops) / peak : 0;
    summarise(times_s, n_tokens, std::max(read_s, compute_s), work, line);
    return line;
  }

  Result<BenchLine> decode(int64_t depth, int64_t batch) {
    BenchLine line{
        .test = "decode", .n_tokens = options_.n_decode_steps, .depth = depth, .batch = batch};
    std::vector<Engine::Step> steps;
    for (int64_t i = 0; i < batch; ++i) {
      EXO_ASSIGN_OR_RETURN(const SequenceId id, engine_.add_sequence());
      steps.push_back({id, 0});
      EXO_RETURN_IF_ERROR(
          engine_.fill_with_noise(id, depth, options_.seed + static_cast<uint64_t>(i)));
    }
    std::vector<double> times_s, limits_s;
    model::Work work;
    constexpr int64_t kWarmUpSteps = 3;
    for (int64_t i = -kWarmUpSteps; i < options_.n_decode_steps; ++i) {
      if (i == 0 && options_.profile) engine_.set_profile(&line.profile);
      for (auto& step : steps)
        step.token = random_tokens(1, engine_.plan().config.vocab_size, random_).front();
      ExpertCounter experts;
      const auto begin = std::chrono::steady_clock::now();
      EXO_RETURN_IF_ERROR(engine_.decode(steps, batch > 1 ? &experts : nullptr).status());
      if (i < 0) continue;
      times_s.push_back(Seconds(std::chrono::steady_clock::now() - begin).count());
      work = work_of(engine_.plan(), {.phase = model::Phase::decode,
                                      .n_tokens = batch,
                                      .n_past = depth + kWarmUpSteps + i,
                                      .n_logit_rows = batch,
                                      .distinct_experts = experts.counts});
      limits_s.push_back(static_cast<double>(work.bytes()) / limits_.read_bytes);
    }
    engine_.set_profile(nullptr);
    for (const auto& step : steps) engine_.remove_sequence(step.id);
    summarise(times_s, batch, limits_.read_bytes > 0 ? median(limits_s) : 0, work, line);
    return line;
  }

 private:
  Engine& engine_;
  const BenchLimits& limits_;
  const BenchOptions& options_;
  std::mt19937_64 random_;
};

}  // namespace

Status run_bench(Engine& engine, const BenchLimits& limits, const BenchOptions& options,
                 const std::function<void(const BenchLine&)>& on_line) {
  Bench bench(engine, limits, options);
  for (int64_t depth : options.depths) {
    for (int64_t batch : options.batches) {
      auto line = bench.decode(depth, batch);
      if (!line.ok())
        return line.status().with_context(fmt::format("decode of {} at depth {}", batch, depth));
      on_line(*line);
    }
  }
  for (int64_t n_tokens : options.prefill_tokens) {
    auto line = bench.prefill(n_tokens);
    if (!line.ok()) return line.status().with_context(fmt::format("prefill of {}", n_tokens));
    on_line(*line);
  }
  return ok_status();
}

}  // namespace exo::engine
