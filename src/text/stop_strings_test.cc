#include "text/stop_strings.h"

#include <gtest/gtest.h>

#include <random>

namespace exo::text {
namespace {

struct Outcome {
  std::string text;
  std::optional<size_t> stop;
  bool operator==(const Outcome&) const = default;
};

Outcome run(const std::vector<std::string>& stops, const std::vector<std::string>& pieces) {
  auto matcher = StopStrings::create(stops);
  EXPECT_TRUE(matcher.ok());
  Outcome out;
  for (const std::string& piece : pieces) {
    const auto step = matcher->push(piece);
    out.text += step.text;
    out.stop = step.stop;
  }
  out.text += matcher->finish();
  return out;
}

// The stop that is complete first, the longest of those complete there; all text without one.
Outcome by_definition(const std::vector<std::string>& stops, const std::string& text) {
  for (size_t end = 1; end <= text.size(); ++end) {
    std::optional<size_t> best;
    for (size_t i = 0; i < stops.size(); ++i)
      if (std::string_view(text).substr(0, end).ends_with(stops[i]) &&
          (!best || stops[i].size() > stops[*best].size()))
        best = i;
    if (best) return {text.substr(0, end - stops[*best].size()), best};
  }
  return {text, std::nullopt};
}

TEST(StopStrings, EqualTheDefinitionHoweverTheTextIsCut) {
  std::mt19937 random(3);
  const auto word = [&](size_t max, size_t min) {
    std::string text;
    for (size_t n = min + random() % (max - min + 1); n > 0; --n)
      text += static_cast<char>('a' + random() % 2);
    return text;
  };
  int n_stopped = 0;
  for (int round = 0; round < 4000; ++round) {
    std::vector<std::string> stops;
    for (size_t n = random() % 4; n > 0; --n) stops.push_back(word(7, 1));
    const std::string text = word(30, 0);
    std::vector<std::string> pieces;
    for (size_t at = 0; at < text.size();) {
      const size_t n = random() % 6;
      pieces.push_back(text.substr(at, n));
      at += n;
    }
    const Outcome want = by_definition(stops, text);
    ASSERT_EQ(run(stops, pieces), want) << text;
    if (want.stop) ++n_stopped;
  }
  EXPECT_GT(n_stopped, 1000);
}

TEST(StopStrings, HoldBackTheLongestPossibleBeginningAndNoMore) {
  auto matcher = *StopStrings::create({"\n\nUser:", "END"});
  EXPECT_EQ(matcher.push("hello\n").text, "hello");
  EXPECT_EQ(matcher.push("\n").text, "");
  EXPECT_EQ(matcher.push("\nUs").text, "\n");  // "\n\nUs" is held
  EXPECT_EQ(matcher.push("e E").text, "\n\nUse ");
  EXPECT_EQ(matcher.push("N").text, "");
  const auto step = matcher.push("D tail");
  EXPECT_EQ(step.text, "");
  EXPECT_EQ(step.stop, 1u);
  EXPECT_EQ(matcher.push("more").text, "");
  EXPECT_EQ(matcher.push("more").stop, 1u);
  EXPECT_EQ(matcher.finish(), "");
}

TEST(StopStrings, WithoutStopsAllPasses) {
  auto matcher = *StopStrings::create({});
  EXPECT_EQ(matcher.push("abc").text, "abc");
  EXPECT_EQ(matcher.finish(), "");
}

TEST(StopStrings, AnEmptyOneIsAnError) {
  const auto matcher = StopStrings::create({"x", ""});
  ASSERT_FALSE(matcher.ok());
  EXPECT_EQ(matcher.status().code(), StatusCode::invalid_argument);
}

TEST(StopStrings, LinearOnHostileText) {
  auto matcher = *StopStrings::create({std::string(100'000, 'a') + "b"});
  const std::string text(1'000'000, 'a');
  EXPECT_EQ(matcher.push(text).text.size(), text.size() - 100'000);
  EXPECT_EQ(matcher.finish().size(), 100'000u);
}

}  // namespace
}  // namespace exo::text
