// tokenizer.json files that are unusual, unsupported, broken or hostile.

#include <filesystem>
#include <functional>

#include "text/test_data.h"

namespace exo::text {
namespace {

using Ids = std::vector<int32_t>;

Result<Tokenizer> load(const Json& json) { return Tokenizer::from_json(json.dump(), "t.json"); }

// The words that a pre-tokenizer makes, seen through a vocabulary that joins all letters, digits
// and dashes of a word: "ab|-|1".
std::string words(const Json& pre_tokenizer, const std::string& text) {
  static const Json base = [] {
    std::vector<std::pair<std::string, std::string>> merges;
    std::vector<std::string> pieces = {"a", "b", "-", "1"};
    for (size_t n = 0; n < 3; ++n) {
      std::vector<std::string> longer;
      for (const std::string& piece : pieces)
        for (const char* end : {"a", "b", "-", "1"}) {
          merges.emplace_back(piece, end);
          longer.push_back(piece + end);
        }
      pieces = longer;
    }
    return byte_tokenizer(merges);
  }();
  Json json = base;
  const Json byte_level = json["pre_tokenizer"];
  json["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", {pre_tokenizer, byte_level}}};
  const auto tokenizer = load(json);
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status().message();
  std::string out;
  const auto ids = tokenizer->encode(text);
  for (const int32_t id : *ids) {
    if (!out.empty()) out += '|';
    out += tokenizer->token_bytes(id);
  }
  return out;
}

Json split(const std::string& regex, const std::string& behavior, bool invert = false) {
  return {{"type", "Split"},
          {"pattern", {{"Regex", regex}}},
          {"behavior", behavior},
          {"invert", invert}};
}

// Expected: tokenizers 0.23.3.
TEST(PreTokenizer, BehavioursOfSplit) {
  EXPECT_EQ(words(split("-", "Isolated"), "a--b-"), "a|-|-|b|-");
  EXPECT_EQ(words(split("-", "Removed"), "a--b-"), "a|b");
  EXPECT_EQ(words(split("-", "Contiguous"), "a--b-"), "a|--|b|-");
  EXPECT_EQ(words(split("-", "MergedWithPrevious"), "a--b-"), "a-|-|b-");
  EXPECT_EQ(words(split("-", "MergedWithNext"), "a--b-"), "a|-|-b|-");
  EXPECT_EQ(words(split("-", "MergedWithPrevious"), "-a"), "-|a");
  EXPECT_EQ(words(split("[ab]+", "Removed", true), "ab-1ba"), "ab|ba");
  EXPECT_EQ(words(split("[ab]+", "MergedWithNext", true), "ab-1b"), "ab|-1b");
  EXPECT_EQ(words(split("[ab]+", "Isolated"), ""), "");
  EXPECT_EQ(words({{"type", "Split"}, {"pattern", {{"String", "a-"}}}, {"behavior", "Isolated"}},
                  "ba-a-b"),
            "b|a-|a-|b");
}

TEST(PreTokenizer, DigitsAndByteLevel) {
  EXPECT_EQ(words({{"type", "Digits"}, {"individual_digits", true}}, "a11b1"), "a|1|1|b|1");
  EXPECT_EQ(words({{"type", "Digits"}, {"individual_digits", false}}, "a11b1"), "a|11|b|1");
  EXPECT_EQ(words({{"type", "Digits"}}, "a11b1"), "a|11|b|1");
  Json json = byte_tokenizer({{"a", "a"}, {"'", "s"}, {"Ġ", "a"}});
  json["pre_tokenizer"]["use_regex"] = true;  // GPT-2's words
  const auto tokenizer = load(json);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().message();
  EXPECT_EQ(*tokenizer->encode("a's aa  a"), (Ids{'a', 257, ' ', 256, ' ', 258}));
}

TEST(AddedTokens, OnesThatTheNormaliserMayNotTouchGoFirst) {
  Json json = byte_tokenizer();
  json["added_tokens"] = {added_token(256, "b>"), added_token(257, "<ab>"),
                          added_token(258, "<b>x")};
  json["added_tokens"][1]["normalized"] = true;
  json["added_tokens"][2]["normalized"] = true;
  json["added_tokens"][2]["special"] = false;
  const auto tokenizer = load(json);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().message();
  EXPECT_EQ(*tokenizer->encode("<ab>"), (Ids{'<', 'a', 256}));
  EXPECT_EQ(*tokenizer->encode("<b>x"), (Ids{'<', 256, 'x'}));
  EXPECT_EQ(tokenizer->decode(Ids{257, 'a', 258}, true), "a<b>x");
}

TEST(TokenizerJson, MergesAsPairsAreTheSame) {
  Json json = byte_tokenizer({{"a", "b"}, {"ab", "c"}});
  json["model"]["merges"] = Json::array({Json::array({"a", "b"}), Json::array({"ab", "c"})});
  const auto tokenizer = load(json);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().message();
  EXPECT_EQ(*tokenizer->encode("abc"), Ids{257});
}

TEST(TokenizerJson, TokensFromTheConfigAreLookedUp) {
  Json json = byte_tokenizer();
  json["added_tokens"] = {added_token(256, "<s>")};
  TokenizerConfig config;
  config.bos_token = "<s>";
  const auto tokenizer = Tokenizer::from_json(json.dump(), "t.json", config);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().message();
  EXPECT_EQ(tokenizer->bos_id(), 256);
  EXPECT_EQ(tokenizer->eos_id(), std::nullopt);
  config.eos_token = "</s>";
  const auto unknown = Tokenizer::from_json(json.dump(), "t.json", config);
  ASSERT_FALSE(unknown.ok());
  EXPECT_NE(unknown.status().message().find("'</s>'"), std::string::npos);
}

// Each case spoils a good file in one place; the message must name it.
TEST(TokenizerJson, BrokenFilesAreRefusedByName) {
  struct Case {
    const char* message;
    std::function<void(Json&)> spoil;
  };
  const auto stage = [](Json& json, const Json& first) {
    json["pre_tokenizer"] = {{"type", "Sequence"},
                             {"pretokenizers", {first, json["pre_tokenizer"]}}};
  };
  const Case cases[] = {
      {"expected an object", [](Json& j) { j = Json::array(); }},
      {"'model'", [](Json& j) { j.erase("model"); }},
      {"'model'", [](Json& j) { j["model"] = 5; }},
      {"model 'Unigram'", [](Json& j) { j["model"]["type"] = "Unigram"; }},
      {"'vocab'", [](Json& j) { j["model"].erase("vocab"); }},
      {"'vocab'", [](Json& j) { j["model"]["vocab"] = Json::array(); }},
      {"vocab['x']", [](Json& j) { j["model"]["vocab"]["x"] = 2147483648; }},
      {"vocab['x']", [](Json& j) { j["model"]["vocab"]["x"] = 1 << 20; }},
      {"vocab['x']", [](Json& j) { j["model"]["vocab"]["x"] = -1; }},
      {"vocab['x']", [](Json& j) { j["model"]["vocab"]["x"] = 1.5; }},
      {"vocab['x']", [](Json& j) { j["model"]["vocab"]["x"] = "1"; }},
      {"id 97 is given to two", [](Json& j) { j["model"]["vocab"]["xy"] = 97; }},
      {"byte 0x61", [](Json& j) { j["model"]["vocab"].erase("a"); }},
      {"'merges'", [](Json& j) { j["model"].erase("merges"); }},
      {"'merges'", [](Json& j) { j["model"]["merges"] = "a b"; }},
      {"merges[0]", [](Json& j) { j["model"]["merges"] = {"ab"}; }},
      {"merges[0]", [](Json& j) { j["model"]["merges"] = {"a b c"}; }},
      {"merges[0]", [](Json& j) { j["model"]["merges"] = {5}; }},
      {"merges[0]",
       [](Json& j) {
         j["model"]["merges"] = Json::array({{"a", "b", "c"}});
       }},
      {"'ab' is not in the vocabulary", [](Json& j) { j["model"]["merges"] = {"a b"}; }},
      {"'zz' is not in the vocabulary", [](Json& j) { j["model"]["merges"] = {"zz b"}; }},
      {"dropout", [](Json& j) { j["model"]["dropout"] = 0.1; }},
      {"byte_fallback", [](Json& j) { j["model"]["byte_fallback"] = true; }},
      {"ignore_merges", [](Json& j) { j["model"]["ignore_merges"] = true; }},
      {"end_of_word_suffix", [](Json& j) { j["model"]["end_of_word_suffix"] = "</w>"; }},
      {"'NFC'",
       [](Json& j) {
         j["normalizer"] = {{"type", "NFC"}};
       }},
      {"'Lowercase'",
       [](Json& j) {
         j["normalizer"] = {{"type", "Sequence"},
                            {"normalizers", Json::array({{{"type", "Lowercase"}}})}};
       }},
      {"decoder", [](Json& j) { j.erase("decoder"); }},
      {"'WordPiece'", [](Json& j) { j["decoder"]["type"] = "WordPiece"; }},
      {"pre_tokenizer", [](Json& j) { j["pre_tokenizer"] = nullptr; }},
      {"'Metaspace'",
       [&](Json& j) {
         stage(j, {{"type", "Metaspace"}});
       }},
      {"pretokenizers[0]: field 'type'", [&](Json& j) { stage(j, Json::object()); }},
      {"after ByteLevel", [&](Json& j) { stage(j, j["pre_tokenizer"]); }},
      {"no ByteLevel",
       [](Json& j) {
         j["pre_tokenizer"] = {{"type", "Digits"}, {"individual_digits", true}};
       }},
      {"add_prefix_space", [](Json& j) { j["pre_tokenizer"]["add_prefix_space"] = true; }},
      {"'Sideways'", [&](Json& j) { stage(j, split("a", "Sideways")); }},
      {"'pattern'",
       [&](Json& j) {
         stage(j, {{"type", "Split"}, {"behavior", "Isolated"}});
       }},
      {"not a regular expression", [&](Json& j) { stage(j, split("(", "Isolated")); }},
      {"nothing at all", [&](Json& j) { stage(j, split("a*", "Isolated")); }},
      {"\\w", [&](Json& j) { stage(j, split("\\w+", "Isolated")); }},
      {"deeper",
       [](Json& j) {
         for (int i = 0; i < 20; ++i)
           j["pre_tokenizer"] = {{"type", "Sequence"},
                                 {"pretokenizers", Json::array({j["pre_tokenizer"]})}};
       }},
      {"more than 64",
       [&](Json& j) {
         Json list = Json::array();
         for (int i = 0; i < 70; ++i) list.push_back(split("a", "Isolated"));
         j["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", list}};
       }},
      {"added_tokens", [](Json& j) { j["added_tokens"] = "x"; }},
      {"added_tokens[0]", [](Json& j) { j["added_tokens"] = {5}; }},
      {"'id'", [](Json& j) { j["added_tokens"] = {added_token(1 << 30, "x")}; }},
      {"1 to 1024", [](Json& j) { j["added_tokens"] = {added_token(256, "")}; }},
      {"1 to 1024",
       [](Json& j) { j["added_tokens"] = {added_token(256, std::string(5000, 'x'))}; }},
      {"appears twice",
       [](Json& j) {
         j["added_tokens"] = {added_token(256, "<x>"), added_token(257, "<x>")};
       }},
      {"id 256 is given",
       [](Json& j) {
         j["added_tokens"] = {added_token(256, "<x>"), added_token(256, "<y>")};
       }},
      {"98 in the vocabulary", [](Json& j) { j["added_tokens"] = {added_token(256, "b")}; }},
      {"single_word",
       [](Json& j) {
         j["added_tokens"] = {added_token(256, "<x>")};
         j["added_tokens"][0]["single_word"] = true;
       }},
  };
  ASSERT_TRUE(load(byte_tokenizer()).ok());
  for (const Case& c : cases) {
    Json json = byte_tokenizer();
    c.spoil(json);
    const auto tokenizer = load(json);
    ASSERT_FALSE(tokenizer.ok()) << c.message;
    EXPECT_NE(tokenizer.status().message().find(c.message), std::string::npos)
        << "expected '" << c.message << "' in: " << tokenizer.status().message();
    EXPECT_NE(tokenizer.status().message().find("t.json"), std::string::npos);
  }
  EXPECT_FALSE(Tokenizer::from_json("", "t.json").ok());
  EXPECT_FALSE(Tokenizer::from_json(R"({"model": {"vocab": {"a": 1, "a": 2}}})", "t.json").ok());
  const std::string whole = byte_tokenizer().dump();
  for (size_t n = 0; n < whole.size(); n += 97)
    EXPECT_FALSE(Tokenizer::from_json(whole.substr(0, n), "t.json").ok());
}

