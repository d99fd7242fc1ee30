#include "text/tokenizer.h"

#include <chrono>

#include "base/utf8.h"
#include "text/test_data.h"

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

}  // namespace
}  // namespace exo::text
