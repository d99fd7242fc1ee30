#include <algorithm>
#include <cmath>

#include "ops/checks.h"
#include "ops/reference/bodies.h"

namespace exo::ops::reference {
namespace {

void score_row(const RouterConfig& c, const float* logits, float* scores) {
  const int32_t n = c.n_experts;
  if (c.scoring == RouterConfig::Scoring::sigmoid) {
    for (int32_t e = 0; e < n; ++e) scores[e] = 1.0f / (1.0f + std::exp(-logits[e]));
    return;
  }
  const float largest = *std::max_element(logits, logits + n);
  float sum = 0;
  for (int32_t e = 0; e < n; ++e) sum += scores[e] = std::exp(logits[e] - largest);
  for (int32_t e = 0; e < n; ++e) scores[e] /= sum;
}

// Marks the n_best largest of values[0, n) among those with open[i] != 0: taken[i] = 1. Ties go to
// the lower index; a NaN is smaller than nothing, so the first open value stands until one beats
// it.
void take_best(const float* values, const uint8_t* open, int32_t n, int32_t n_best,
               uint8_t* taken) {
  std::fill_n(taken, n, uint8_t{0});
  for (int32_t round = 0; round < n_best; ++round) {
    int32_t best = -1;
    for (int32_t i = 0; i < n; ++i) {
      if (open[i] != 0 && taken[i] == 0 && (best < 0 || values[i] > values[best])) best = i;
    }
    taken[best] = 1;
  }
}

float group_score(const RouterConfig& c, const float* choice, int32_t group) {
  const int32_t size = c.n_experts / c.n_group;
  const float* v = choice + group * size;
  float first = v[0], second = -INFINITY;
  for (int32_t i = 1; i < size; ++i) {
    if (v[i] > first) {
      second = first;
      first = v[i];
    } else if (v[i] > second) {
      second = v[i];
    }
  }
  const bool two = c.selection == RouterConfig::Selection::noaux_tc && size > 1;
  return two ? first + second : first;
}

struct RoutingScratch {
  float* scores = nullptr;        // [n_experts]
  float* choice = nullptr;        // [n_experts]: what is compared
  float* group_scores = nullptr;  // [n_group]
  uint8_t* open = nullptr;        // [n_experts]: in a chosen group
  uint8_t* taken = nullptr;       // [n_experts]
};

void choose_row(const SelectExpertsArgs& args, const RoutingScratch& s) {
  const RouterConfig& c = args.config;
  const bool biased = c.selection == RouterConfig::Selection::noaux_tc && !args.bias.empty();
  for (int32_t e = 0; e < c.n_experts; ++e)
    s.choice[e] = biased ? s.scores[e] + args.bias.ptr<float>()[e] : s.scores[e];
  std::fill_n(s.open, c.n_experts, uint8_t{1});
  if (c.selection != RouterConfig::Selection::greedy && c.n_group > 1) {
    for (int32_t g = 0; g < c.n_group; ++g) s.group_scores[g] = group_score(c, s.choice, g);
    take_best(s.group_scores, s.open, c.n_group, c.topk_group, s.taken);
    const int32_t size = c.n_experts / c.n_group;
    for (int32_t g = 0; g < c.n_group; ++g) std::fill_n(s.open + g * size, size, s.taken[g]);
  }
  take_best(s.choice, s.open, c.n_experts, c.top_k, s.taken);
}

void write_row(const SelectExpertsArgs& args, const RoutingScratch& s, int64_t row) {
  const RouterConfig& c = args.config;
  int32_t* ids = args.ids.row<int32_t>(row);
  float* weights = args.weights.row<float>(row);
  int32_t n = 0;
  float sum = 0;
  for (int32_t e = 0; e < c.n_experts; ++e) {
    if (s.taken[e] == 0) continue;
    ids[n] = e;
    weights[n++] = s.scores[e];
    sum += s.scores[e];
  }
  const bool v3 = c.selection == RouterConfig::Selection::noaux_tc;
  const bool normalise = c.norm_topk_prob && (v3 || c.top_k > 1);
  for (int32_t k = 0; k < n; ++k) {
    if (normalise) weights[k] /= sum + 1e-20f;
    if (v3 || !normalise) weights[k] *= c.routed_scaling_factor;
  }
}

}  // namespace

Status select_experts(const SelectExpertsArgs& args, OpContext& ctx) {
  ArenaScope scope(*ctx.arena);
  const int64_t n = args.config.n_experts;
  RoutingScratch s;
  auto* floats = ctx.arena->take<float>(3 * n);
  auto* flags = ctx.arena->take<uint8_t>(2 * n);
  if (floats == nullptr || flags == nullptr)
    return scratch_exhausted("select_experts", select_experts_scratch_bytes(n, 1), *ctx.arena);
  s.scores = floats;
  s.choice = floats + n;
  s.group_scores = floats + 2 * n;
  s.open = flags;
  s.taken = flags + n;
  for (int64_t i = 0; i < args.logits.dim(0); ++i) {
    score_row(args.config, args.logits.row<float>(i), s.scores);
    choose_row(args, s);
    write_row(args, s, i);
  }
  return ok_status();
}

}  // namespace exo::ops::reference
