// The scalar bodies against plain mathematics in double.
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "ops/testing/packed.h"

namespace exo::ops {
namespace {

using testing::gate_row;
using testing::goes_with;
using testing::kAllFormats;
using testing::random_floats;
using testing::random_matrix;
using testing::relative_error;
using testing::TestContext;
using testing::TestMatrix;
using testing::up_row;

// What rounding x to an activation type costs, as a relative error of a product.
double activation_error(DType activation) {
  return activation == DType::f32 ? 1e-5 : activation == DType::bf16 ? 5e-3 : 2e-2;
}

std::vector<double> product(const TestMatrix& w, const float* x) {
  std::vector<double> y(static_cast<size_t>(w.matrix.n_out));
  for (int64_t n = 0; n < w.matrix.n_out; ++n) {
    for (int64_t k = 0; k < w.matrix.n_in; ++k)
      y[static_cast<size_t>(n)] += static_cast<double>(x[k]) * static_cast<double>(w.at(n, k));
  }
  return y;
}

void append(std::vector<double>& to, const std::vector<double>& from) {
  to.insert(to.end(), from.begin(), from.end());
}

TEST(Reference, LinearOfEveryPair) {
  TestContext t(reference_table());
  for (DType activation : {DType::f32, DType::bf16, DType::i8}) {
    for (WeightFormat format : kAllFormats) {
      if (!goes_with(activation, format)) continue;
      SCOPED_TRACE(std::string(to_string(activation)) + " x " + std::string(to_string(format)));
      const int64_t n_rows = 19, n_out = 37, n_in = 333;
      const TestMatrix w = random_matrix(format, n_out, n_in, 1, 64);
      const auto x = random_floats(n_rows * n_in, 2);
      std::vector<float> out(static_cast<size_t>(n_rows * n_out));
      ArenaScope scope(t.arena);
      const auto packed = pack(make_view(x.data(), {n_rows, n_in}), activation, t.ctx);
      ASSERT_TRUE(packed.ok());
      ASSERT_TRUE(
          linear({.x = *packed, .w = &w.matrix, .out = make_view(out.data(), {n_rows, n_out})},
                 t.ctx)
              .ok());
      std::vector<double> expected;
      for (int64_t i = 0; i < n_rows; ++i) append(expected, product(w, x.data() + i * n_in));
      EXPECT_LT(relative_error(out, expected), activation_error(activation));
    }
  }
}

TEST(Reference, PackedRowsHoldRoundedValuesAndTheirSums) {
  TestContext t(reference_table());
  const int64_t n_rows = 18, n_cols = 70;
  auto x = random_floats(n_rows * n_cols, 3);
  std::fill_n(x.begin() + n_cols, n_cols, 0.0f);  // row 1
  x[static_cast<size_t>(2 * n_cols + 5)] = INFINITY;
  const auto rows = pack(make_view(x.data(), {n_rows, n_cols}), DType::i8, t.ctx);
  ASSERT_TRUE(rows.ok());
  EXPECT_EQ(rows->scales[1], 0.0f);
  EXPECT_TRUE(std::isnan(rows->scales[2]));
  for (int64_t i = 0; i < n_rows; ++i) {
    int32_t largest = 0;
    for (int64_t g = 0; g < 4; ++g) {
      int32_t sum = 0;
      for (int64_t k = 32 * g; k < 32 * (g + 1); ++k) {
        const auto q = static_cast<int8_t>(rows->line(i, k / 64)[k % 64]);
        sum += q;
        largest = std::max(largest, std::abs(int32_t{q}));
        if (k >= n_cols) {
          EXPECT_EQ(q, 0);
        } else if (i > 2) {
          EXPECT_NEAR(static_cast<float>(q) * rows->scales[i],
                      x[static_cast<size_t>(i * n_cols + k)], rows->scales[i] * 0.501f);
        }
      }
      EXPECT_EQ(rows->group_sums[i * 4 + g], sum);
    }
    EXPECT_EQ(largest, i == 1 || i == 2 ? 0 : 127);
  }
}

TEST(Reference, RmsNormAndEmbedding) {
  TestContext t(reference_table());
  const int64_t n = 50;
  const auto x = random_floats(3 * n, 4), weight = random_floats(n, 5);
  std::vector<float> out(static_cast<size_t>(3 * n));
  ASSERT_TRUE(rms_norm({.x = make_view(x.data(), {3, n}),
                        .weight = make_view(weight.data(), {n}),
                        .eps = 0.5f,
                        .out = make_view(out.data(), {3, n})},
                       t.ctx)
                  .ok());
  for (int64_t i = 0; i < 3; ++i) {
    double sum = 0;
    for (int64_t j = 0; j < n; ++j) sum += std::pow(x[static_cast<size_t>(i * n + j)], 2);
    const double scale = 1 / std::sqrt(sum / static_cast<double>(n) + 0.5);
    for (int64_t j = 0; j < n; ++j)
      EXPECT_NEAR(out[static_cast<size_t>(i * n + j)],
                  x[static_cast<size_t>(i * n + j)] * scale * weight[static_cast<size_t>(j)], 1e-6);
  }
  const bf16 table[4] = {to_bf16(1), to_bf16(2), to_bf16(3), to_bf16(4)};
  const int32_t ids[2] = {1, 0};
  float rows[4];
  ASSERT_TRUE(embedding({.table = make_view(table, {2, 2}),
                         .ids = make_view(ids, {2}),
                         .out = make_view(rows, {2, 2})},
                        t.ctx)
                  .ok());
  EXPECT_EQ(rows[0], 3.0f);
  EXPECT_EQ(rows[3], 2.0f);
  const int32_t outside[1] = {2};
  EXPECT_FALSE(embedding({.table = make_view(table, {2, 2}),
                          .ids = make_view(outside, {1}),
                          .out = make_view(rows, {1, 2})},
                         t.ctx)
                   .ok());
}

std::vector<double> mlp(const TestMatrix& gate_up, const TestMatrix& down, const float* x) {
  const auto both = product(gate_up, x);
  std::vector<float> hidden(static_cast<size_t>(down.matrix.n_in));
  for (int64_t j = 0; j < down.matrix.n_in; ++j) {
    const double g = both[static_cast<size_t>(gate_row(j))];
    hidden[static_cast<size_t>(j)] =
        static_cast<float>(g / (1 + std::exp(-g)) * both[static_cast<size_t>(up_row(j))]);
  }
  return product(down, hidden.data());
}

TEST(Reference, ExpertsAreWeightedMlpsAndTheSharedOne) {
  TestContext t(reference_table());
  const int64_t hidden = 72, n_inter = 40, n_shared = 56, n_tokens = 5, n_experts = 4, top_k = 2;
  for (DType activation : {DType::f32, DType::bf16, DType::i8}) {
    const WeightFormat format = activation == DType::i8 ? WeightFormat::int4 : WeightFormat::bf16;
    std::vector<TestMatrix> up, down;
    std::vector<PackedMatrix> up_views, down_views;
    for (uint32_t e = 0; e < n_experts; ++e) {
      up.push_back(random_matrix(format, 2 * align_up(n_inter, 16), hidden, 10 + e, 0, true));
      down.push_back(random_matrix(format, hidden, n_inter, 20 + e));
    }
    for (size_t e = 0; e < n_experts; ++e) {
      up_views.push_back(up[e].matrix);
      down_views.push_back(down[e].matrix);
    }
    const auto shared_up = random_matrix(format, 2 * align_up(n_shared, 16), hidden, 30, 0, true);
    const auto shared_down = random_matrix(format, hidden, n_shared, 31);
    const auto x = random_floats(n_tokens * hidden, 32);
    const int32_t ids[] = {0, 1, 2, 3, 0, 3, 1, 3, 1, 2};
    const float weights[] = {.1f, .9f, .5f, .5f, 2.f, 1.f, .3f, .6f, 0.f, 1.f};
    const auto packed = pack(make_view(x.data(), {n_tokens, hidden}), activation, t.ctx);
    ASSERT_TRUE(packed.ok());
    std::vector<float> out(static_cast<size_t>(n_tokens * hidden));
    const Status s = experts({.x = *packed,
                              .gate_up = up_views,
                              .down = down_views,
                              .ids = make_view(ids, {n_tokens, top_k}),
                              .weights = make_view(weights, {n_tokens, top_k}),
                              .shared_gate_up = &shared_up.matrix,
                              .shared_down = &shared_down.matrix,
                              .out = make_view(out.data(), {n_tokens, hidden})},
                             t.ctx);
    ASSERT_TRUE(s.ok()) << s.message();
    std::vector<double> expected;
    for (int64_t i = 0; i < n_tokens; ++i) {
      const float* xi = x.data() + i * hidden;
      auto y = mlp(shared_up, shared_down, xi);
      for (int64_t k = 0; k < top_k; ++k) {
        const auto e = static_cast<size_t>(ids[i * top_k + k]);
        const auto routed = mlp(up[e], down[e], xi);
        for (size_t j = 0; j < y.size(); ++j)
          y[j] += static_cast<double>(weights[i * top_k + k]) * routed[j];
      }
      append(expected, y);
    }
    EXPECT_LT(relative_error(out, expected), 2 * activation_error(activation));
  }
}

TEST(Reference, NotANumberLogitsStillChooseDistinctExperts) {
  TestContext t(reference_table());
  const float nan = std::nanf("");
  const float logits[8] = {nan, 1, nan, nan, nan, nan, 0, nan};
  int32_t ids[3];
  float weights[3];
  for (auto selection : {RouterConfig::Selection::greedy, RouterConfig::Selection::noaux_tc,
                         RouterConfig::Selection::group_limited_greedy}) {
    ASSERT_TRUE(select_experts({.config = {.selection = selection,
                                           .n_experts = 8,
                                           .n_group = 4,
                                           .topk_group = 2,
                                           .top_k = 3},
                                .logits = make_view(logits, {1, 8}),
                                .bias = {},
                                .ids = make_view(ids, {1, 3}),
                                .weights = make_view(weights, {1, 3})},
                               t.ctx)
                    .ok());
    EXPECT_TRUE(0 <= ids[0] && ids[0] < ids[1] && ids[1] < ids[2] && ids[2] < 8);
  }
}

TEST(Reference, TiesGoToTheLowerExpertAndGroup) {
  TestContext t(reference_table());
  const float logits[8] = {0, 0, 0, 0, 0, 0, 0, 0};
  int32_t ids[3];
  float weights[3];
  ASSERT_TRUE(select_experts({.config = {.n_experts = 8,
                                         .n_group = 4,
                                         .topk_group = 2,
                                         .top_k = 3,
                                         .norm_topk_prob = true,
                                         .routed_scaling_factor = 3},
                              .logits = make_view(logits, {1, 8}),
                              .bias = {},
                              .ids = make_view(ids, {1, 3}),
                              .weights = make_view(weights, {1, 3})},
                             t.ctx)
                  .ok());
  EXPECT_EQ(ids[0], 0);
  EXPECT_EQ(ids[1], 1);
  EXPECT_EQ(ids[2], 2);
  EXPECT_FLOAT_EQ(weights[0], 1.0f);
}

// One sequence of attention, in double, from unrounded inputs.
struct Attention {
  static constexpr int64_t kHeads = 3, kNope = 24, kRope = 10, kRank = 40, kValue = 18;
  int64_t n_tokens = 150, n_past = 70;
  std::vector<float> latent = random_floats(n_tokens * kRank, 41);
  std::vector<float> k_rope = random_floats(n_tokens * kRope, 42);
  std::vector<float> q = random_floats(n_tokens * kHeads * (kNope + kRope), 43);
  std::vector<TestMatrix> w_k, w_v;
  std::vector<PackedMatrix> k_views, v_views;
  std::vector<float> cache;
  LatentPages pages;
  std::vector<int32_t> page_numbers = {4, 0, 3};
  float scale = 0.2f;

