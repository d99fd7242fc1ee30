#include "text/added_tokens.h"

#include <algorithm>

#include "base/utf8.h"

namespace exo::text {
namespace {

bool is_white_space(int32_t c) {
  return (c >= 9 && c <= 13) || c == ' ' || c == 0x85 || c == 0xa0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f ||
         c == 0x3000;
}

size_t white_space_ahead(std::string_view text) {
  size_t n_bytes = 0;
  while (n_bytes < text.size()) {
    const Utf8Step step = decode_utf8(text.substr(n_bytes));
    if (!is_white_space(step.code_point)) break;
    n_bytes += step.n_bytes;
  }
  return n_bytes;
}

size_t white_space_behind(std::string_view text) {
  size_t end = text.size();
  while (end > 0) {
    size_t begin = end - 1;
    while (begin > 0 && (static_cast<uint8_t>(text[begin]) & 0xc0) == 0x80) --begin;
    if (!is_white_space(decode_utf8(text.substr(begin, end - begin)).code_point)) break;
    end = begin;
  }
  return text.size() - end;
}

}  // namespace

AddedTokens::AddedTokens(std::vector<AddedToken> tokens) : sorted_(std::move(tokens)) {
  std::sort(sorted_.begin(), sorted_.end(),
            [](const AddedToken& a, const AddedToken& b) { return a.text < b.text; });
  for (const AddedToken& token : sorted_) starts_[static_cast<uint8_t>(token.text[0])] = true;
}

// Walks the sorted list as if it were a trie: [first, last) holds the tokens that share the first
// n_bytes bytes of `text`, the token of exactly these bytes first.
const AddedToken* AddedTokens::longest_at(std::string_view text) const {
  const AddedToken* longest = nullptr;
  auto first = sorted_.begin();
  auto last = sorted_.end();
  for (size_t n_bytes = 0; first != last; ++n_bytes) {
    if (first->text.size() == n_bytes) {
      longest = &*first;
      ++first;
    }
    if (n_bytes == text.size()) break;
    const auto byte_of = [n_bytes](const AddedToken& token) {
      return static_cast<uint8_t>(token.text[n_bytes]);
    };
    const auto wanted = static_cast<uint8_t>(text[n_bytes]);
    first =
        std::partition_point(first, last, [&](const AddedToken& t) { return byte_of(t) < wanted; });
    last = std::partition_point(first, last,
                                [&](const AddedToken& t) { return byte_of(t) == wanted; });
  }
  return longest;
}

std::optional<AddedTokens::Match> AddedTokens::find(std::string_view text, size_t from) const {
  for (size_t at = from; at < text.size(); ++at) {
    if (!starts_[static_cast<uint8_t>(text[at])]) continue;
    const AddedToken* token = longest_at(text.substr(at));
    if (token == nullptr) continue;
    Match match{at, at + token->text.size(), token->id};
    if (token->lstrip) match.begin -= white_space_behind(text.substr(from, at - from));
    if (token->rstrip) match.end += white_space_ahead(text.substr(match.end));
    return match;
  }
  return std::nullopt;
}

}  // namespace exo::text
