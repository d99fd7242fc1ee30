/// What a Tokenizer is made of. Only tokenizer.cc (use) and tokenizer_json.cc (loading) include
/// this.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "text/added_tokens.h"
#include "text/bpe.h"
#include "text/pre_tokenizer.h"
#include "text/tokenizer_config.h"

namespace exo::text {

struct TokenizerParts {
  enum class Kind : uint8_t { undefined, vocabulary, added, special };
  struct Token {
    uint32_t begin = 0;  ///< bytes [begin, begin + n_bytes) of token_bytes
    uint32_t n_bytes = 0;
    Kind kind = Kind::undefined;
  };

  TokenizerConfig config;
  std::vector<Token> tokens;  ///< by id
  std::string token_bytes;
  /// Looked for one after the other: tokens that the normaliser may not touch, then the others.
  AddedTokens added_first;
  AddedTokens added_second;
  PreTokenizer pre_tokenizer;
  Bpe bpe;
  std::optional<int32_t> bos_id;
  std::optional<int32_t> eos_id;

  std::string_view bytes_of(const Token& token) const {
    return std::string_view(token_bytes).substr(token.begin, token.n_bytes);
  }
  /// The id of a whole token; added tokens go first.
  std::optional<int32_t> id_of(std::string_view text) const;

  static Result<std::unique_ptr<TokenizerParts>> from_json(std::string_view json,
                                                           std::string_view what);
};

}  // namespace exo::text
