/// The pre-tokenizer of a tokenizer.json: cuts a text into the words that BPE then encodes alone.
/// Split (regular expression or text, all five behaviours, invert), Digits and ByteLevel, alone or
/// in a Sequence; other types are refused by name. ByteLevel must come last: the alphabet it writes
/// is undone in the vocabulary, so that words stay bytes.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "base/status.h"
#include "text/pattern.h"

namespace exo::text {

class PreTokenizer {
 public:
  /// `json`: the field pre_tokenizer; `where` names it in errors.
  static Result<PreTokenizer> from_json(const Json& json, const std::string& where);

  /// Buffers of one thread.
  struct Scratch {
    explicit Scratch(const PreTokenizer& pre_tokenizer);
    std::vector<Pattern::Scratch> patterns;
    std::vector<std::string_view> words;  ///< the result of split(): parts of its text, none empty
    std::vector<std::string_view> next_words;
  };

  /// Fills scratch.words. Precondition: `text` is valid UTF-8.
  Status split(std::string_view text, Scratch& scratch) const;

 private:
  /// What becomes of the matches of a pattern. The names are tokenizer.json's.
  enum class Behavior { removed, isolated, merged_with_previous, merged_with_next, contiguous };
  struct Stage {
    Pattern pattern;
    Behavior behavior;
    bool invert;  ///< what lies between matches counts as the matches
  };

  class Builder;

  static bool joins(Behavior behavior, bool previous_is_match, bool is_match);
  static Status apply(const Stage& stage, std::string_view text, Pattern::Scratch& scratch,
                      std::vector<std::string_view>& words);

  std::vector<Stage> stages_;
};

}  // namespace exo::text
