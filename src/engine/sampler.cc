#include "engine/sampler.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace exo::engine {
namespace {

constexpr double kMinusInfinity = -std::numeric_limits<double>::infinity();

Status check_range(std::string_view name, double value, double min, double max) {
  if (value >= min && value <= max) return ok_status();  // false for a NaN
  return invalid_argument(fmt::format("{}: expected {} to {}, got {}", name, min, max, value));
}

/// Uniform in [0, 1) from the generator's upper 53 bits: the standard's distributions differ
/// between libraries, the engine's own bits don't.
double uniform(std::mt19937_64& random) { return static_cast<double>(random() >> 11) * 0x1p-53; }

int32_t& count_of(std::vector<int32_t>& counts, int32_t id) {
  if (static_cast<size_t>(id) >= counts.size()) counts.resize(static_cast<size_t>(id) + 1);
  return counts[static_cast<size_t>(id)];
}

int32_t count_at(const std::vector<int32_t>& counts, int32_t id) {
  return static_cast<size_t>(id) < counts.size() ? counts[static_cast<size_t>(id)] : 0;
}

}  // namespace

Status check(const SamplingOptions& options) {
  EXO_RETURN_IF_ERROR(check_range("temperature", options.temperature, 0, 100));
  if (options.top_k < 0)
    return invalid_argument(fmt::format("top_k: expected 0 (off) or more, got {}", options.top_k));
  if (!(options.top_p > 0 && options.top_p <= 1))
    return invalid_argument(
        fmt::format("top_p: expected more than 0 and at most 1, got {}", options.top_p));
  EXO_RETURN_IF_ERROR(check_range("min_p", options.min_p, 0, 1));
  if (!(options.typical_p > 0 && options.typical_p <= 1))
    return invalid_argument(
        fmt::format("typical_p: expected more than 0 and at most 1, got {}", options.typical_p));
  if (!(options.repetition_penalty > 0 && options.repetition_penalty <= 100))
    return invalid_argument(fmt::format("repetition_penalty: expected more than 0 to 100, got {}",
                                        options.repetition_penalty));
  EXO_RETURN_IF_ERROR(check_range("presence_penalty", options.presence_penalty, -100, 100));
  EXO_RETURN_IF_ERROR(check_range("frequency_penalty", options.frequency_penalty, -100, 100));
  for (const auto& [id, bias] : options.logit_bias) {
    if (id < 0) return invalid_argument(fmt::format("logit_bias: expected a token id, got {}", id));
    if (!(bias >= -100 && bias <= 100))
      return invalid_argument(
          fmt::format("logit_bias of token {}: expected -100 to 100, got {}", id, bias));
  }
  return ok_status();
}

