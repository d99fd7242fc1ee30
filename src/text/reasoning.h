/// Splits a streamed answer into reasoning (between <think> and </think>) and content.
///
/// Every byte comes out exactly once and in order, but for the two tags themselves: opening tag (if
/// the model wrote it) + reasoning + closing tag + content is the answer. Tags may be cut anywhere.
/// Only the first closing tag counts; later tags are content. White space around tags is kept. If
/// the answer ends inside the reasoning, all of it is reasoning.
#pragma once

#include <string>
#include <string_view>

namespace exo::text {

inline constexpr std::string_view kThinkOpen = "<think>";
inline constexpr std::string_view kThinkClose = "</think>";

/// Where the opening tag is.
enum class ReasoningStart {
  none,       ///< no reasoning: all is content
  in_prompt,  ///< the prompt ends with it (R1, V3.1 thinking)
  by_model,   ///< the model writes it first, after white space at most (R1-0528), or doesn't think
};

class ReasoningSplitter {
 public:
  explicit ReasoningSplitter(ReasoningStart start);

  struct Piece {
    std::string reasoning;
    std::string content;
  };
  Piece push(std::string_view text);
  /// The end of the answer: what was held back as the possible beginning of a tag.
  Piece finish();

  bool in_reasoning() const { return state_ == State::reasoning; }

 private:
  enum class State { before, reasoning, content };
  void advance(Piece& piece, bool at_end);

  State state_;
  std::string held_;
};

}  // namespace exo::text
