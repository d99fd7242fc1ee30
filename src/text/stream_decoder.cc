#include "text/stream_decoder.h"

#include <utility>

#include "base/utf8.h"

namespace exo::text {

std::string StreamDecoder::push(int32_t id) {
  if (skip_special_tokens_ && tokenizer_->is_special(id)) return {};
  pending_ += tokenizer_->token_bytes(id);
  std::string text;
  std::string_view rest = pending_;
  while (!rest.empty()) {
    const Utf8Step step = decode_utf8(rest);
    if (step.truncated) break;
    append_utf8(text, step.code_point < 0 ? 0xfffd : static_cast<uint32_t>(step.code_point));
    rest.remove_prefix(step.n_bytes);
  }
  pending_ = std::string(rest);
  return text;
}

std::string StreamDecoder::flush() { return replace_invalid_utf8(std::exchange(pending_, {})); }

}  // namespace exo::text
