#include "text/jsonl.h"

#include "text/test_data.h"

namespace exo::text {
namespace {

std::string answer(const Result<std::string>& result) {
  return result.ok() ? *result : "error: " + result.status().message();
}

TEST(Jsonl, TokenizesLines) {
  const Tokenizer& tokenizer = shared_tokenizer("deepseek-v3");
  EXPECT_EQ(answer(tokenize_line(tokenizer, R"({"text": "Hello, world!"})")),
            R"({"ids":[19923,14,2058,3]})");
  EXPECT_EQ(answer(tokenize_line(tokenizer, R"({"text": ""})")), R"({"ids":[]})");
  EXPECT_EQ(answer(tokenize_line(tokenizer, R"({"text": "\u0000"})")), R"({"ids":[191]})");
  for (const char* line :
       {"", "{", "[]", "{}", R"({"text": 5})", R"({"text": "\ud800"})", R"({"text": "\udc00x"})",
        "{\"text\": \"\xff\"}", R"({"text": "a"} {"text": "b"})"})
    EXPECT_EQ(answer(tokenize_line(tokenizer, line)).substr(0, 18), "error: input line:") << line;
}

TEST(Jsonl, DecodesLines) {
  const Tokenizer& tokenizer = shared_tokenizer("deepseek-v3");
  EXPECT_EQ(
      answer(detokenize_line(tokenizer, R"({"ids": [0, 19923], "skip_special_tokens": true})")),
      R"({"text":"Hello"})");
  EXPECT_EQ(answer(detokenize_line(tokenizer, R"({"ids": [19923, 0]})")),
            R"({"text":"Hello<｜begin▁of▁sentence｜>"})");
  EXPECT_EQ(answer(detokenize_line(tokenizer, R"({"ids": [128815, 2147483647]})")),
            R"({"text":""})");
  for (const char* line : {R"({"ids": 5})", R"({"ids": [-1]})", R"({"ids": [1.5]})",
                           R"({"ids": ["a"]})", R"({"ids": [2147483648]})",
                           R"({"ids": [1], "skip_special_tokens": 1})", R"({"text": "a"})"})
    EXPECT_EQ(answer(detokenize_line(tokenizer, line)).substr(0, 18), "error: input line:") << line;
}

TEST(Jsonl, RendersLinesWithAndWithoutATokenizer) {
  const ChatFormat& format = **chat_format_by_name("deepseek-v3");
  const char* line = R"({"messages": [{"role": "user", "content": "Hi"}], "tools": null,)"
                     R"( "add_generation_prompt": true, "kwargs": null})";
  EXPECT_EQ(answer(render_line(format, nullptr, line)),
            R"({"prompt":"<｜begin▁of▁sentence｜><｜User｜>Hi<｜Assistant｜>"})");
  EXPECT_EQ(
      answer(render_line(format, &shared_tokenizer("deepseek-v3"), line)),
      R"({"prompt":"<｜begin▁of▁sentence｜><｜User｜>Hi<｜Assistant｜>","ids":[0,128803,23166,128804]})");
  EXPECT_EQ(
      answer(render_line(format, nullptr, R"({"messages": [{"role": "user"}]})")).substr(0, 6),
      "error:");
}

}  // namespace
}  // namespace exo::text
