// The operations over rows against the scalar bodies, on every instruction set.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "kernels/cpu/isa.h"
#include "kernels/cpu/vector.h"
#include "ops/testing/packed.h"

namespace exo::kernels::cpu {
namespace {

using ops::testing::random_floats;
using ops::testing::strided;
using ops::testing::TestContext;

const float kNan = std::numeric_limits<float>::quiet_NaN();
const float kInf = std::numeric_limits<float>::infinity();

bool same(float a, float b) { return (std::isnan(a) && std::isnan(b)) || a == b; }

// Calls f(table, n_threads, trace) for every body; the reference first.
template <typename F>
void on_every_table(F f) {
  for (Isa isa : supported_isas()) {
    for (int n_threads : {1, 3}) {
      SCOPED_TRACE(std::string(to_string(isa)) + " threads " + std::to_string(n_threads));
      f(table(isa), n_threads);
    }
  }
}

TEST(Rows, RmsNormOfOddSizesAndStrides) {
  for (int64_t n : {1, 7, 16, 33, 64, 129, 1000}) {
    const int64_t n_rows = 40, stride = n + 3;
    auto x = random_floats(n_rows * stride, 1);
    x[static_cast<size_t>(5 * stride)] = kNan;
    x[static_cast<size_t>(6 * stride)] = kInf;
    const auto weight = random_floats(n + 1, 2);
    std::vector<float> expected;
    on_every_table([&](const ops::OpTable& table, int n_threads) {
      TestContext t(table, n_threads, 4096);
      std::vector<float> out(x);
      const TensorView view = strided(out.data(), n_rows, n, stride);
      ASSERT_TRUE(
          ops::rms_norm(
              {.x = view, .weight = make_view(weight.data() + 1, {n}), .eps = 1e-6f, .out = view},
              t.ctx)
              .ok());
      if (expected.empty()) expected = out;
      for (size_t i = 0; i < out.size(); ++i)
        ASSERT_TRUE(same(out[i], expected[i]) ||
                    std::fabs(out[i] - expected[i]) < 1e-6f * (1 + std::fabs(expected[i])))
            << i << ": " << out[i] << " " << expected[i];
      EXPECT_TRUE(std::isnan(out[static_cast<size_t>(5 * stride)]));
    });
  }
}

TEST(Rows, EqualBitsOfEmbeddingAddRopeAndStore) {
  const int64_t n_rows = 70, n = 83, heads = 3, rope = 38;
  auto values = random_floats(n_rows * n, 3);
  values[10] = kNan;
  values[11] = -kInf;
  values[12] = 3.0e38f;
  std::vector<bf16> table_bf16;
  for (float v : values) table_bf16.push_back(to_bf16(v));
  std::vector<int32_t> ids, positions;
  for (int32_t i = 0; i < n_rows; ++i) {
    ids.push_back(i * 7 % static_cast<int32_t>(n_rows));
    positions.push_back(i * 1001);
  }
  std::vector<float> inv_freq;
  for (int i = 0; i < rope / 2; ++i) inv_freq.push_back(std::pow(10000.0f, -0.05f * i));
  std::vector<std::vector<float>> expected;
  on_every_table([&](const ops::OpTable& table, int n_threads) {
    TestContext t(table, n_threads, 4096);
    std::vector<std::vector<float>> got;
    std::vector<float> out(static_cast<size_t>(n_rows * n));
    for (const TensorView& stored :
         {make_view(table_bf16.data(), {n_rows, n}), make_view(values.data(), {n_rows, n})}) {
      ASSERT_TRUE(ops::embedding({.table = stored,
                                  .ids = make_view(ids.data(), {n_rows}),
                                  .out = make_view(out.data(), {n_rows, n})},
                                 t.ctx)
                      .ok());
      got.push_back(out);
    }
    ASSERT_TRUE(ops::add({.x = make_view(values.data(), {n_rows, n}),
                          .y = make_view(out.data(), {n_rows, n})},
                         t.ctx)
                    .ok());
    got.push_back(out);
    std::vector<float> cos(static_cast<size_t>(n_rows * rope / 2)), sin(cos.size());
    const auto cos_view = make_view(cos.data(), {n_rows, rope / 2});
    const auto sin_view = make_view(sin.data(), {n_rows, rope / 2});
    ASSERT_TRUE(ops::rope_table({.positions = make_view(positions.data(), {n_rows}),
                                 .inv_freq = make_view(inv_freq.data(), {rope / 2}),
                                 .scale = 1.5f,
                                 .cos = cos_view,
                                 .sin = sin_view},
                                t.ctx)
                    .ok());
    got.push_back(cos);
    got.push_back(sin);
    auto q = random_floats(n_rows * heads * (rope + 5), 4);
    const TensorView x = make_view(q.data(), {n_rows, heads, rope + 5}).columns(5, rope);
    ASSERT_TRUE(ops::rope({.x = x, .cos = cos_view, .sin = sin_view}, t.ctx).ok());
    got.push_back(q);
    for (DType dtype : {DType::f32, DType::bf16, DType::i8, DType::f8_e4m3}) {
      ops::LatentPages pages{.dtype = dtype, .n_pages = 4, .kv_lora_rank = n, .rope_dim = rope};
      std::vector<float> cache(static_cast<size_t>(4 * pages.page_bytes() / 4), 1.0f);
      pages.data = reinterpret_cast<std::byte*>(cache.data());
      const int32_t order[] = {3, 1};
      const ops::SequenceRows s[] = {
          {.row_begin = 0, .n_rows = static_cast<int32_t>(n_rows), .n_past = 50, .pages = order}};
      ASSERT_TRUE(ops::store_latent({.latent = make_view(values.data(), {n_rows, n}),
                                     .k_rope = make_view(q.data(), {n_rows, rope}),
                                     .sequences = s,
                                     .pages = pages},
                                    t.ctx)
                      .ok());
      got.push_back(cache);
    }
    if (expected.empty()) expected = got;
    for (size_t i = 0; i < got.size(); ++i)
      EXPECT_EQ(std::memcmp(got[i].data(), expected[i].data(), got[i].size() * 4), 0) << i;
  });
}

// Parts of 128 columns, a short last one, and values at which a code can go wrong.
TEST(Rows, CodesOfLatentsAreTheReferencesAndHoldTheirValues) {
  constexpr int64_t kRows = 65, kRank = 333, kRope = 10;
  auto latent = random_floats(kRows * kRank, 7);
  const auto k_rope = random_floats(kRows * kRope, 8);
  for (int64_t i = 0; i < 128; ++i) {  // 2^7 ... 2^-16 of the largest: fp8's subnormals
    latent[static_cast<size_t>(i)] = std::ldexp(1.0f + static_cast<float>(i % 8) / 8, -i / 8);
    latent[static_cast<size_t>(kRank + i)] = 0.0f;
    latent[static_cast<size_t>(2 * kRank + i)] *= 1e-35f;
  }
  latent[static_cast<size_t>(3 * kRank + 200)] = kNan;
  latent[static_cast<size_t>(4 * kRank + 332)] = -kInf;
  for (DType dtype : {DType::i8, DType::f8_e4m3}) {
    std::vector<std::byte> expected;
    on_every_table([&](const ops::OpTable& table, int n_threads) {
      TestContext t(table, n_threads, 4096);
      ops::LatentPages pages{.dtype = dtype, .n_pages = 2, .kv_lora_rank = kRank};
      pages.rope_dim = kRope;
      std::vector<std::byte> memory(static_cast<size_t>(2 * pages.page_bytes()), std::byte{7});
      pages.data = memory.data();
      const int32_t order[] = {1, 0};
      const ops::SequenceRows s[] = {{.n_rows = kRows, .pages = order}};
      ASSERT_TRUE(ops::store_latent({.latent = make_view(latent.data(), {kRows, kRank}),
                                     .k_rope = make_view(k_rope.data(), {kRows, kRope}),
                                     .sequences = s,
                                     .pages = pages},
                                    t.ctx)
                      .ok());
      if (expected.empty()) expected = memory;
      EXPECT_EQ(memory, expected);
      EXPECT_TRUE(std::isnan(pages.scales(1, 3)[1]));
      EXPECT_TRUE(std::isnan(pages.scales(1, 4)[2]));
      EXPECT_FALSE(std::isnan(pages.scales(1, 4)[1]));
      EXPECT_EQ(pages.scales(1, 1)[0], 0.0f);
      EXPECT_EQ(pages.scales(1, 2)[0], 0.0f);
      // Row 64 is the second page's first. Half a step of int8; 2^-4 of the value in fp8.
      for (int64_t i = 0; i < kRank; ++i) {
        const float x = latent[static_cast<size_t>(64 * kRank + i)];
        const float scale = pages.scales(0, 0)[i / ops::kLatentPartCols];
        const auto code = static_cast<uint8_t>(pages.entry(0, 0)[i]);
        if (dtype == DType::i8) {
          EXPECT_LE(std::fabs(static_cast<float>(static_cast<int8_t>(code)) * scale - x),
                    0.5001f * scale);
        } else {
          EXPECT_LE(std::fabs(to_f32(f8_e4m3{code}) * scale - x),
                    std::max(std::fabs(x) / 16, 0x1p-10f * scale) * 1.0001f);
        }
      }
    });
  }
}

TEST(Rows, PackedRowsAreTheReferencesBytes) {
  for (DType dtype : {DType::f32, DType::bf16, DType::i8}) {
    for (int64_t n : {1, 31, 32, 64, 100, 128, 333}) {
      const int64_t n_rows = 37, stride = n + 1;
      auto x = random_floats(n_rows * stride, 5);
      for (int64_t k = 0; k < n; ++k) x[static_cast<size_t>(3 * stride + k)] = 0.0f;
      for (int64_t k = 0; k < n; ++k) x[static_cast<size_t>(4 * stride + k)] *= 1e-35f;
      x[static_cast<size_t>(5 * stride)] = kNan;
      x[static_cast<size_t>(6 * stride)] = -kInf;
      x[static_cast<size_t>(7 * stride + n - 1)] = -300.0f;
      std::vector<std::byte> expected;
      on_every_table([&](const ops::OpTable& table, int n_threads) {
        TestContext t(table, n_threads, 1 << 20);
        const auto rows = ops::pack(strided(x.data(), n_rows, n, stride), dtype, t.ctx);
        ASSERT_TRUE(rows.ok());
        std::vector<std::byte> got(rows->data, rows->data + rows->data_bytes());
        if (dtype == DType::i8) {
          const auto* scales = reinterpret_cast<const std::byte*>(rows->scales);
          const auto* sums = reinterpret_cast<const std::byte*>(rows->group_sums);
          got.insert(got.end(), scales, scales + n_rows * 4);
          got.insert(got.end(), sums, sums + n_rows * (rows->n_cols_padded() / 32) * 4);
          for (int64_t i = 0; i < n_rows; ++i) {
            const auto* wide = reinterpret_cast<const std::byte*>(rows->wide_of(i));
            got.insert(got.end(), wide, wide + rows->n_wide[i] * sizeof(WideValue));
            EXPECT_EQ(rows->n_wide[i], i == 7 && n >= 31 ? 1 : 0) << i << " of " << n;
          }
        }
        if (expected.empty()) expected = got;
        EXPECT_EQ(got, expected) << to_string(dtype) << " " << n;
      });
    }
  }
}

TEST(Rows, SelectedExpertsOfEveryKind) {
  using Router = ops::RouterConfig;
  for (auto scoring : {Router::Scoring::softmax, Router::Scoring::sigmoid}) {
    for (auto selection : {Router::Selection::greedy, Router::Selection::group_limited_greedy,
                           Router::Selection::noaux_tc}) {
      for (auto [n_experts, n_group, topk_group, top_k] :
           {std::array{256, 8, 4, 8}, std::array{6, 3, 2, 3}, std::array{64, 1, 1, 6},
            std::array{5, 5, 2, 2}}) {
        const Router config{.scoring = scoring,
                            .selection = selection,
                            .n_experts = n_experts,
                            .n_group = n_group,
                            .topk_group = topk_group,
                            .top_k = top_k,
                            .norm_topk_prob = n_group > 1,
                            .routed_scaling_factor = 2.5f};
        const int64_t n = 50;
        auto logits = random_floats(n * n_experts, 6);
        // Ties: equal values in one row, and whole groups equal in another.
        for (int64_t e = 0; e < n_experts; ++e) logits[static_cast<size_t>(e)] = 0.5f;
        for (int64_t e = 0; e < n_experts; ++e)
          logits[static_cast<size_t>(n_experts + e)] = static_cast<float>(e % 3);
        const auto bias = random_floats(n_experts, 7, 0.1f);
        std::vector<int32_t> expected_ids;
        std::vector<float> expected;
        on_every_table([&](const ops::OpTable& table, int n_threads) {
          TestContext t(table, n_threads, ops::select_experts_scratch_bytes(n_experts, n_threads));
          std::vector<int32_t> ids(static_cast<size_t>(n * top_k));
          std::vector<float> weights(ids.size());
          const Status s = ops::select_experts({.config = config,
                                                .logits = make_view(logits.data(), {n, n_experts}),
                                                .bias = make_view(bias.data(), {n_experts}),
                                                .ids = make_view(ids.data(), {n, top_k}),
                                                .weights = make_view(weights.data(), {n, top_k})},
                                               t.ctx);
          ASSERT_TRUE(s.ok()) << s.message();
          if (expected.empty()) {
            expected_ids = ids;
            expected = weights;
          }
          EXPECT_EQ(ids, expected_ids);
          for (size_t i = 0; i < weights.size(); ++i)
            EXPECT_NEAR(weights[i], expected[i], 1e-6f + 1e-5f * std::fabs(expected[i]));
        });
      }
    }
  }
}

TEST(Rows, NotANumberLogitsStillChooseDistinctExperts) {
  on_every_table([&](const ops::OpTable& table, int n_threads) {
    TestContext t(table, n_threads);
    const std::vector<float> logits(16, kNan);
    int32_t ids[5];
    float weights[5];
    ASSERT_TRUE(
        ops::select_experts({.config = {.n_experts = 16, .n_group = 4, .topk_group = 2, .top_k = 5},
                             .logits = make_view(logits.data(), {1, 16}),
                             .bias = {},
                             .ids = make_view(ids, {1, 5}),
                             .weights = make_view(weights, {1, 5})},
                            t.ctx)
            .ok());
    for (int i = 0; i < 5; ++i) {
      EXPECT_GE(ids[i], i == 0 ? 0 : ids[i - 1] + 1);
      EXPECT_LT(ids[i], 16);
      EXPECT_TRUE(std::isnan(weights[i]));
    }
  });
}

// exp is reached through softmax_page: one score s after a maximum of 0 has the weight e^s.
TEST(Rows, ScaledRowsAreAddedToThoseThatTheyName) {
  constexpr int64_t kStride = 37, kOutStride = 41;
  const std::vector<int32_t> rows = {5,  0, 11, 3, 7, 2,
                                     10, 1, 9,  8, 4};  // not 6; more than asked ahead
  const auto n_rows = static_cast<int64_t>(rows.size());
  const auto x = random_floats(n_rows * kStride, 1), before = random_floats(12 * kOutStride, 2);
  const auto scales = random_floats(n_rows, 3);
  for (Isa isa : supported_isas()) {
    if (isa == Isa::reference) continue;
    for (int64_t n : {1, 16, 32, 35}) {
      SCOPED_TRACE(std::string(to_string(isa)) + " columns " + std::to_string(n));
      auto out = before, expected = before;
      vector_kernels(isa).add_scaled_rows(scales.data(), x.data(), kStride, rows.data(), n_rows, n,
                                          out.data(), kOutStride);
      for (int64_t r = 0; r < n_rows; ++r) {
        for (int64_t i = 0; i < n; ++i) {
          const float product =
              scales[static_cast<size_t>(r)] * x[static_cast<size_t>(r * kStride + i)];
          expected[static_cast<size_t>(rows[static_cast<size_t>(r)] * kOutStride + i)] += product;
        }
      }
      EXPECT_EQ(out, expected);  // two roundings, the same bits
    }
  }
}

TEST(Rows, ExponentialWithinTwoUlp) {
  for (Isa isa : supported_isas()) {
    if (isa == Isa::reference) continue;
    SCOPED_TRACE(to_string(isa));
    const VectorKernels& v = vector_kernels(isa);
    double worst = 0;
    for (float x = -0.0f; x > -87.0f; x -= 0.00731f) {
      float p[64] = {x};
      SoftmaxState state{0.0f, 0.0f};
      v.softmax_page(p, 1, state);
      const double exact = std::exp(static_cast<double>(x));
      const double ulp = std::nextafter(static_cast<float>(exact), 2.0f) -
                         static_cast<double>(static_cast<float>(exact));
      worst = std::max(worst, std::fabs(static_cast<double>(p[0]) - exact) / ulp);
    }
    EXPECT_LT(worst, 2.0);
    float edges[64] = {-kInf, -1000.0f, kNan, -103.0f};
    SoftmaxState state{0.0f, 0.0f};
    v.softmax_page(edges, 4, state);
    EXPECT_EQ(edges[0], 0.0f);
    EXPECT_EQ(edges[1], 0.0f);
    EXPECT_TRUE(std::isnan(edges[2]));
    EXPECT_NEAR(edges[3], std::exp(-103.0f), 1.5e-45f);
    EXPECT_TRUE(std::isnan(state.sum));
  }
}

TEST(Rows, SiluOfLargeAndStrangeGates) {
  for (Isa isa : supported_isas()) {
    if (isa == Isa::reference) continue;
    const VectorKernels& v = vector_kernels(isa);
    std::vector<float> x(32, 1.0f);
    const float gates[] = {0, 1, -1, 20, -20, 88, -88, -200, 3e38f, -3e38f, kNan, kInf};
    std::copy(std::begin(gates), std::end(gates), x.begin());
    float out[16];
    v.silu_mul(x.data(), 32, 1, 1, out, 16);
    for (size_t i = 0; i < std::size(gates); ++i) {
      const double g = gates[i], exact = g / (1 + std::exp(-g));
      if (!std::isfinite(exact)) {
        EXPECT_TRUE(same(out[i], static_cast<float>(exact)));
      } else {
        EXPECT_NEAR(out[i], static_cast<float>(exact), 3e-7 * std::fabs(exact) + 1e-37) << g;
      }
    }
  }
}

}  // namespace
}  // namespace exo::kernels::cpu
