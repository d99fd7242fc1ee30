// tokenizer.json as hostile bytes: the first byte says how much of the input's end is text to be
// encoded with what loaded. What was encoded decodes to valid UTF-8, within the vocabulary.
#include <cstdlib>
#include <string_view>

#include "base/utf8.h"
#include "text/stream_decoder.h"
#include "text/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 1) return 0;
  const std::string_view bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  const std::string_view text = bytes.substr(bytes.size() - bytes.size() * data[0] / 255);
  const auto tokenizer = exo::text::Tokenizer::from_json(
      data[0] % 2 == 0 ? bytes : bytes.substr(0, bytes.size() - text.size()), "fuzz");
  if (!tokenizer.ok()) return 0;
  const auto ids = tokenizer->encode(text);
  if (!ids.ok()) return 0;
  exo::text::StreamDecoder stream(*tokenizer, false);
  std::string streamed;
  for (const int32_t id : *ids) {
    if (id < 0 || id >= tokenizer->n_ids()) std::abort();
    streamed += stream.push(id);
  }
  streamed += stream.flush();
  const std::string decoded = tokenizer->decode(*ids, false);
  if (decoded != streamed || !exo::is_valid_utf8(decoded)) std::abort();
  return 0;
}
