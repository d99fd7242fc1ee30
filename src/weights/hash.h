/// xxh3-64 of a stream, and its text form in JSON (64-bit integers don't survive every JSON
/// reader).
#pragma once

#include <fmt/core.h>
#include <xxhash.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace exo::weights {

class Xxh3 {
 public:
  Xxh3() : state_(XXH3_createState()) { XXH3_64bits_reset(state_); }
  Xxh3(const Xxh3&) = delete;
  Xxh3& operator=(const Xxh3&) = delete;
  ~Xxh3() { XXH3_freeState(state_); }

  void update(const void* data, size_t n_bytes) { XXH3_64bits_update(state_, data, n_bytes); }
  uint64_t digest() const { return XXH3_64bits_digest(state_); }

 private:
  XXH3_state_t* state_;
};

inline uint64_t xxh3(std::string_view bytes) { return XXH3_64bits(bytes.data(), bytes.size()); }

inline std::string hash_text(uint64_t hash) { return fmt::format("{:016x}", hash); }
/// Of exactly 16 lower-case hexadecimal digits.
inline std::optional<uint64_t> parse_hash(std::string_view text) {
  if (text.size() != 16) return std::nullopt;
  uint64_t hash = 0;
  for (char c : text) {
    const bool digit = c >= '0' && c <= '9';
    if (!digit && (c < 'a' || c > 'f')) return std::nullopt;
    hash = hash << 4 | static_cast<uint64_t>(digit ? c - '0' : c - 'a' + 10);
  }
  return hash;
}

}  // namespace exo::weights
