// Lines of `exo tokenize` and `exo render` as hostile bytes. The first byte chooses what the rest
// is; any byte sequence, read as text, comes back from its ids as it was, but for ill-formed UTF-8.
#include <cstdlib>
#include <string>
#include <string_view>

#include "base/json.h"
#include "base/utf8.h"
#include "text/jsonl.h"

namespace {

// Every byte a token, as byte-level vocabularies begin, and no merges.
exo::text::Tokenizer byte_tokenizer() {
  exo::Json vocab = exo::Json::object();
  int n_shifted = 0;
  for (int byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= 33 && byte < 127) || (byte >= 161 && byte != 173);
    const int code_point = printable ? byte : 256 + n_shifted++;
    std::string symbol;
    exo::append_utf8(symbol, static_cast<uint32_t>(code_point));
    vocab[symbol] = byte;
  }
  const exo::Json json = {
      {"added_tokens",
       {{{"id", 256}, {"content", "<|end|>"}, {"special", true}, {"normalized", false}}}},
      {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}},
      {"decoder", {{"type", "ByteLevel"}}},
      {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", exo::Json::array()}}}};
  auto tokenizer = exo::text::Tokenizer::from_json(json.dump(), "byte tokenizer");
  if (!tokenizer.ok()) std::abort();
  return *std::move(tokenizer);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const exo::text::Tokenizer tokenizer = byte_tokenizer();
  if (size < 1) return 0;
  const std::string_view line(reinterpret_cast<const char*>(data) + 1, size - 1);
  if (data[0] == 't') {
    (void)exo::text::tokenize_line(tokenizer, line);
  } else if (data[0] == 'i') {
    (void)exo::text::detokenize_line(tokenizer, line);
  } else if (data[0] == 'x') {
    const auto ids = tokenizer.encode(line);
    if (!ids.ok() || tokenizer.decode(*ids, false) != exo::replace_invalid_utf8(line)) std::abort();
  } else {
    const auto formats = exo::text::chat_formats();
    (void)exo::text::render_line(formats[data[0] % formats.size()], &tokenizer, line);
  }
  return 0;
}
