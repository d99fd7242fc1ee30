/// UTF-8 as untrusted bytes.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace exo {

/// One decoded step: the code point (or -1 for an ill-formed sequence) and how many bytes it covers
/// (>= 1). For an ill-formed sequence n_bytes is the length of its maximal well-formed prefix
/// (Unicode 15, section 3.9, the practice of the WHATWG decoder), so that one U+FFFD is written for
/// each.
struct Utf8Step {
  int32_t code_point;
  int n_bytes;
  bool truncated;  ///< ill-formed only because the text ends inside it
};
/// Precondition: !text.empty().
Utf8Step decode_utf8(std::string_view text);

void append_utf8(std::string& out, uint32_t code_point);
bool is_valid_utf8(std::string_view text);
/// The text with every ill-formed sequence replaced by U+FFFD.
std::string replace_invalid_utf8(std::string_view text);

}  // namespace exo
