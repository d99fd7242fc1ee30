/// One line in, one line out: what `exo tokenize` and `exo render` do to each line of stdin
/// (design.md section 1). Answers have no line break at the end. A line that is not as described
/// (also: a string with a lone surrogate escape) gives an error that names the field.
#pragma once

#include <string>
#include <string_view>

#include "base/status.h"
#include "text/chat_format.h"
#include "text/tokenizer.h"

namespace exo::text {

/// {"text"} to {"ids"}
Result<std::string> tokenize_line(const Tokenizer& tokenizer, std::string_view line);

/// {"ids", "skip_special_tokens" (false if missing)} to {"text"}
Result<std::string> detokenize_line(const Tokenizer& tokenizer, std::string_view line);

/// parse_chat_request()'s object to {"prompt", "ids"}; without a tokenizer (nullptr) the prompt
/// alone.
Result<std::string> render_line(const ChatFormat& format, const Tokenizer* tokenizer,
                                std::string_view line);

}  // namespace exo::text
