#include "text/added_tokens.h"

#include <fmt/core.h>
#include <gtest/gtest.h>

namespace exo::text {
namespace {

AddedToken token(const std::string& text, int32_t id, bool lstrip = false, bool rstrip = false) {
  return {text, id, lstrip, rstrip};
}

// "[begin,end)=id" of every match in turn.
std::string matches(const AddedTokens& tokens, std::string_view text) {
  std::string out;
  size_t at = 0;
  while (const auto match = tokens.find(text, at)) {
    out += fmt::format("[{},{})={} ", match->begin, match->end, match->id);
    at = match->end;
  }
  return out;
}

TEST(AddedTokens, LeftmostThenLongest) {
  const AddedTokens tokens(
      {token("<a>", 1), token("<a>bc", 2), token("<", 3), token("bc", 4), token("<a>bcd!", 5)});
  EXPECT_EQ(matches(tokens, "x<a>bcd"), "[1,6)=2 ");
  EXPECT_EQ(matches(tokens, "<a>bcd!<a"), "[0,7)=5 [7,8)=3 ");
  EXPECT_EQ(matches(tokens, "<a>b bc"), "[0,3)=1 [5,7)=4 ");
  EXPECT_EQ(matches(tokens, "plain"), "");
  EXPECT_EQ(matches(tokens, ""), "");
  EXPECT_EQ(matches(AddedTokens(), "<a>"), "");
  EXPECT_EQ(matches(AddedTokens(std::vector<AddedToken>()), "<a>"), "");
}

TEST(AddedTokens, StripFlagsTakeWhiteSpaceOfAnyKind) {
  const AddedTokens left({token("L", 1, true, false)});
  EXPECT_EQ(matches(left, "a \n\u3000L b"), "[1,7)=1 ");
  EXPECT_EQ(matches(left, "  L"), "[0,3)=1 ");
  EXPECT_EQ(matches(left, "L L"), "[0,1)=1 [1,3)=1 ");
  const AddedTokens right({token("R", 1, false, true)});
  EXPECT_EQ(matches(right, "aR \u00a0b R"), "[1,5)=1 [7,8)=1 ");
  EXPECT_EQ(matches(right, "R \u200b"), "[0,2)=1 ");  // zero width space is not white space
  // What the first has taken the second can't.
  const AddedTokens both({token("B", 1, true, true)});
  EXPECT_EQ(matches(both, "B B"), "[0,2)=1 [2,3)=1 ");
}

}  // namespace
}  // namespace exo::text
