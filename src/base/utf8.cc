#include "base/utf8.h"

namespace exo {

Utf8Step decode_utf8(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint8_t b0 = byte(0);
  if (b0 < 0x80) return {b0, 1, false};
  int length;
  uint8_t low = 0x80, high = 0xBF;  // the allowed range of the second byte (table 3-7)
  if (b0 >= 0xC2 && b0 <= 0xDF) {
    length = 2;
  } else if (b0 >= 0xE0 && b0 <= 0xEF) {
    length = 3;
    if (b0 == 0xE0) low = 0xA0;
    if (b0 == 0xED) high = 0x9F;
  } else if (b0 >= 0xF0 && b0 <= 0xF4) {
    length = 4;
    if (b0 == 0xF0) low = 0x90;
    if (b0 == 0xF4) high = 0x8F;
  } else {
    return {-1, 1, false};
  }
  int32_t cp = b0 & (0x7F >> length);
  for (int i = 1; i < length; ++i) {
    if (static_cast<size_t>(i) >= text.size()) return {-1, i, true};
    const uint8_t b = byte(static_cast<size_t>(i));
    if (b < low || b > high) return {-1, i, false};
    low = 0x80;
    high = 0xBF;
    cp = cp << 6 | (b & 0x3F);
  }
  return {cp, length, false};
}

void append_utf8(std::string& out, uint32_t cp) {
  const auto put = [&](uint32_t b) { out.push_back(static_cast<char>(b)); };
  if (cp < 0x80) {
    put(cp);
  } else if (cp < 0x800) {
    put(0xC0 | cp >> 6), put(0x80 | (cp & 0x3F));
  } else if (cp < 0x10000) {
    put(0xE0 | cp >> 12), put(0x80 | (cp >> 6 & 0x3F)), put(0x80 | (cp & 0x3F));
  } else {
    put(0xF0 | cp >> 18), put(0x80 | (cp >> 12 & 0x3F)), put(0x80 | (cp >> 6 & 0x3F)),
        put(0x80 | (cp & 0x3F));
  }
}

bool is_valid_utf8(std::string_view text) {
  while (!text.empty()) {
    const Utf8Step step = decode_utf8(text);
    if (step.code_point < 0) return false;
    text.remove_prefix(static_cast<size_t>(step.n_bytes));
  }
  return true;
}

std::string replace_invalid_utf8(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    const Utf8Step step = decode_utf8(text);
    append_utf8(out, step.code_point < 0 ? 0xFFFD : static_cast<uint32_t>(step.code_point));
    text.remove_prefix(static_cast<size_t>(step.n_bytes));
  }
  return out;
}

}  // namespace exo