int32_t argmax(std::span<const float> logits) {
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

Sampler::Sampler(SamplingOptions options, std::vector<int32_t> undefined_ids)
    : options_(std::move(options)),
      undefined_ids_(std::move(undefined_ids)),
      random_(options_.seed) {}

void Sampler::observe_prompt(std::span<const int32_t> tokens) {
  for (int32_t token : tokens) {
    if (token < 0) continue;
    if (count_at(prompt_counts_, token) == 0 && count_at(output_counts_, token) == 0)
      seen_.push_back(token);
    ++count_of(prompt_counts_, token);
  }
}

void Sampler::adjust(std::span<const float> logits) {
  const auto n = static_cast<int32_t>(logits.size());
  adjusted_.resize(logits.size());
  for (size_t i = 0; i < logits.size(); ++i)
    adjusted_[i] = std::isnan(logits[i]) ? kMinusInfinity : static_cast<double>(logits[i]);
  for (const auto& [id, bias] : options_.logit_bias)
    if (id < n) adjusted_[static_cast<size_t>(id)] += static_cast<double>(bias);
  for (int32_t id : undefined_ids_)
    if (id < n) adjusted_[static_cast<size_t>(id)] = kMinusInfinity;
  for (int32_t id : seen_) {
    if (id >= n) continue;
    double& logit = adjusted_[static_cast<size_t>(id)];
    logit = logit > 0 ? logit / options_.repetition_penalty : logit * options_.repetition_penalty;
    if (const int32_t count = count_at(output_counts_, id); count > 0)
      logit -= options_.presence_penalty + options_.frequency_penalty * count;
  }
}

double Sampler::softmax() {
  const double best = *std::max_element(adjusted_.begin(), adjusted_.end());
  candidates_.clear();
  double total = 0;
  for (size_t i = 0; i < adjusted_.size(); ++i) {
    if (adjusted_[i] == kMinusInfinity) continue;
    const double p = std::exp((adjusted_[i] - best) / options_.temperature);
    candidates_.push_back({adjusted_[i], static_cast<int32_t>(i), p});
    total += p;
  }
  return total;
}

double Sampler::keep_head(double total) {
  // Only the head of the distribution is ever sorted: 4 times more of it until the filters end
  // inside.
  const auto better = [](const Candidate& a, const Candidate& b) {
    return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
  };
  size_t kept = candidates_.size();
  if (options_.top_k > 0) kept = std::min(kept, static_cast<size_t>(options_.top_k));
  if (kept < candidates_.size()) {
    std::nth_element(candidates_.begin(), candidates_.begin() + static_cast<ptrdiff_t>(kept),
                     candidates_.end(), better);
    candidates_.resize(kept);
    total = 0;
    std::sort(candidates_.begin(), candidates_.end(), better);
    for (const Candidate& c : candidates_) total += c.probability;
  }
  const size_t available = kept;
  size_t sorted = 0;
  double sum = 0;
  for (kept = 0; kept < available; ++kept) {
    if (kept == sorted) {
      const size_t until = std::min(available, std::max<size_t>(256, sorted * 4));
      const auto from = candidates_.begin() + static_cast<ptrdiff_t>(sorted);
      const auto to = candidates_.begin() + static_cast<ptrdiff_t>(until);
      std::partial_sort(from, to, candidates_.end(), better);
      sorted = until;
    }
    // The token that reaches top_p is kept; the best token always is.
    const double p = candidates_[kept].probability;
    if (kept > 0 && (sum >= options_.top_p * total || p < options_.min_p)) break;
    sum += p;
  }
  candidates_.resize(kept);
  return sum;
}

double Sampler::keep_typical(double total) {
  // Meister et al. 2022, equation 10: the smallest set of tokens of the least |-log p - entropy|
  // that holds typical_p of the probability.
  double entropy = 0;
  for (const Candidate& c : candidates_)
    if (c.probability > 0) entropy -= c.probability / total * std::log(c.probability / total);
  const auto distance = [&](const Candidate& c) {
    return std::fabs(-std::log(c.probability / total) - entropy);
  };
  std::sort(candidates_.begin(), candidates_.end(), [&](const Candidate& a, const Candidate& b) {
    const double da = distance(a), db = distance(b);
    return da != db ? da < db : a.id < b.id;
  });
  double sum = 0;
  size_t kept = 0;
  while (kept < candidates_.size() && sum < options_.typical_p * total)
    sum += candidates_[kept++].probability;
  candidates_.resize(kept);
  return sum;
}

int32_t Sampler::draw() {
  double total = softmax();
  if (options_.top_k > 0 || options_.top_p < 1 || options_.min_p > 0) total = keep_head(total);
  if (options_.typical_p < 1) total = keep_typical(total);
  double point = uniform(random_) * total;
  for (size_t i = 0; i + 1 < candidates_.size(); ++i) {
    point -= candidates_[i].probability;
    if (point < 0) return candidates_[i].id;
  }
  return candidates_.back().id;
}

Result<int32_t> Sampler::sample(std::span<const float> logits) {
  if (logits.empty()) return invalid_argument("sampler: expected logits of a vocabulary, got none");
  adjust(logits);
  const auto best = std::max_element(adjusted_.begin(), adjusted_.end());
  if (*best == kMinusInfinity)
    return internal_error(
        fmt::format("sampler: none of {} logits is a number above -inf: the model's weights or its "
                    "arithmetic are broken; check them with `exo convert --verify`",
                    logits.size()));
  int32_t token = static_cast<int32_t>(best - adjusted_.begin());
  if (options_.temperature > 0 && !std::isinf(*best)) token = draw();
  if (count_at(prompt_counts_, token) == 0 && count_at(output_counts_, token) == 0)
    seen_.push_back(token);
  ++count_of(output_counts_, token);
  return token;
}

}  // namespace exo::engine
