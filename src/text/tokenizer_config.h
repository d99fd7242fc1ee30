/// What exo reads of tokenizer_config.json and chat_template.jinja.
#pragma once

#include <optional>
#include <string>

#include "base/status.h"

namespace exo::text {

struct TokenizerConfig {
  std::optional<std::string> bos_token;  ///< text of the token
  std::optional<std::string> eos_token;
  bool add_bos_token = false;                ///< as written; encode() never adds one
  std::optional<std::string> chat_template;  ///< Jinja text, see chat_format.h

  /// Reads both files of a model folder; a file that is not there leaves its fields empty. A
  /// chat_template.jinja goes before tokenizer_config.json's own chat_template (as in
  /// transformers); of a list of named templates "default" is taken.
  static Result<TokenizerConfig> load(const std::string& folder);
};

}  // namespace exo::text
