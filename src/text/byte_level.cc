#include "text/byte_level.h"

#include <array>

#include "base/utf8.h"

namespace exo::text {
namespace {

// Bytes whose character is the byte itself.
constexpr bool is_printable(int byte) {
  return (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
}

constexpr int kFirstShifted = 0x100;
constexpr int kEndOfAlphabet = kFirstShifted + 68;

struct Alphabet {
  std::array<uint16_t, 256> code_point{};
  std::array<int16_t, kEndOfAlphabet> byte{};  // by code point; -1: not in the alphabet
};

constexpr Alphabet make_alphabet() {
  Alphabet a;
  for (auto& b : a.byte) b = -1;
  int shifted = kFirstShifted;
  for (int byte = 0; byte < 256; ++byte) {
    const int code_point = is_printable(byte) ? byte : shifted++;
    a.code_point[byte] = static_cast<uint16_t>(code_point);
    a.byte[code_point] = static_cast<int16_t>(byte);
  }
  return a;
}

constexpr Alphabet kAlphabet = make_alphabet();

}  // namespace

std::string byte_level_symbol(uint8_t byte) {
  std::string symbol;
  append_utf8(symbol, kAlphabet.code_point[byte]);
  return symbol;
}

std::string byte_level_bytes(std::string_view token) {
  std::string bytes;
  bytes.reserve(token.size());
  for (std::string_view rest = token; !rest.empty();) {
    const Utf8Step step = decode_utf8(rest);
    rest.remove_prefix(step.n_bytes);
    if (step.code_point < 0 || step.code_point >= kEndOfAlphabet ||
        kAlphabet.byte[step.code_point] < 0)
      return std::string(token);
    bytes.push_back(static_cast<char>(kAlphabet.byte[step.code_point]));
  }
  return bytes;
}

}  // namespace exo::text
