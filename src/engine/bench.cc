#include "engine/bench.h"

#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <optional>
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
  const auto& linear = layer.moe ? layer.moe->gate_up : layer.mlp->gate_up;
  if (linear.activation == DType::i8)
    return linear.weight == WeightFormat::int4 ? limits.int4_ops : limits.int8_ops;
  return linear.activation == DType::bf16 ? limits.bf16_ops : limits.f32_ops;
}

// Times are of n_forward_tokens each.
void summarise(const std::vector<double>& times_s, int64_t n_forward_tokens,
               const model::Work& work, BenchLine& line) {
  const auto n = static_cast<double>(n_forward_tokens);
  const auto [least, most] = std::minmax_element(times_s.begin(), times_s.end());
  line.tokens_per_s = n / median(times_s);
  line.fastest_tokens_per_s = n / *least;
  line.slowest_tokens_per_s = n / *most;
  line.bytes_per_token = static_cast<double>(work.bytes()) / n;
  line.ops_per_token = static_cast<double>(work.matmul_ops + work.attention_ops) / n;
}

BenchLimits mean(const BenchLimits& a, const BenchLimits& b) {
  return {.read_bytes = (a.read_bytes + b.read_bytes) / 2,
          .int8_ops = (a.int8_ops + b.int8_ops) / 2,
          .int4_ops = (a.int4_ops + b.int4_ops) / 2,
          .bf16_ops = (a.bf16_ops + b.bf16_ops) / 2,
          .f32_ops = (a.f32_ops + b.f32_ops) / 2};
}

// What a forward's median time is compared with.
struct ForwardWork {
  double n_tokens = 0;
  double bytes = 0;
  double matmul_ops = 0;  // of decode: 0, its limit is reading
};

void set_limits(const BenchLimits& limits, double peak, const ForwardWork& work, BenchLine& line) {
  line.limits = limits;
  const double read_s = limits.read_bytes > 0 ? work.bytes / limits.read_bytes : 0;
  const double compute_s = peak > 0 ? work.matmul_ops / peak : 0;
  const double limit_s = std::max(read_s, compute_s);
  line.limit_tokens_per_s = limit_s > 0 ? work.n_tokens / limit_s : 0;
  line.share_of_limit = limit_s > 0 ? line.tokens_per_s / line.limit_tokens_per_s : 0;
}

class Bench {
 public:
  Bench(Engine& engine, const std::function<Result<BenchLimits>()>& measure_limits,
        const BenchOptions& options)
      : engine_(engine),
        measure_limits_(measure_limits),
        options_(options),
        random_(options.seed) {}

  Result<BenchLine> prefill(int64_t n_tokens) {
    return between_limits([&](BenchLine& line) { return time_prefill(n_tokens, line); });
  }
  Result<BenchLine> decode(int64_t depth, int64_t batch) {
    return between_limits([&](BenchLine& line) { return time_decode(depth, batch, line); });
  }

 private:
  Result<BenchLine> between_limits(const std::function<Result<ForwardWork>(BenchLine&)>& time) {
    BenchLine line;
    if (!before_) {
      EXO_ASSIGN_OR_RETURN(before_, measure_limits_());
    }
    EXO_ASSIGN_OR_RETURN(const ForwardWork work, time(line));
    EXO_ASSIGN_OR_RETURN(const BenchLimits after, measure_limits_());
    const BenchLimits limits = mean(*before_, after);
    before_ = after;
    set_limits(limits, matmul_peak(engine_.plan(), limits), work, line);
    return line;
  }

  Result<ForwardWork> time_prefill(int64_t n_tokens, BenchLine& line) {
    line.test = "prefill";
    line.n_tokens = n_tokens;
    EXO_ASSIGN_OR_RETURN(const SequenceId id, engine_.add_sequence());
    const auto tokens = random_tokens(n_tokens, engine_.plan().config.vocab_size, random_);
    const int32_t last = static_cast<int32_t>(n_tokens) - 1;
    std::vector<double> times_s;
    for (int64_t repeat = 0; repeat <= options_.n_repeats; ++repeat) {  // the first one warms up
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
    summarise(times_s, n_tokens, work, line);
    return ForwardWork{.n_tokens = static_cast<double>(n_tokens),
                       .bytes = static_cast<double>(work.weight_bytes),
                       .matmul_ops = static_cast<double>(work.matmul_ops)};
  }

  Result<ForwardWork> time_decode(int64_t depth, int64_t batch, BenchLine& line) {
    line.test = "decode";
    line.n_tokens = options_.n_decode_steps;
    line.depth = depth;
    line.batch = batch;
    std::vector<Engine::Step> steps;
    for (int64_t i = 0; i < batch; ++i) {
      EXO_ASSIGN_OR_RETURN(const SequenceId id, engine_.add_sequence());
      steps.push_back({id, 0});
      EXO_RETURN_IF_ERROR(
          engine_.fill_with_noise(id, depth, options_.seed + static_cast<uint64_t>(i)));
    }
    std::vector<double> times_s, bytes;
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
      bytes.push_back(static_cast<double>(work.bytes()));
    }
    engine_.set_profile(nullptr);
    for (const auto& step : steps) engine_.remove_sequence(step.id);
    summarise(times_s, batch, work, line);
    return ForwardWork{.n_tokens = static_cast<double>(batch), .bytes = median(bytes)};
  }

  Engine& engine_;
  const std::function<Result<BenchLimits>()>& measure_limits_;
  std::optional<BenchLimits> before_;  // the next line, measured after the last
  const BenchOptions& options_;
  std::mt19937_64 random_;
};

}  // namespace

Status run_bench(Engine& engine, const std::function<Result<BenchLimits>()>& measure_limits,
                 const BenchOptions& options,
                 const std::function<void(const BenchLine&)>& on_line) {
  Bench bench(engine, measure_limits, options);
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
