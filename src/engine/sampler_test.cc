#include "engine/sampler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>

namespace exo::engine {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::map<int32_t, int> draws(Sampler& sampler, const std::vector<float>& logits, int n) {
  std::map<int32_t, int> counts;
  for (int i = 0; i < n; ++i) {
    auto token = sampler.sample(logits);
    EXPECT_TRUE(token.ok());
    if (token.ok()) ++counts[*token];
  }
  return counts;
}

TEST(Sampler, GreedyTakesTheLowestIdOfTheHighest) {
  Sampler sampler({}, {});
  EXPECT_EQ(*sampler.sample(std::vector<float>{1, 3, 3, 2}), 1);
  EXPECT_EQ(*sampler.sample(std::vector<float>{-5, -4}), 1);
}

TEST(Sampler, NanAndInfinity) {
  for (double temperature : {0.0, 1.0}) {
    SamplingOptions options;
    options.temperature = temperature;
    Sampler sampler(options, {});
    EXPECT_EQ(*sampler.sample(std::vector<float>{kNan, -kInfinity, 2, kNan}), 2);
    EXPECT_EQ(*sampler.sample(std::vector<float>{1, kInfinity, kInfinity}), 1);
    auto none = sampler.sample(std::vector<float>{kNan, -kInfinity});
    ASSERT_FALSE(none.ok());
    EXPECT_THAT(none.status().message(), HasSubstr("none of 2 logits"));
    EXPECT_FALSE(sampler.sample({}).ok());
  }
}

TEST(Sampler, UndefinedIdsAreNeverDrawn) {
  SamplingOptions options;
  Sampler greedy(options, {1, 700});
  EXPECT_EQ(*greedy.sample(std::vector<float>{0, 9, 1}), 2);
  options.temperature = 5;
  options.logit_bias = {{1, 100}};
  Sampler warm(options, {1});
  EXPECT_FALSE(draws(warm, {0, 9, 1}, 500).contains(1));
}

TEST(Sampler, SameSeedSameTokensAndKnownOnes) {
  SamplingOptions options;
  options.temperature = 1;
  options.seed = 42;
  const std::vector<float> logits{0.1f, 0.5f, 0.2f, 0.9f, 0.0f, -0.4f};
  Sampler a(options, {}), b(options, {});
  std::vector<int32_t> from_a, from_b;
  for (int i = 0; i < 12; ++i) {
    from_a.push_back(*a.sample(logits));
    from_b.push_back(*b.sample(logits));
  }
  EXPECT_EQ(from_a, from_b);
  // Cumulative 0.136353 0.339768 0.490461 0.793920 0.917298 1 against mt19937_64(42)'s uniforms
  // 0.7552 0.6390 0.7521 0.136273 0.9033 0.0941 0.5746 0.3729 0.2739 0.3903 0.0124 0.5237.
  EXPECT_THAT(from_a, ElementsAre(3, 3, 3, 0, 4, 0, 3, 2, 1, 2, 0, 3));
}

TEST(Sampler, DrawsFollowTheSoftmax) {
  SamplingOptions options;
  options.temperature = 0.5;
  Sampler sampler(options, {});
  const std::vector<float> logits{std::log(1.0f), std::log(2.0f), std::log(3.0f)};
  const int n = 20000;
  auto counts = draws(sampler, logits, n);  // at temperature 0.5: 1 : 4 : 9
  EXPECT_NEAR(counts[0] / static_cast<double>(n), 1.0 / 14, 0.01);
  EXPECT_NEAR(counts[1] / static_cast<double>(n), 4.0 / 14, 0.015);
  EXPECT_NEAR(counts[2] / static_cast<double>(n), 9.0 / 14, 0.015);
}

TEST(Sampler, TopKTopPMinP) {
  const std::vector<float> logits{std::log(0.1f), std::log(0.2f), std::log(0.3f), std::log(0.4f)};
  SamplingOptions options;
  options.temperature = 1;
  options.top_k = 2;
  Sampler top_k(options, {});
  auto counts = draws(top_k, logits, 4000);
  EXPECT_EQ(counts.size(), 2u);
  EXPECT_NEAR(counts[3] / 4000.0, 4.0 / 7, 0.03);

  options.top_k = 0;
  options.top_p = 0.65;  // 0.4 + 0.3 reaches it
  Sampler top_p(options, {});
  counts = draws(top_p, logits, 4000);
  EXPECT_EQ(counts.size(), 2u);
  EXPECT_TRUE(counts.contains(2) && counts.contains(3));

  options.top_p = 1e-9;  // the best one stays whatever top_p
  Sampler tiny_top_p(options, {});
  EXPECT_EQ(draws(tiny_top_p, logits, 50).size(), 1u);

  options.top_p = 1;
  options.min_p = 0.6;  // at least 0.6 * 0.4
  Sampler min_p(options, {});
  counts = draws(min_p, logits, 4000);
  EXPECT_EQ(counts.size(), 2u);

  // top_p applies to what top_k left: of {0.4, 0.3} 0.5 is reached by the first.
  options.min_p = 0;
  options.top_k = 2;
  options.top_p = 0.5;
  Sampler both(options, {});
  EXPECT_EQ(draws(both, logits, 200).size(), 1u);
}

TEST(Sampler, TypicalP) {
  // Probabilities 0.5, 0.25, 0.15, 0.1: entropy 1.2080 nats; -log p is 0.6931, 1.3863, 1.8971,
  // 2.3026, so the order of distances is 1 (0.178), 0 (0.515), 2 (0.689), 3 (1.095).
  const std::vector<float> logits{std::log(0.5f), std::log(0.25f), std::log(0.15f), std::log(0.1f)};
  const auto drawn = [&](double typical_p, int32_t top_k) {
    SamplingOptions options;
    options.temperature = 1;
    options.typical_p = typical_p;
    options.top_k = top_k;
    Sampler sampler(options, {});
    std::vector<int32_t> ids;
    for (const auto& [id, count] : draws(sampler, logits, 400)) ids.push_back(id);
    return ids;
  };
  EXPECT_THAT(drawn(0.2, 0), ElementsAre(1));
  EXPECT_THAT(drawn(0.3, 0), ElementsAre(0, 1));
  EXPECT_THAT(drawn(0.8, 0), ElementsAre(0, 1, 2));
  EXPECT_THAT(drawn(1, 0), ElementsAre(0, 1, 2, 3));
  // Of the two that top_k leaves (2/3 and 1/3; entropy 0.6365) the first is the nearer one.
  EXPECT_THAT(drawn(0.5, 2), ElementsAre(0));
}

TEST(Sampler, TopPOverAFlatVocabularyKeepsItsShare) {
  // More candidates than the first sorted run: the growing sort must not lose any.
  SamplingOptions options;
  options.temperature = 1;
  options.top_p = 0.5;
  Sampler sampler(options, {});
  const std::vector<float> logits(1200, 0.0f);
  auto counts = draws(sampler, logits, 6000);
  EXPECT_LE(counts.rbegin()->first, 600);  // equal logits: the lower ids are kept
  EXPECT_GT(counts.size(), 590u);
}

TEST(Sampler, Penalties) {
  SamplingOptions options;
  options.repetition_penalty = 2;
  Sampler repetition(options, {});
  repetition.observe_prompt(std::vector<int32_t>{0, 0});
  EXPECT_EQ(*repetition.sample(std::vector<float>{3, 2, -1}), 1);    // 3 / 2 < 2, once
  EXPECT_EQ(*repetition.sample(std::vector<float>{3, 2, 1.4f}), 0);  // now 1.5, 1 and 1.4
  Sampler negative(options, {});
  negative.observe_prompt(std::vector<int32_t>{0});
  EXPECT_EQ(*negative.sample(std::vector<float>{-1, -1.5f}), 1);  // -2 and -1.5

  SamplingOptions presence;
  presence.presence_penalty = 1;
  Sampler by_presence(presence, {});
  by_presence.observe_prompt(std::vector<int32_t>{0});             // the prompt doesn't count
  EXPECT_EQ(*by_presence.sample(std::vector<float>{3, 2.5f}), 0);  // then 2 : 2.5
  EXPECT_EQ(*by_presence.sample(std::vector<float>{3, 2.5f}), 1);  // then 2 : 1.5
  EXPECT_EQ(*by_presence.sample(std::vector<float>{3, 2.5f}), 0);
  EXPECT_EQ(*by_presence.sample(std::vector<float>{3, 2.5f}), 0);  // once, however often it came

  SamplingOptions frequency;
  frequency.frequency_penalty = 0.4;
  Sampler by_frequency(frequency, {});
  EXPECT_EQ(*by_frequency.sample(std::vector<float>{3, 2.5f}), 0);  // 2.6
  EXPECT_EQ(*by_frequency.sample(std::vector<float>{3, 2.5f}), 0);  // 2.2
  EXPECT_EQ(*by_frequency.sample(std::vector<float>{3, 2.5f}), 1);

  SamplingOptions biased;
  biased.logit_bias = {{1, 2.0f}, {9, 50.0f}};  // an id beyond the vocabulary has no effect
  Sampler bias(biased, {});
  EXPECT_EQ(*bias.sample(std::vector<float>{3, 2.5f}), 1);
}

TEST(Sampler, OptionsAreChecked) {
  EXPECT_TRUE(check(SamplingOptions{}).ok());
  const auto message = [](auto change) {
    SamplingOptions options;
    change(options);
    return check(options).message();
  };
  EXPECT_THAT(message([](auto& o) { o.temperature = -1; }), HasSubstr("temperature: expected 0"));
  EXPECT_THAT(message([](auto& o) { o.temperature = std::nan(""); }), HasSubstr("temperature"));
  EXPECT_THAT(message([](auto& o) { o.top_k = -1; }), HasSubstr("top_k"));
  EXPECT_THAT(message([](auto& o) { o.top_p = 0; }), HasSubstr("top_p"));
  EXPECT_THAT(message([](auto& o) { o.top_p = 1.1; }), HasSubstr("got 1.1"));
  EXPECT_THAT(message([](auto& o) { o.min_p = 2; }), HasSubstr("min_p"));
  EXPECT_THAT(message([](auto& o) { o.typical_p = 0; }), HasSubstr("typical_p"));
  EXPECT_THAT(message([](auto& o) { o.repetition_penalty = 0; }), HasSubstr("repetition_penalty"));
  EXPECT_THAT(message([](auto& o) { o.presence_penalty = 1e9; }), HasSubstr("presence_penalty"));
  EXPECT_THAT(message([](auto& o) { o.frequency_penalty = std::nan(""); }), HasSubstr("frequency"));
  EXPECT_THAT(message([](auto& o) { o.logit_bias = {{-1, 0.f}}; }), HasSubstr("logit_bias"));
  EXPECT_THAT(message([](auto& o) { o.logit_bias = {{1, kNan}}; }), HasSubstr("token 1"));
}

}  // namespace
}  // namespace exo::engine
