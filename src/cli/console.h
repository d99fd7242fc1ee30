/// How exo speaks to a person: figures on stderr, answers on stdout, progress that doesn't flood a
/// log file, and Ctrl-C.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/status.h"

namespace exo::cli {

/// "1.23 GB", "456 MB", "12 B": powers of 1000.
std::string format_bytes(uint64_t n_bytes);
/// "1,234,567".
std::string format_count(int64_t n);
/// "12.3 s", "4 min 05 s", "2 h 10 min", "3.2 ms".
std::string format_duration(double seconds);

/// Writes bytes to stdout and flushes; a closed pipe is `unavailable`.
Status write_out(std::string_view bytes);
/// A line on stderr.
void say(std::string_view line);

/// A file's bytes, or stdin's for "-".
Result<std::string> read_input(const std::string& path, uint64_t max_bytes);

/// Work of known size: a bar with rate and time left on a terminal, else a line at the beginning
/// and at the end.
class ProgressBar {
 public:
  enum class Unit { bytes, tokens };
  /// `quiet`: shows nothing when it isn't a terminal.
  ProgressBar(std::string label, Unit unit, bool plain);
  ~ProgressBar();
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  /// The first call's `done` is what was done before: rates leave it out.
  void update(uint64_t done, uint64_t total);
  /// Removes the bar; on a log: says how long it took.
  void finish();

 private:
  std::string amount(double n) const;
  void draw(uint64_t done, uint64_t total);

  std::string label_;
  Unit unit_;
  bool terminal_;
  bool started_ = false, finished_ = false;
  uint64_t before_ = 0, done_ = 0;
  std::chrono::steady_clock::time_point begin_, drawn_;
};

/// From here on Ctrl-C ends the program at once, with exit code 130, unless it is ignored (a job in
/// the background). What AtomicFile has not committed leaves no file of its name.
void exit_on_interrupt();

/// While it lives, Ctrl-C sets interrupted() instead of ending the program; a second one before
/// reset() ends it with exit code 130.
class InterruptScope {
 public:
  InterruptScope();
  ~InterruptScope();
  InterruptScope(const InterruptScope&) = delete;
  InterruptScope& operator=(const InterruptScope&) = delete;

  static const std::atomic<bool>& flag();
  static bool interrupted() { return flag().load(); }
  static void reset();
  /// Called before that second Ctrl-C ends the program; what a signal handler may call. nullptr:
  /// nothing.
  static void before_exit(void (*restore)());
};

}  // namespace exo::cli