TEST(TokenizerJson, ACatastrophicPatternEndsInAnError) {
  Json json = byte_tokenizer();
  json["pre_tokenizer"] = {
      {"type", "Sequence"},
      {"pretokenizers", {split("(?:a+)+[bc]", "Isolated"), json["pre_tokenizer"]}}};
  const auto tokenizer = load(json);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().message();
  const auto ids = tokenizer->encode(std::string(100, 'a'));
  ASSERT_FALSE(ids.ok());
  EXPECT_EQ(ids.status().code(), StatusCode::resource_exhausted);
}

TEST(TokenizerConfig, ReadsBothFilesOfAFolder) {
  const std::string folder = ::testing::TempDir() + "exo_tokenizer_config_test";
  std::filesystem::create_directories(folder);
  const auto write = [&](const char* name, const std::string& text) {
    const Status status = write_file_atomic(folder + "/" + name, text);
    ASSERT_TRUE(status.ok()) << status.message();
  };
  std::filesystem::remove(folder + "/chat_template.jinja");
  std::filesystem::remove(folder + "/tokenizer_config.json");
  EXPECT_TRUE(TokenizerConfig::load(folder).ok());

  write("tokenizer_config.json",
        R"({"bos_token": "<s>", "eos_token": {"content": "</s>"}, "add_bos_token": true,
            "chat_template": [{"name": "tool_use", "template": "A"}, {"name": "default", "template": "B"}]})");
  auto config = TokenizerConfig::load(folder);
  ASSERT_TRUE(config.ok()) << config.status().message();
  EXPECT_EQ(config->bos_token, "<s>");
  EXPECT_EQ(config->eos_token, "</s>");
  EXPECT_TRUE(config->add_bos_token);
  EXPECT_EQ(config->chat_template, "B");

  write("chat_template.jinja", "C");
  EXPECT_EQ(TokenizerConfig::load(folder)->chat_template, "C");
  write("chat_template.jinja", "\xff");
  EXPECT_FALSE(TokenizerConfig::load(folder).ok());
  std::filesystem::remove(folder + "/chat_template.jinja");
  for (const char* broken : {"{", "[]", R"({"bos_token": 5})", R"({"eos_token": {}})",
                             R"({"chat_template": 5})", R"({"chat_template": [5]})"}) {
    write("tokenizer_config.json", broken);
    config = TokenizerConfig::load(folder);
    ASSERT_FALSE(config.ok()) << broken;
    EXPECT_NE(config.status().message().find("tokenizer_config.json"), std::string::npos);
  }
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace exo::text
