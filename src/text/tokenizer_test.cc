#include "text/tokenizer.h"

#include <atomic>
#include <ctime>
#include <functional>
#include <thread>

#include "base/utf8.h"
#include "text/test_data.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define EXO_SANITIZED
#endif

namespace exo::text {
namespace {

const char* const kFolders[] = {"deepseek-v2",   "deepseek-v2.5", "deepseek-v3", "deepseek-r1",
                                "deepseek-v3.1", "deepseek-v3.2", "deepseek-v4"};

using Ids = std::vector<int32_t>;

void expect_ids(const Tokenizer& tokenizer, const std::string& text, const Json& ids) {
  const auto got = tokenizer.encode(text);
  ASSERT_TRUE(got.ok()) << got.status().message();
  EXPECT_EQ(*got, ids.get<Ids>()) << Json(text).dump();
}

TEST(TokenizerGoldens, Encode) {
  for (const auto& [file, folder] : {std::pair("cases.jsonl", "deepseek-v3"),
                                     std::pair("cases-deepseek-r1.jsonl", "deepseek-r1"),
                                     std::pair("cases-deepseek-v3.1.jsonl", "deepseek-v3.1"),
                                     std::pair("cases-deepseek-v2.jsonl", "deepseek-v2"),
                                     std::pair("cases-deepseek-v4.jsonl", "deepseek-v4")}) {
    SCOPED_TRACE(file);
    const Tokenizer& tokenizer = shared_tokenizer(folder);
    for (const Json& row : read_jsonl(std::string("goldens/tokenizer/") + file)) {
      const auto text = row["text"].get<std::string>();
      expect_ids(tokenizer, text, row["ids"]);
      EXPECT_EQ(tokenizer.decode(row["ids"].get<Ids>(), false), text);
    }
  }
}

TEST(TokenizerGoldens, Decode) {
  for (const auto& [file, folder] : {std::pair("decode.jsonl", "deepseek-v3"),
                                     std::pair("decode-deepseek-r1.jsonl", "deepseek-r1")}) {
    SCOPED_TRACE(file);
    const Tokenizer& tokenizer = shared_tokenizer(folder);
    for (const Json& row : read_jsonl(std::string("goldens/tokenizer/") + file))
      EXPECT_EQ(tokenizer.decode(row["ids"].get<Ids>(), row["skip_special_tokens"]), row["text"])
          << row.dump();
  }
}

TEST(TokenizerGoldens, TestVectorsOfAllSevenFolders) {
  for (const char* folder : kFolders) {
    SCOPED_TRACE(folder);
    const Tokenizer& tokenizer = shared_tokenizer(folder);
    const auto json = read_json_file(
        shared_path(std::string("facts/tokenizers/") + folder + "/test_vectors.json"));
    ASSERT_TRUE(json.ok()) << json.status().message();
    ASSERT_GE((*json)["vectors"].size(), 40u);
    for (const Json& row : (*json)["vectors"]) {
      expect_ids(tokenizer, row["text"], row["ids"]);
      EXPECT_EQ(tokenizer.decode(row["ids"].get<Ids>(), false), row["text"]);
    }
  }
}

TEST(Tokenizer, KnowsItsIds) {
  const Tokenizer& v3 = shared_tokenizer("deepseek-v3");
  EXPECT_EQ(v3.n_ids(), 128815);
  EXPECT_EQ(v3.bos_id(), 0);
  EXPECT_EQ(v3.eos_id(), 1);
  EXPECT_TRUE(v3.config().add_bos_token);
  EXPECT_TRUE(v3.is_special(0));
  EXPECT_FALSE(v3.is_special(128803));  // <｜User｜> stays in the text
  EXPECT_FALSE(v3.is_special(128805 + 100));
  EXPECT_EQ(v3.id_of("<｜User｜>"), 128803);
  EXPECT_EQ(v3.id_of("Hello"), 19923);
  EXPECT_EQ(v3.id_of("Hello, world, and more"), std::nullopt);
  EXPECT_EQ(v3.token_bytes(19923), "Hello");
  EXPECT_EQ(v3.token_bytes(0), "<｜begin▁of▁sentence｜>");
  EXPECT_EQ(v3.token_bytes(-1), "");
  EXPECT_EQ(v3.token_bytes(128815), "");

  const Ids undefined = v3.undefined_ids(129280);
  ASSERT_EQ(undefined.size(), 465u);
  EXPECT_EQ(undefined.front(), 128815);
  EXPECT_EQ(undefined.back(), 129279);
  EXPECT_TRUE(shared_tokenizer("deepseek-v4").undefined_ids(129280).empty());

  const Tokenizer& r1 = shared_tokenizer("deepseek-r1");  // has no tokenizer_config.json
  EXPECT_EQ(r1.bos_id(), 0);
  EXPECT_EQ(r1.eos_id(), 1);
  EXPECT_FALSE(r1.config().chat_template.has_value());
  EXPECT_EQ(r1.id_of("<think>"), 128798);
  EXPECT_EQ(shared_tokenizer("deepseek-v2").bos_id(), 100000);
}

TEST(Tokenizer, LoadsAFileAsWellAsAFolder) {
  const auto tokenizer =
      Tokenizer::load(shared_path("facts/tokenizers/deepseek-v2/tokenizer.json"));
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().message();
  EXPECT_TRUE(tokenizer->config().chat_template.has_value());
  const auto missing = Tokenizer::load(shared_path("facts/tokenizers"));
  ASSERT_FALSE(missing.ok());
  EXPECT_NE(missing.status().message().find("tokenizer.json"), std::string::npos);
}

TEST(Tokenizer, IllFormedTextIsReadAsReplacementCharacters) {
  const Tokenizer& tokenizer = shared_tokenizer("deepseek-v3");
  for (const auto& [broken, repaired] :
       {std::pair("a\xff"
                  "b",
                  "a\ufffd"
                  "b"),
        std::pair("\xe4\xb8", "\ufffd"), std::pair("\xed\xa0\x80", "\ufffd\ufffd\ufffd"),
        std::pair("<\xc0<think>", "<\ufffd<think>")}) {
    const auto got = tokenizer.encode(broken), want = tokenizer.encode(repaired);
    ASSERT_TRUE(got.ok() && want.ok());
    EXPECT_EQ(*got, *want);
  }
  const std::string nul("a\0b", 3);
  EXPECT_EQ(tokenizer.decode(*tokenizer.encode(nul), false), nul);
}

TEST(Tokenizer, ServesSeveralThreads) {
  const Tokenizer& tokenizer = shared_tokenizer("deepseek-v3");
  const std::string text = "Once upon a time, in 1984, 中文 and more…\n";
  const Ids want = *tokenizer.encode(text);
  std::vector<std::thread> threads;
  std::atomic<int> n_equal = 0;
  for (int i = 0; i < 4; ++i)
    threads.emplace_back([&] {
      for (int k = 0; k < 50; ++k)
        if (*tokenizer.encode(text) == want && tokenizer.decode(want, false) == text) ++n_equal;
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(n_equal, 200);
}

// Processor time of this process: other programs on the machine hardly count.
double seconds_of(const std::function<void()>& work) {
  const std::clock_t begin = std::clock();
  work();
  return static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC;
}

#if defined(NDEBUG) && defined(__OPTIMIZE__) && !defined(EXO_SANITIZED)
constexpr bool kTimed = true;
#else
constexpr bool kTimed = false;
#endif

// A megabyte takes 0.04 to 0.5 s, some ten times as much under a sanitizer, which gets a fifth of
// it; quadratic time would be hours.
TEST(TokenizerSpeed, HostileTextIsNearLinear) {
  constexpr double kLimitSeconds = kTimed ? 2 : 30;
  constexpr size_t kBytes = kTimed ? 1'000'000 : 200'000;
  const std::pair<const char*, const char*> cases[] = {
      {"deepseek-v3", "a"},    {"deepseek-v3", " "},   {"deepseek-v3", "7"},
      {"deepseek-v3", "中"},   {"deepseek-v3", "\n "}, {"deepseek-v3", "a 7中!\xcc\x81<"},
      {"deepseek-v3", "\xff"}, {"deepseek-v2", "a"},   {"deepseek-v2", " "},
      {"deepseek-v2", "7"}};
  for (const auto& [folder, unit] : cases) {
    const Tokenizer& tokenizer = shared_tokenizer(folder);
    std::string text;
    while (text.size() < kBytes) text += unit;
    text += "1";
    size_t n_ids = 0;
    const double seconds = seconds_of([&] {
      const auto ids = tokenizer.encode(text);
      ASSERT_TRUE(ids.ok()) << ids.status().message();
      n_ids = ids->size();
      EXPECT_EQ(tokenizer.decode(*ids, false), replace_invalid_utf8(text));
    });
    std::printf("%s, %zu kB of %s: %.2f s, %zu ids\n", folder, kBytes / 1000,
                Json(replace_invalid_utf8(unit)).dump().c_str(), seconds, n_ids);
    EXPECT_LT(seconds, kLimitSeconds);
  }
}

TEST(TokenizerSpeed, English) {
  const auto text = read_file(shared_path("corpus/the-blue-fairy-book.txt"), 1 << 20);
  ASSERT_TRUE(text.ok()) << text.status().message();
  for (const char* folder : {"deepseek-v3", "deepseek-v2"}) {
    const Tokenizer& tokenizer = shared_tokenizer(folder);
    Ids ids;
    const double seconds = seconds_of([&] { ids = *tokenizer.encode(*text); });
    const double mb_per_s = static_cast<double>(text->size()) / 1e6 / seconds;
    std::printf("%s: %.1f MB/s on English (%zu bytes, %zu ids)\n", folder, mb_per_s, text->size(),
                ids.size());
    EXPECT_EQ(tokenizer.decode(ids, false), *text);
    if (kTimed) {
      EXPECT_GE(mb_per_s, 2.0);
    }
  }
}

}  // namespace
}  // namespace exo::text
