// linear at [2048 x 8192], rows from one to a prompt; the matrices take turns, so that the weights
// come from memory and not from a cache.
#include "bench_support.h"

namespace exo::bench {
namespace {

void run_linear(::benchmark::State& state, kernels::cpu::Isa isa, const Pair& p) {
  constexpr int64_t kIn = 2048, kOut = 8192, kBytes = 256 << 20;
  const int64_t n_rows = state.range(0);
  Context c(isa);
  std::vector<Matrix> matrices;
  const int64_t each = Matrix(p.format, kOut, kIn).matrix.weight_bytes();
  for (int64_t bytes = 0; bytes < kBytes; bytes += each) matrices.emplace_back(p.format, kOut, kIn);
  const auto x = some_floats(n_rows * kIn);
  std::vector<float> out(static_cast<size_t>(n_rows * kOut));
  const auto packed = ops::pack(make_view(x.data(), {n_rows, kIn}), p.activation, c.ctx);
  size_t turn = 0;
  for (auto _ : state) {
    const ops::LinearArgs args{
        .x = *packed, .w = &matrices[turn].matrix, .out = make_view(out.data(), {n_rows, kOut})};
    if (!ops::linear(args, c.ctx).ok()) return state.SkipWithError("linear");
    turn = (turn + 1) % matrices.size();
  }
  report(state, static_cast<double>(each), 2.0 * kIn * kOut * static_cast<double>(n_rows));
}

const int kRegistered = (register_all("linear", {1, 8, 64, 512}, run_linear), 0);

}  // namespace
}  // namespace exo::bench
