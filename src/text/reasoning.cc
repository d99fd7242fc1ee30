#include "text/reasoning.h"

#include <algorithm>
#include <utility>

namespace exo::text {
namespace {

constexpr std::string_view kWhiteSpace = " \t\r\n";

// The length of the longest end of `text` that is a beginning of `tag`.
size_t partial_tag(std::string_view text, std::string_view tag) {
  for (size_t n = std::min(text.size(), tag.size() - 1); n > 0; --n)
    if (text.ends_with(tag.substr(0, n))) return n;
  return 0;
}

}  // namespace

ReasoningSplitter::ReasoningSplitter(ReasoningStart start)
    : state_(start == ReasoningStart::none        ? State::content
             : start == ReasoningStart::in_prompt ? State::reasoning
                                                  : State::before) {}

ReasoningSplitter::Piece ReasoningSplitter::push(std::string_view text) {
  held_ += text;
  Piece piece;
  advance(piece, /*at_end=*/false);
  return piece;
}

ReasoningSplitter::Piece ReasoningSplitter::finish() {
  Piece piece;
  advance(piece, /*at_end=*/true);
  return piece;
}

void ReasoningSplitter::advance(Piece& piece, bool at_end) {
  if (state_ == State::before) {
    const size_t n_space = std::min(held_.find_first_not_of(kWhiteSpace), held_.size());
    const std::string_view rest = std::string_view(held_).substr(n_space);
    if (rest.starts_with(kThinkOpen)) {
      held_.erase(n_space, kThinkOpen.size());
      state_ = State::reasoning;
    } else if (at_end || !kThinkOpen.starts_with(rest)) {
      state_ = State::content;
    } else {
      return;
    }
  }
  if (state_ == State::reasoning) {
    const size_t close = held_.find(kThinkClose);
    if (close == std::string::npos) {
      const size_t n_out = held_.size() - (at_end ? 0 : partial_tag(held_, kThinkClose));
      piece.reasoning += std::string_view(held_).substr(0, n_out);
      held_.erase(0, n_out);
      return;
    }
    piece.reasoning += std::string_view(held_).substr(0, close);
    held_.erase(0, close + kThinkClose.size());
    state_ = State::content;
  }
  piece.content += std::exchange(held_, {});
}

}  // namespace exo::text
