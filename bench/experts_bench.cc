// One MoE layer at DeepSeek-V2-Lite's width: 64 routed experts, 6 chosen, 2 shared.
#include "bench_support.h"

namespace exo::bench {
namespace {

constexpr int64_t kHidden = 2048, kInter = 1408, kExperts = 64, kTopK = 6;

void run_experts(::benchmark::State& state, kernels::cpu::Isa isa, const Pair& p) {
  const int64_t n = state.range(0);
  Context c(isa);
  std::vector<Matrix> up, down;
  for (int64_t e = 0; e < kExperts; ++e) {
    up.emplace_back(p.format, 2 * kInter, kHidden, true);
    down.emplace_back(p.format, kHidden, kInter);
  }
  const Matrix shared_up(p.format, 4 * kInter, kHidden, true);
  const Matrix shared_down(p.format, kHidden, 2 * kInter);
  std::vector<PackedMatrix> ups, downs;
  for (size_t e = 0; e < up.size(); ++e) {
    ups.push_back(up[e].matrix);
    downs.push_back(down[e].matrix);
  }
  const auto x = some_floats(n * kHidden);
  std::vector<float> out(x.size()), weights(static_cast<size_t>(n * kTopK), 0.2f);
  std::vector<int32_t> ids(weights.size());
  const auto packed = ops::pack(make_view(x.data(), {n, kHidden}), p.activation, c.ctx);
  int64_t turn = 0, touched = 0;
  for (auto _ : state) {
    // Every round chooses other experts: kTopK neighbours with a stride that visits all.
    std::vector<bool> seen(kExperts);
    for (int64_t i = 0; i < n; ++i) {
      std::vector<int32_t> row;
      for (int64_t k = 0; k < kTopK; ++k)
        row.push_back(static_cast<int32_t>((turn * kTopK + k * 11) % kExperts));
      std::sort(row.begin(), row.end());
      std::copy(row.begin(), row.end(), ids.begin() + i * kTopK);
      for (int32_t e : row) seen[static_cast<size_t>(e)] = true;
      ++turn;
    }
    touched += std::count(seen.begin(), seen.end(), true);
    const Status s = ops::experts({.x = *packed,
                                   .gate_up = ups,
                                   .down = downs,
                                   .ids = make_view(ids.data(), {n, kTopK}),
                                   .weights = make_view(weights.data(), {n, kTopK}),
                                   .shared_gate_up = &shared_up.matrix,
                                   .shared_down = &shared_down.matrix,
                                   .out = make_view(out.data(), {n, kHidden})},
                                  c.ctx);
    if (!s.ok()) return state.SkipWithError("experts");
  }
  const auto each = static_cast<double>(ups[0].weight_bytes() + downs[0].weight_bytes());
  const double bytes =
      each * (2 + static_cast<double>(touched) /
                      static_cast<double>(std::max<int64_t>(state.iterations(), 1)));
  report(state, bytes, 2.0 * 3 * kHidden * kInter * (kTopK + 2) * static_cast<double>(n));
}

const int kRegistered = (register_all("experts", {1, 8, 512, 2048}, run_experts), 0);

}  // namespace
}  // namespace exo::bench
