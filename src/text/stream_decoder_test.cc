#include "text/stream_decoder.h"

#include <random>

#include "base/utf8.h"
#include "text/test_data.h"

namespace exo::text {
namespace {

void expect_stream_equals_decode(const Tokenizer& tokenizer, const std::vector<int32_t>& ids,
                                 bool skip) {
  StreamDecoder decoder(tokenizer, skip);
  std::string text;
  for (const int32_t id : ids) {
    const std::string piece = decoder.push(id);
    ASSERT_TRUE(is_valid_utf8(piece));
    text += piece;
  }
  text += decoder.flush();
  ASSERT_EQ(text, tokenizer.decode(ids, skip));
  EXPECT_EQ(decoder.flush(), "");
}

TEST(StreamDecoder, EqualsDecodeOnTheGoldens) {
  const Tokenizer& tokenizer = shared_tokenizer("deepseek-v3");
  for (const char* file : {"goldens/tokenizer/cases.jsonl", "goldens/tokenizer/decode.jsonl"})
    for (const Json& row : read_jsonl(file))
      for (const bool skip : {false, true})
        expect_stream_equals_decode(tokenizer, row["ids"].get<std::vector<int32_t>>(), skip);
}

// Single bytes in every order: half characters, overlong forms, surrogates, beyond U+10FFFF.
TEST(StreamDecoder, EqualsDecodeOnRandomBytes) {
  const auto tokenizer = Tokenizer::from_json(byte_tokenizer().dump(), "bytes");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().message();
  std::mt19937 random(11);
  constexpr uint8_t kInteresting[] = {'a',  0x80, 0x8f, 0x90, 0x9f, 0xa0, 0xbf, 0xc0, 0xc3, 0xe0,
                                      0xe4, 0xed, 0xef, 0xf0, 0xf1, 0xf4, 0xf5, 0xff, 0xb8, 0xad};
  for (int round = 0; round < 20000; ++round) {
    std::vector<int32_t> ids;
    for (size_t n = random() % 12; n > 0; --n)
      ids.push_back(kInteresting[random() % std::size(kInteresting)]);
    expect_stream_equals_decode(*tokenizer, ids, false);
  }
}

TEST(StreamDecoder, GivesACharacterWithItsLastByte) {
  const auto tokenizer = Tokenizer::from_json(byte_tokenizer().dump(), "bytes");
  ASSERT_TRUE(tokenizer.ok());
  StreamDecoder decoder(*tokenizer, true);
  EXPECT_EQ(decoder.push(0xe4), "");
  EXPECT_EQ(decoder.push(0xb8), "");
  EXPECT_EQ(decoder.push(0xad), "中");
  EXPECT_EQ(decoder.push(0xf0), "");
  EXPECT_EQ(decoder.push('a'),
            "\ufffd"
            "a");
  EXPECT_EQ(decoder.push(0xf0), "");
  EXPECT_EQ(decoder.flush(), "\ufffd");
  EXPECT_EQ(decoder.push('b'), "b");
  EXPECT_EQ(decoder.push(100000), "");  // an id without a token
}

}  // namespace
}  // namespace exo::text
