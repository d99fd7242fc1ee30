/// Finds the added tokens of a tokenizer.json in a text: leftmost, then longest.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace exo::text {

struct AddedToken {
  std::string text;
  int32_t id;
  bool lstrip;  ///< takes the white space before it
  bool rstrip;  ///< takes the white space after it
};

class AddedTokens {
 public:
  AddedTokens() = default;
  /// Texts are distinct and not empty.
  explicit AddedTokens(std::vector<AddedToken> tokens);

  struct Match {
    size_t begin;
    size_t end;
    int32_t id;
  };
  /// The first match at or after `from`; white space before `from` is not taken by lstrip.
  std::optional<Match> find(std::string_view text, size_t from) const;

 private:
  const AddedToken* longest_at(std::string_view text) const;

  std::vector<AddedToken> sorted_;  ///< by text
  std::array<bool, 256> starts_{};  ///< bytes that begin some token
};

}  // namespace exo::text
