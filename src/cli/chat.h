/// The interactive chat of `exo run MODEL`.
#pragma once

#include <string>
#include <vector>

#include "cli/answerer.h"
#include "cli/options.h"

namespace exo::cli {

/// Reads turns from the terminal (libedit: history, editing) or, when stdin is none, from lines.
Status chat(const Context& context, const RunOptions& options);

/// Are colours wanted on stdout: a terminal, no NO_COLOR, no --disable-tui?
bool use_colour(const Context& context);

/// Streams an answer to stdout: reasoning dimmed, or left out.
class AnswerPrinter {
 public:
  AnswerPrinter(bool enabled, bool hide_thinking, bool colour)
      : enabled_(enabled), hide_thinking_(hide_thinking), colour_(colour) {}
  void print(const text::ReasoningSplitter::Piece& piece);
  /// Ends the line.
  void finish();
  /// The first failed write (a closed pipe).
  const Status& status() const { return status_; }

 private:
  void write(std::string_view text);
  void print_content(std::string_view content);
  bool enabled_, hide_thinking_, colour_;
  bool in_reasoning_ = false, anything_ = false, hidden_said_ = false;
  bool between_ = false;     ///< reasoning has ended and nothing of the content is shown
  bool line_ended_ = false;  ///< by the reasoning
  char last_ = '\n';
  Status status_;
};

/// A conversation with one more user message.
text::ChatRequest make_request(const std::string& system, const std::vector<text::Message>& before,
                               const std::string& user);

}  // namespace exo::cli
