/// Ids to text as they are generated: never half a UTF-8 character, and joined over all pushes and
/// flush() exactly Tokenizer::decode() of all ids.
#pragma once

#include <cstdint>
#include <string>

#include "text/tokenizer.h"

namespace exo::text {

class StreamDecoder {
 public:
  /// `tokenizer` must outlive this.
  StreamDecoder(const Tokenizer& tokenizer, bool skip_special_tokens)
      : tokenizer_(&tokenizer), skip_special_tokens_(skip_special_tokens) {}

  /// The text that `id` completes; empty while a character is unfinished. Valid UTF-8.
  std::string push(int32_t id);
  /// The end: an unfinished character as U+FFFD. The decoder is then as new.
  std::string flush();

 private:
  const Tokenizer* tokenizer_;
  bool skip_special_tokens_;
  std::string pending_;  ///< a truncated character: at most 3 bytes between calls
};

}  // namespace exo::text
