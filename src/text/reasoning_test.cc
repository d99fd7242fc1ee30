#include "text/reasoning.h"

#include <gtest/gtest.h>

#include <vector>

namespace exo::text {
namespace {

using Pieces = std::pair<std::string, std::string>;

Pieces run(ReasoningStart start, const std::vector<std::string_view>& pieces) {
  ReasoningSplitter splitter(start);
  Pieces out;
  const auto take = [&](const ReasoningSplitter::Piece& piece) {
    out.first += piece.reasoning;
    out.second += piece.content;
  };
  for (const std::string_view piece : pieces) take(splitter.push(piece));
  take(splitter.finish());
  return out;
}

// Whole, byte by byte, and cut at every two places.
void expect_split(ReasoningStart start, std::string_view text, const Pieces& want) {
  SCOPED_TRACE(text);
  EXPECT_EQ(run(start, {text}), want);
  std::vector<std::string_view> bytes;
  for (size_t i = 0; i < text.size(); ++i) bytes.push_back(text.substr(i, 1));
  EXPECT_EQ(run(start, bytes), want);
  for (size_t i = 0; i <= text.size(); ++i)
    for (size_t j = i; j <= text.size(); ++j)
      ASSERT_EQ(run(start, {text.substr(0, i), text.substr(i, j - i), text.substr(j)}), want)
          << i << " " << j;
}

TEST(Reasoning, OpenedInThePrompt) {
  constexpr auto kStart = ReasoningStart::in_prompt;
  expect_split(kStart, "hm\n</think>\n\nYes.", {"hm\n", "\n\nYes."});
  expect_split(kStart, "</think>Yes.", {"", "Yes."});
  expect_split(kStart, "a</think>b</think><think>c", {"a", "b</think><think>c"});
  expect_split(kStart, "a<</thi</think>b", {"a<</thi", "b"});
  expect_split(kStart, "<think>a</think>b", {"<think>a", "b"});
  // It ended before the closing tag: all of it is reasoning, a half tag too.
  expect_split(kStart, "endless", {"endless", ""});
  expect_split(kStart, "almost</think", {"almost</think", ""});
  expect_split(kStart, "", {"", ""});
}

TEST(Reasoning, OpenedByTheModel) {
  constexpr auto kStart = ReasoningStart::by_model;
  expect_split(kStart, "<think>\nhm</think>Yes", {"\nhm", "Yes"});
  expect_split(kStart, " \n<think>hm</think>Yes", {" \nhm", "Yes"});
  expect_split(kStart, "No <think>, </think> here", {"", "No <think>, </think> here"});
  expect_split(kStart, "<thin", {"", "<thin"});
  expect_split(kStart, "\n\n", {"", "\n\n"});
  expect_split(kStart, "<think>", {"", ""});
  expect_split(kStart, "", {"", ""});
}

TEST(Reasoning, NoneIsAllContent) {
  expect_split(ReasoningStart::none, "<think>a</think>b", {"", "<think>a</think>b"});
}

TEST(Reasoning, TextThatCannotBeATagIsNotHeldBack) {
  ReasoningSplitter splitter(ReasoningStart::in_prompt);
  EXPECT_TRUE(splitter.in_reasoning());
  EXPECT_EQ(splitter.push("so a < b").reasoning, "so a < b");
  EXPECT_EQ(splitter.push("c</th").reasoning, "c");
  EXPECT_EQ(splitter.push("e").reasoning, "</the");
  EXPECT_EQ(splitter.push("</think>now").content, "now");
  EXPECT_FALSE(splitter.in_reasoning());
  EXPECT_EQ(splitter.push("</thi").content, "</thi");
}

}  // namespace
}  // namespace exo::text
