#include <gtest/gtest.h>

#include <cmath>

#include "kernels/cpu/testing/isas.h"
#include "ops/testing/packed.h"

namespace exo::kernels::cpu {
namespace {

using ops::testing::random_floats;
using ops::testing::random_matrix;
using ops::testing::relative_error;
using ops::testing::TestContext;
using ops::testing::TestMatrix;

struct ExpertsShape {
  int64_t hidden, n_inter, n_shared, n_experts, top_k;
};

// One layer's experts of random weights.
struct Layer {
  ExpertsShape shape;
  std::vector<TestMatrix> up, down;
  std::vector<PackedMatrix> up_views, down_views;
  TestMatrix shared_up, shared_down;

  Layer(WeightFormat format, const ExpertsShape& s) : shape(s) {
    for (uint32_t e = 0; e < s.n_experts; ++e) {
      up.push_back(random_matrix(format, 2 * align_up(s.n_inter, 16), s.hidden, 100 + e, 64, true));
      down.push_back(random_matrix(format, s.hidden, s.n_inter, 200 + e, 64));
    }
    for (size_t e = 0; e < up.size(); ++e) {
      up_views.push_back(up[e].matrix);
      down_views.push_back(down[e].matrix);
    }
    if (s.n_shared > 0) {
      shared_up = random_matrix(format, 2 * align_up(s.n_shared, 16), s.hidden, 3, 64, true);
      shared_down = random_matrix(format, s.hidden, s.n_shared, 4, 64);
    }
  }
};

struct Tokens {
  int64_t n = 0;
  std::vector<float> x;
  std::vector<int32_t> ids;
  std::vector<float> weights;