  explicit Attention(WeightFormat format) {
    for (uint32_t h = 0; h < kHeads; ++h) {
      w_k.push_back(random_matrix(format, kNope, kRank, 50 + h));
      w_v.push_back(random_matrix(format, kValue, kRank, 60 + h));
    }
    for (size_t h = 0; h < kHeads; ++h) {
      k_views.push_back(w_k[h].matrix);
      v_views.push_back(w_v[h].matrix);
    }
    pages = {.dtype = DType::f32, .n_pages = 5, .kv_lora_rank = kRank, .rope_dim = kRope};
    cache.resize(static_cast<size_t>(5 * pages.page_bytes() / 4), std::nanf(""));
    pages.data = reinterpret_cast<std::byte*>(cache.data());
  }
  SequenceRows rows(int64_t begin, int64_t n, AttentionForm form) const {
    return {.row_begin = 0,
            .n_rows = static_cast<int32_t>(n),
            .n_past = static_cast<int32_t>(begin),
            .pages = page_numbers,
            .form = form};
  }
  void store(int64_t begin, int64_t n, OpContext& ctx) {
    const SequenceRows s[] = {rows(begin, n, AttentionForm::expanded)};
    const Status status =
        store_latent({.latent = make_view(latent.data() + begin * kRank, {n, kRank}),
                      .k_rope = make_view(k_rope.data() + begin * kRope, {n, kRope}),
                      .sequences = s,
                      .pages = pages},
                     ctx);
    ASSERT_TRUE(status.ok()) << status.message();
  }
  // [kValue] of one query, and its weights over the tokens.
  std::vector<double> expected(int64_t position, int64_t h, std::vector<double>* probs) const {
    const float* qh = q.data() + (position * kHeads + h) * (kNope + kRope);
    std::vector<double> p, out(kValue);
    std::vector<std::vector<double>> values;
    for (int64_t t = 0; t <= position; ++t) {
      const auto k = product(w_k[static_cast<size_t>(h)], latent.data() + t * kRank);
      values.push_back(product(w_v[static_cast<size_t>(h)], latent.data() + t * kRank));
      double dot = 0;
      for (int64_t i = 0; i < kNope; ++i)
        dot += static_cast<double>(qh[i]) * k[static_cast<size_t>(i)];
      for (int64_t i = 0; i < kRope; ++i)
        dot += static_cast<double>(qh[kNope + i]) *
               static_cast<double>(k_rope[static_cast<size_t>(t * kRope + i)]);
      p.push_back(std::exp(dot * static_cast<double>(scale)));
    }
    const double sum = std::accumulate(p.begin(), p.end(), 0.0);
    for (size_t t = 0; t < p.size(); ++t) {
      p[t] /= sum;
      for (size_t i = 0; i < kValue; ++i) out[i] += p[t] * values[t][i];
    }
    if (probs != nullptr) *probs = p;
    return out;
  }
};

TEST(Reference, ExpandedAttentionAndItsProbabilities) {
  for (WeightFormat format : {WeightFormat::f32, WeightFormat::bf16, WeightFormat::int8}) {
    Attention a(format);
    TestContext t(reference_table());
    a.store(0, a.n_past, t.ctx);
    a.store(a.n_past, a.n_tokens - a.n_past, t.ctx);
    const int64_t n = a.n_tokens - a.n_past, qk = Attention::kNope + Attention::kRope;
    const SequenceRows s[] = {a.rows(a.n_past, n, AttentionForm::expanded)};
    std::vector<float> out(static_cast<size_t>(n * Attention::kHeads * Attention::kValue));
    std::vector<float> probs(static_cast<size_t>(Attention::kHeads * n * a.n_tokens));
    const Status status = mla_expanded(
        {.q = make_view(a.q.data() + a.n_past * Attention::kHeads * qk, {n, Attention::kHeads, qk}),
         .w_k = a.k_views,
         .w_v = a.v_views,
         .activation = activation_dtype(format, true),
         .sequences = s,
         .pages = a.pages,
         .softmax_scale = a.scale,
         .out = make_view(out.data(), {n, Attention::kHeads, Attention::kValue}),
         .probs = make_view(probs.data(), {Attention::kHeads, n, a.n_tokens})},
        t.ctx);
    ASSERT_TRUE(status.ok()) << status.message();
    std::vector<double> expected, expected_probs;
    for (int64_t r = 0; r < n; ++r) {
      for (int64_t h = 0; h < Attention::kHeads; ++h) {
        std::vector<double> p;
        append(expected, a.expected(a.n_past + r, h, &p));
        p.resize(static_cast<size_t>(a.n_tokens));
        for (size_t i = 0; i < p.size(); ++i) {
          const auto at = static_cast<size_t>((h * n + r) * a.n_tokens) + i;
          ASSERT_NEAR(probs[at], p[i], 1e-5);
        }
      }
    }
    EXPECT_LT(relative_error(out, expected), 1e-5);
  }
}

TEST(Reference, AbsorbedAttentionIsTheSameAttention) {
  Attention a(WeightFormat::f32);
  TestContext t(reference_table());
  a.store(0, a.n_tokens, t.ctx);
  const int64_t position = a.n_tokens - 1, heads = Attention::kHeads;
  std::vector<float> q_latent(static_cast<size_t>(heads * Attention::kRank));
  std::vector<float> q_rope, out(q_latent.size());
  for (int64_t h = 0; h < heads; ++h) {
    const float* q = a.q.data() + (position * heads + h) * (Attention::kNope + Attention::kRope);
    for (int64_t c = 0; c < Attention::kRank; ++c) {
      double sum = 0;
      for (int64_t i = 0; i < Attention::kNope; ++i)
        sum +=
            static_cast<double>(a.w_k[static_cast<size_t>(h)].at(i, c)) * static_cast<double>(q[i]);
      q_latent[static_cast<size_t>(h * Attention::kRank + c)] = static_cast<float>(sum);
    }
    q_rope.insert(q_rope.end(), q + Attention::kNope, q + Attention::kNope + Attention::kRope);
  }
  const SequenceRows s[] = {a.rows(position, 1, AttentionForm::absorbed)};
  const Status status =
      mla_absorbed({.q_latent = make_view(q_latent.data(), {1, heads, Attention::kRank}),
                    .q_rope = make_view(q_rope.data(), {1, heads, Attention::kRope}),
                    .sequences = s,
                    .pages = a.pages,
                    .softmax_scale = a.scale,
                    .out = make_view(out.data(), {1, heads, Attention::kRank})},
                   t.ctx);
  ASSERT_TRUE(status.ok()) << status.message();
  std::vector<float> values;
  std::vector<double> expected;
  for (int64_t h = 0; h < heads; ++h) {
    for (double v : product(a.w_v[static_cast<size_t>(h)], out.data() + h * Attention::kRank))
      values.push_back(static_cast<float>(v));
    append(expected, a.expected(position, h, nullptr));
  }
  EXPECT_LT(relative_error(values, expected), 1e-5);
}

TEST(Checks, WrongOperandsAreNamedAndNothingRuns) {
  TestContext t(reference_table());
  const auto x = random_floats(64, 1);
  float out[64];
  const TestMatrix w = random_matrix(WeightFormat::int8, 4, 32, 2);
  const auto rows = pack(make_view(x.data(), {2, 32}), DType::bf16, t.ctx);
  ASSERT_TRUE(rows.ok());
  Status s = linear({.x = *rows, .w = &w.matrix, .out = make_view(out, {2, 4})}, t.ctx);
  EXPECT_EQ(s.code(), StatusCode::internal);
  EXPECT_NE(s.message().find("linear: operand 'w'"), std::string::npos) << s.message();
  s = rms_norm({.x = make_view(x.data(), {2, 32}),
                .weight = make_view(x.data(), {31}),
                .out = make_view(out, {2, 32})},
               t.ctx);
  EXPECT_NE(s.message().find("expected f32 [32], got f32 [31]"), std::string::npos) << s.message();
  const int32_t descending[] = {1, 0};
  const float weights[] = {1, 1};
  const TestMatrix up = random_matrix(WeightFormat::bf16, 32, 32, 3, 0, true);
  const TestMatrix down = random_matrix(WeightFormat::bf16, 32, 16, 4);
  const PackedMatrix ups[] = {up.matrix, up.matrix}, downs[] = {down.matrix, down.matrix};
  PackedRows one = *rows;
  one.n_rows = 1;
  s = experts({.x = one,
               .gate_up = ups,
               .down = downs,
               .ids = make_view(descending, {1, 2}),
               .weights = make_view(weights, {1, 2}),
               .out = make_view(out, {1, 32})},
              t.ctx);
  EXPECT_NE(s.message().find("ascending"), std::string::npos) << s.message();
}

TEST(Checks, PagesOutsideTheCacheAreRefused) {
  Attention a(WeightFormat::f32);
  TestContext t(reference_table());
  a.page_numbers = {0, 5, 1};
  const SequenceRows s[] = {a.rows(0, 65, AttentionForm::expanded)};
  const Status status = store_latent({.latent = make_view(a.latent.data(), {65, Attention::kRank}),
                                      .k_rope = make_view(a.k_rope.data(), {65, Attention::kRope}),
                                      .sequences = s,
                                      .pages = a.pages},
                                     t.ctx);
  EXPECT_EQ(status.code(), StatusCode::internal);
}

TEST(Scratch, TooSmallAnArenaIsSaid) {
  TestContext t(reference_table(), 1, 4096);
  const auto x = random_floats(8192, 1);
  const auto rows = pack(make_view(x.data(), {1, 8192}), DType::f32, t.ctx);
  ASSERT_FALSE(rows.ok());
  EXPECT_EQ(rows.status().code(), StatusCode::resource_exhausted);
}

}  // namespace
}  // namespace exo::ops
