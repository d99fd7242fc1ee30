#include <algorithm>
#include <limits>

#include "kernels/cpu/bodies.h"
#include "kernels/cpu/schedule.h"
#include "kernels/cpu/vector.h"
#include "ops/checks.h"

namespace exo::kernels::cpu {
namespace {

using ops::RouterConfig;

struct Scratch {
  float* scores = nullptr;        // [n_experts]
  float* choice = nullptr;        // [n_experts]: what is compared
  float* group_scores = nullptr;  // [n_group]
  uint8_t* open = nullptr;        // [n_experts]: experts of chosen groups
  uint8_t* taken = nullptr;       // [n_experts]
};

// Marks the n_best largest values among the open ones, the lower index first among equals: one pass
// that keeps the best so far in order. `best` has room for n_best indices.
void take_best(const float* values, const uint8_t* open, int32_t n, int32_t n_best, int32_t* best,
               uint8_t* taken) {
  std::fill_n(taken, n, uint8_t{0});
  int32_t count = 0;
  for (int32_t i = 0; i < n; ++i) {
    if (open[i] == 0) continue;
    if (count == n_best) {
      if (!(values[i] > values[best[n_best - 1]])) continue;
      --count;
    }
    int32_t at = count++;
    for (; at > 0 && values[i] > values[best[at - 1]]; --at) best[at] = best[at - 1];
    best[at] = i;
  }
  for (int32_t k = 0; k < count; ++k) taken[best[k]] = 1;
}

float group_score(const RouterConfig& c, const float* values) {
  float first = -std::numeric_limits<float>::infinity(), second = first;
  const int32_t size = c.n_experts / c.n_group;
  for (int32_t i = 0; i < size; ++i) {
    second = std::max(second, std::min(first, values[i]));
    first = std::max(first, values[i]);
  }
  return c.selection == RouterConfig::Selection::noaux_tc && size > 1 ? first + second : first;
}

// The row's ids double as take_best's list until they are written in order.
void choose_row(const ops::SelectExpertsArgs& args, const Scratch& s, int64_t row) {
  const RouterConfig& c = args.config;
  const bool v3 = c.selection == RouterConfig::Selection::noaux_tc;
  const float* choice = s.scores;
  if (v3 && !args.bias.empty()) {
    const float* bias = args.bias.ptr<float>();
    for (int32_t e = 0; e < c.n_experts; ++e) s.choice[e] = s.scores[e] + bias[e];
    choice = s.choice;
  }
  std::fill_n(s.open, c.n_experts, uint8_t{1});
  if (c.selection != RouterConfig::Selection::greedy && c.n_group > 1) {
    const int32_t size = c.n_experts / c.n_group;
    for (int32_t g = 0; g < c.n_group; ++g) s.group_scores[g] = group_score(c, choice + g * size);
    auto* best = reinterpret_cast<int32_t*>(s.group_scores + c.n_group);
    take_best(s.group_scores, s.open, c.n_group, c.topk_group, best, s.taken);
    for (int32_t g = 0; g < c.n_group; ++g) std::fill_n(s.open + g * size, size, s.taken[g]);
  }
  int32_t* ids = args.ids.row<int32_t>(row);
  take_best(choice, s.open, c.n_experts, c.top_k, ids, s.taken);
  std::sort(ids, ids + c.top_k);
  float* weights = args.weights.row<float>(row);
  float sum = 0;
  for (int32_t k = 0; k < c.top_k; ++k) sum += weights[k] = s.scores[ids[k]];
  const bool normalise = c.norm_topk_prob && (v3 || c.top_k > 1);
  for (int32_t k = 0; k < c.top_k; ++k) {
    if (normalise) weights[k] /= sum + 1e-20f;
    if (v3 || !normalise) weights[k] *= c.routed_scaling_factor;
  }
}

}  // namespace

Status select_experts(Isa isa, const ops::SelectExpertsArgs& args, ops::OpContext& ctx) {
  ArenaScope scope(*ctx.arena);
  const VectorKernels& v = vector_kernels(isa);
  const int64_t n = args.config.n_experts;
  const int n_threads = ctx.pool->n_threads();
  auto* floats = ctx.arena->take<float>(n_threads * 4 * n);
  auto* flags = ctx.arena->take<uint8_t>(n_threads * 2 * n);
  if (floats == nullptr || flags == nullptr)
    return ops::scratch_exhausted("select_experts", ops::select_experts_scratch_bytes(n, n_threads),
                                  *ctx.arena);
  // An expert costs about as much as moving 32 bytes.
  for_rows(*ctx.pool, args.logits.dim(0), n * 32, [&](int64_t row, int thread) {
    Scratch s;
    s.scores = floats + thread * 4 * n;
    s.choice = s.scores + n;
    s.group_scores = s.choice + n;  // [n_group], then take_best's list [topk_group]
    s.open = flags + thread * 2 * n;
    s.taken = s.open + n;
    const bool sigmoid = args.config.scoring == RouterConfig::Scoring::sigmoid;
    (sigmoid ? v.sigmoid : v.softmax)(args.logits.row<float>(row), s.scores, n);
    choose_row(args, s, row);
  });
  return ok_status();
}

}  // namespace exo::kernels::cpu
