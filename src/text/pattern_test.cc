#include "text/pattern.h"

#include <gtest/gtest.h>

namespace exo::text {
namespace {

std::string translated(std::string_view pattern) {
  const auto result = translate_oniguruma(pattern);
  return result.ok() ? *result : "error: " + result.status().message();
}

// "begin-end" of every match in turn, or the error.
std::string matches(std::string_view pattern, std::string_view text, bool literal = false) {
  const auto compiled = Pattern::compile(pattern, literal);
  if (!compiled.ok()) return "error: " + compiled.status().message();
  Pattern::Scratch scratch(*compiled);
  std::string out;
  for (size_t at = 0; at < text.size();) {
    const auto match = compiled->find(text, at, scratch);
    if (!match.ok()) return "error: " + match.status().message();
    if (match->found) out += std::to_string(match->begin) + "-" + std::to_string(match->end) + " ";
    at = match->end;
  }
  return out;
}

TEST(Pattern, TranslatesWhatDiffers) {
  EXPECT_EQ(translated(R"(\s+(?!\S)|\s+)"),
            R"(\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+)");
  EXPECT_EQ(translated(R"([^\s\p{L}]\[\]|a{1,3}(?i:'s)(?>x)(?<=y)(?<!z)(?=w)(?:v))"),
            R"([^\p{White_Space}\p{L}]\[\]|a{1,3}(?i:'s)(?>x)(?<=y)(?<!z)(?=w)(?:v))");
  EXPECT_EQ(translated("[^]-]").substr(0, 6), "error:");
}

TEST(Pattern, RefusesWhatIsReadDifferently) {
  for (const char* pattern : {R"(\w+)",
                              R"(\bword\b)",
                              R"(\h)",
                              R"(\X)",
                              R"((a)\1)",
                              R"(\x41)",
                              R"(\u0041)",
                              R"(\G)",
                              R"(\pL)",
                              R"(\p{Han})",
                              R"(\p{Alphabetic})",
                              R"(\p{L)",
                              R"(\p)",
                              "\\",
                              "[a[b]]",
                              "[a&&b]",
                              "[]",
                              "(?m:.)",
                              "(?<name>a)",
                              "(?~a)",
                              "a{,3}",
                              "a{1,3}+",
                              "a{2}?",
                              "(?#c)"}) {
    const auto result = translate_oniguruma(pattern);
    ASSERT_FALSE(result.ok()) << pattern << " -> " << *result;
    EXPECT_EQ(result.status().code(), StatusCode::unimplemented);
    EXPECT_NE(result.status().message().find(pattern), std::string::npos);
  }
}

TEST(Pattern, RefusesWhatIsNoPattern) {
  for (const char* pattern : {"(", "a)", "[a", "*", "[z-a]", "a{3,1}"})
    EXPECT_EQ(matches(pattern, "a").substr(0, 6), "error:") << pattern;
  EXPECT_NE(matches("a*", "a").find("can match nothing"), std::string::npos);
  EXPECT_NE(matches("", "a", true).find("can match nothing"), std::string::npos);
  EXPECT_NE(matches(std::string(1 << 20, 'a'), "a").find("at most"), std::string::npos);
  EXPECT_EQ(matches(std::string(60000, '('), "a").substr(0, 6), "error:");
}

TEST(Pattern, WhiteSpaceIsUnicodes) {
  EXPECT_EQ(matches(R"(\s)", "\u00a0x\u0085\u2028\u3000"), "0-2 3-5 5-8 8-11 ");
  EXPECT_EQ(matches(R"(\s)", "\u180e\u200b\ufeff"), "");
}

TEST(Pattern, EndIsTheEndOfAnyLine) {
  EXPECT_EQ(matches(R"(b$)", "ab\nb"), "1-2 3-4 ");
  EXPECT_EQ(matches(R"(\s+$)", "a  b \t"), "4-6 ");
  EXPECT_EQ(matches(R"(\s+$)", "a  \n  b"), "1-3 ");
  EXPECT_EQ(matches(R"(\s+$)", "\n"), "0-1 ");
  EXPECT_EQ(matches(R"(\s+$)", "  \n"), "0-3 ");
}

TEST(Pattern, LiteralsAreNoExpressions) {
  EXPECT_EQ(matches("a.", "aba.", true), "2-4 ");
  EXPECT_EQ(matches(R"(\s)", R"( \s)", true), "1-3 ");
}

// Quadratic if every start is tried: 10^12 steps.
TEST(Pattern, TrailingSpaceSearchIsLinear) {
  const std::string text = std::string(1'000'000, ' ') + "1";
  EXPECT_EQ(matches(R"(\s+$)", text), "");
}

TEST(Pattern, DeepMatchesGetMoreStackAndEndInAnError) {
  std::string text;
  for (int i = 0; i < 3000; ++i) text += "ab";
  EXPECT_EQ(matches("(?:a|b)+(?!c)", text), "0-" + std::to_string(text.size()) + " ");
  while (text.size() < (8 << 20)) text += text;
  const std::string error = matches("(?:a|b)+(?!c)", text);
  EXPECT_NE(error.find("(?:a|b)+(?!c)"), std::string::npos) << error;
}

TEST(Pattern, CatastrophicBacktrackingEndsInAnError) {
  const std::string error = matches("(?:a+)+[bc]", std::string(64, 'a'));
  EXPECT_NE(error.find("limit"), std::string::npos) << error;
}

}  // namespace
}  // namespace exo::text