  Tokens(const ExpertsShape& s, int64_t n_tokens) : n(n_tokens), x(random_floats(n * s.hidden, 5)) {
    // Every other token has an outlier column, which i8 rows keep apart.
    for (int64_t i = 0; i < n; i += 2) x[static_cast<size_t>(i * s.hidden + 7)] *= 90.0f;
    std::mt19937 rng(6);
    for (int64_t i = 0; i < n; ++i) {
      std::vector<int32_t> row;
      while (static_cast<int64_t>(row.size()) < s.top_k) {
        // Uneven: low experts are chosen more often.
        const auto id =
            static_cast<int32_t>(rng() % static_cast<uint32_t>(s.n_experts) * (rng() % 2));
        if (std::find(row.begin(), row.end(), id) == row.end()) row.push_back(id);
        if (row.size() == 1 && s.n_experts == 1) break;
      }
      std::sort(row.begin(), row.end());
      ids.insert(ids.end(), row.begin(), row.end());
    }
    for (size_t i = 0; i < ids.size(); ++i)
      weights.push_back(0.1f + static_cast<float>(rng() % 100) / 50.0f);
  }
};

// Rows [begin, begin + n) alone.
std::vector<float> run(const ops::OpTable& table, const Layer& layer, const Tokens& tokens,
                       DType activation, int n_threads, int64_t begin, int64_t n) {
  const ExpertsShape& s = layer.shape;
  const int64_t scratch = ops::experts_scratch_bytes(n, s.top_k, s.n_experts, s.hidden, s.n_inter,
                                                     s.n_shared, n_threads, activation) +
                          ops::packed_rows_bytes(activation, n, s.hidden);
  TestContext t(table, n_threads, scratch);
  const auto x =
      ops::pack(make_view(tokens.x.data() + begin * s.hidden, {n, s.hidden}), activation, t.ctx);
  EXPECT_TRUE(x.ok());
  std::vector<float> out(static_cast<size_t>(n * s.hidden), 9.0f);
  ops::ExpertsArgs args;
  args.x = *x;
  args.out = make_view(out.data(), {n, s.hidden});
  if (s.top_k > 0) {
    args.gate_up = layer.up_views;
    args.down = layer.down_views;
    args.ids = make_view(tokens.ids.data() + begin * s.top_k, {n, s.top_k});
    args.weights = make_view(tokens.weights.data() + begin * s.top_k, {n, s.top_k});
  }
  if (s.n_shared > 0) {
    args.shared_gate_up = &layer.shared_up.matrix;
    args.shared_down = &layer.shared_down.matrix;
  }
  const Status status = ops::experts(args, t.ctx);
  EXPECT_TRUE(status.ok()) << status.message();
  return out;
}

const ExpertsShape kExpertsShapes[] = {
    {72, 40, 56, 7, 3},     // odd sizes, with shared
    {130, 24, 0, 5, 2},     // no shared expert
    {64, 0, 171, 0, 0},     // a dense MLP
    {128, 64, 192, 12, 6},  // whole tiles
};

class Experts : public ::testing::TestWithParam<std::pair<DType, WeightFormat>> {};

TEST_P(Experts, EqualReferenceWhateverTheBatchAndThreads) {
  const auto [activation, format] = GetParam();
  // bf16 and i8 round hidden values, so a last-bit difference in silu may become one step of those.
  const double tolerance = activation == DType::f32    ? 2e-6
                           : activation == DType::bf16 ? 2e-3
                                                       : 5e-3;
  for (const ExpertsShape& s : kExpertsShapes) {
    const Layer layer(format, s);
    for (int64_t n : {1, 2, 9, 40, 130}) {
      if (n == 130 && &s != kExpertsShapes) continue;
      SCOPED_TRACE("hidden " + std::to_string(s.hidden) + " tokens " + std::to_string(n));
      const Tokens tokens(s, n);
      const auto expected = run(ops::reference_table(), layer, tokens, activation, 1, 0, n);
      for (Isa isa : isas_to_test()) {
        SCOPED_TRACE(to_string(isa));
        const auto one = run(table(isa), layer, tokens, activation, 1, 0, n);
        EXPECT_LT(relative_error(one, expected), tolerance);
        EXPECT_EQ(run(table(isa), layer, tokens, activation, 2, 0, n), one);
        EXPECT_EQ(run(table(isa), layer, tokens, activation, 5, 0, n), one);
        if (activation == DType::bf16) continue;
        for (int64_t i : {int64_t{0}, n / 2, n - 1}) {
          const std::vector<float> row(one.begin() + i * s.hidden,
                                       one.begin() + (i + 1) * s.hidden);
          EXPECT_EQ(run(table(isa), layer, tokens, activation, 1, i, 1), row);
        }
      }
    }
  }
}

TEST_P(Experts, OneBadTokenStaysAlone) {
  const auto [activation, format] = GetParam();
  const ExpertsShape& s = kExpertsShapes[0];
  const Layer layer(format, s);
  Tokens tokens(s, 20);
  tokens.x[static_cast<size_t>(7 * s.hidden + 3)] = std::nanf("");
  for (Isa isa : isas_to_test()) {
    SCOPED_TRACE(to_string(isa));
    const auto out = run(table(isa), layer, tokens, activation, 2, 0, 20);
    for (int64_t i = 0; i < 20; ++i) {
      for (int64_t j = 0; j < s.hidden; ++j)
        EXPECT_EQ(std::isnan(out[static_cast<size_t>(i * s.hidden + j)]), i == 7) << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, Experts,
                         ::testing::Values(std::pair(DType::f32, WeightFormat::f32),
                                           std::pair(DType::f32, WeightFormat::bf16),
                                           std::pair(DType::f32, WeightFormat::fp8),
                                           std::pair(DType::bf16, WeightFormat::bf16),
                                           std::pair(DType::bf16, WeightFormat::fp8),
                                           std::pair(DType::i8, WeightFormat::int8),
                                           std::pair(DType::i8, WeightFormat::int4)),
                         [](const auto& p) {
                           return std::string(to_string(p.param.first)) + "_" +
                                  std::string(to_string(p.param.second));
                         });

}  // namespace
}  // namespace exo::kernels::cpu
