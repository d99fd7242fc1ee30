/// Lines from a person: on a terminal with editing, history, pastes of several lines and completion
/// of commands (libedit, known to line_editor.cc alone), else plain lines of stdin.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/status.h"

namespace exo::cli {

class LineEditor {
 public:
  /// `history_file`: loaded, and appended to while lines are read; empty: none. It holds what a
  /// person typed, so it is made readable by its owner alone. `commands`: what Tab completes at a
  /// line's beginning; each begins with '/'.
  static std::unique_ptr<LineEditor> create(const std::string& history_file,
                                            std::vector<std::string> commands);
  virtual ~LineEditor() = default;

  enum class Outcome { line, interrupted, end };
  /// One line without its line break; what was pasted into it may hold others.
  virtual Outcome read(const std::string& prompt, std::string& line) = 0;
  /// Remembers what was read (several lines count as one).
  virtual void remember(const std::string& text) = 0;
  virtual bool is_terminal() const = 0;
};

}  // namespace exo::cli
