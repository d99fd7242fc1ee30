/// What the tests of this room share: the reference data of $EXO_SHARED and small tokenizers made
/// on the spot. Included by *_test.cc only.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/os.h"
#include "base/status.h"
#include "text/byte_level.h"
#include "text/tokenizer.h"

namespace exo::text {

/// A path under the shared reference data; the tests fail where it is missing.
inline std::string shared_path(const std::string& relative) {
  const char* root = std::getenv("EXO_SHARED");
  return std::string(root == nullptr ? "../shared" : root) + "/" + relative;
}

/// The lines of a JSONL file; a test failure and none where it is missing or empty.
inline std::vector<Json> read_jsonl(const std::string& relative) {
  std::vector<Json> rows;
  const auto text = read_file(shared_path(relative), uint64_t{64} << 20);
  EXPECT_TRUE(text.ok()) << text.status().message();
  if (!text.ok()) return rows;
  std::istringstream lines(*text);
  for (std::string line; std::getline(lines, line);) {
    auto row = parse_json(line, relative);
    EXPECT_TRUE(row.ok()) << row.status().message();
    if (row.ok()) rows.push_back(*std::move(row));
  }
  EXPECT_FALSE(rows.empty()) << relative;
  return rows;
}

/// A tokenizer of facts/tokenizers, loaded once for all tests.
inline const Tokenizer& shared_tokenizer(const std::string& name) {
  static std::map<std::string, Result<Tokenizer>> loaded;
  auto it = loaded.find(name);
  if (it == loaded.end())
    it = loaded.emplace(name, Tokenizer::load(shared_path("facts/tokenizers/" + name))).first;
  if (!it->second.ok()) {
    ADD_FAILURE() << it->second.status().message();
    std::abort();
  }
  return *it->second;
}

/// A valid tokenizer.json: the 256 bytes as tokens 0 to 255, then each merge's result in order.
inline Json byte_tokenizer(const std::vector<std::pair<std::string, std::string>>& merges = {}) {
  Json vocab = Json::object();
  for (int byte = 0; byte < 256; ++byte)
    vocab[byte_level_symbol(static_cast<uint8_t>(byte))] = byte;
  Json list = Json::array();
  for (const auto& [left, right] : merges) {
    if (!vocab.contains(left + right)) vocab[left + right] = vocab.size();
    list.push_back(left + " " + right);
  }
  return Json{
      {"added_tokens", Json::array()},
      {"normalizer", nullptr},
      {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}},
      {"decoder", {{"type", "ByteLevel"}}},
      {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", list}}}};
}

inline Json added_token(int id, const std::string& content) {
  return Json{{"id", id},        {"content", content},  {"single_word", false}, {"lstrip", false},
              {"rstrip", false}, {"normalized", false}, {"special", true}};
}

}  // namespace exo::text
