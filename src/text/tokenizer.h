/// Text to ids and back, from a Hugging Face tokenizer.json (byte-level BPE).
///
/// Equal to the `tokenizers` library with add_special_tokens=False (docs/tokenizer.md lists where
/// it cannot be). encode() adds no BOS: the chat format or the caller writes it. Special tokens
/// written in the text become their ids. Immutable after load; every const function may be called
/// from several threads at once.
///
/// Errors: a file that is missing, too big or not this format (not_found, invalid_argument,
/// unimplemented for a component that exo doesn't know, named in the message). Nothing in a file or
/// a text crashes or hangs: PCRE2 runs with match limits.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "text/tokenizer_config.h"

namespace exo::text {

struct TokenizerParts;

class Tokenizer {
 public:
  /// `path`: a model folder with tokenizer.json (and, if present, tokenizer_config.json and
  /// chat_template.jinja), or a tokenizer.json itself (its folder's other two files are read too).
  static Result<Tokenizer> load(const std::string& path);
  /// From the bytes of a tokenizer.json; `what` names it in errors.
  static Result<Tokenizer> from_json(std::string_view json, std::string_view what,
                                     TokenizerConfig config = {});

  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  /// Ids of `text`; every ill-formed UTF-8 sequence is read as U+FFFD. Fails only when a pattern of
  /// the file is too expensive on this text.
  Result<std::vector<int32_t>> encode(std::string_view text) const;

  /// Valid UTF-8: the tokens' bytes joined, each ill-formed sequence as one U+FFFD. Ids without a
  /// token give nothing, as in the reference.
  std::string decode(std::span<const int32_t> ids, bool skip_special_tokens) const;

  /// The bytes that `id` stands for (part of a character, perhaps); empty for an id without a
  /// token.
  std::string_view token_bytes(int32_t id) const;

  /// The id of a whole token given as text ("<｜User｜>", " the"); added tokens first. A search
  /// through the vocabulary: keep the answer.
  std::optional<int32_t> id_of(std::string_view token_text) const;

  /// Largest id + 1. A model's embedding may have more rows.
  int32_t n_ids() const;
  bool is_defined(int32_t id) const;
  bool is_special(int32_t id) const;
  /// The ids of [0, n_rows) that have no token: never to be sampled (465 of V3's 129,280 rows).
  std::vector<int32_t> undefined_ids(int32_t n_rows) const;

  /// From tokenizer_config.json's bos_token and eos_token; else the tokens named as DeepSeek does.
  std::optional<int32_t> bos_id() const;
  std::optional<int32_t> eos_id() const;
  const TokenizerConfig& config() const;

 private:
  explicit Tokenizer(std::unique_ptr<const TokenizerParts> parts);
  std::unique_ptr<const TokenizerParts> parts_;
};

}  // namespace exo::text
