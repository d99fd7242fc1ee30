#include "cli/console.h"

#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>

#include "base/os.h"

namespace exo::cli {
namespace {

using Clock = std::chrono::steady_clock;

std::atomic<bool> g_interrupted{false};
std::atomic<void (*)()> g_before_exit{nullptr};
struct sigaction g_previous {};

constexpr int kInterruptedExit = 130;

extern "C" void on_interrupt(int) {
  if (!g_interrupted.exchange(true)) return;
  if (auto* restore = g_before_exit.load()) restore();
  ::_exit(kInterruptedExit);
}
extern "C" void exit_now(int) { ::_exit(kInterruptedExit); }

}  // namespace

std::string format_bytes(uint64_t n_bytes) {
  const auto n = static_cast<double>(n_bytes);
  if (n < 1e3) return fmt::format("{} B", n_bytes);
  if (n < 1e6) return fmt::format("{:.1f} kB", n / 1e3);
  if (n < 1e9) return fmt::format("{:.1f} MB", n / 1e6);
  if (n < 1e12) return fmt::format("{:.2f} GB", n / 1e9);
  return fmt::format("{:.2f} TB", n / 1e12);
}

std::string format_count(int64_t n) {
  const std::string digits = std::to_string(n);
  std::string text;
  for (size_t i = 0; i < digits.size(); ++i) {
    const bool group = i > 0 && digits[i - 1] != '-' && (digits.size() - i) % 3 == 0;
    if (group) text.push_back(',');
    text.push_back(digits[i]);
  }
  return text;
}

std::string format_duration(double seconds) {
  if (seconds < 1) return fmt::format("{:.0f} ms", seconds * 1e3);
  if (seconds < 100) return fmt::format("{:.1f} s", seconds);
  const auto whole = static_cast<int64_t>(seconds);
  if (whole < 3600) return fmt::format("{} min {:02} s", whole / 60, whole % 60);
  return fmt::format("{} h {:02} min", whole / 3600, whole / 60 % 60);
}

Status write_out(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(STDOUT_FILENO, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return unavailable(fmt::format("stdout: cannot write: {}", std::strerror(errno)));
    bytes.remove_prefix(static_cast<size_t>(n));
  }
  return ok_status();
}

void say(std::string_view line) {
  // One write a line, so that lines of several processes don't mix.
  std::string text(line);
  text += '\n';
  std::fwrite(text.data(), 1, text.size(), stderr);
}

Result<std::string> read_input(const std::string& path, uint64_t max_bytes) {
  if (path != "-") return read_file(path, max_bytes);
  std::string text;
  char buffer[1 << 16];
  for (;;) {
    const ssize_t n = ::read(STDIN_FILENO, buffer, sizeof buffer);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return unavailable(fmt::format("stdin: cannot read: {}", std::strerror(errno)));
    if (n == 0) return text;
    text.append(buffer, static_cast<size_t>(n));
    if (text.size() > max_bytes)
      return invalid_argument(fmt::format("stdin: more than {}", format_bytes(max_bytes)));
  }
}

ProgressBar::ProgressBar(std::string label, Unit unit, bool plain)
    : label_(std::move(label)), unit_(unit), terminal_(!plain && is_terminal(STDERR_FILENO)) {}

ProgressBar::~ProgressBar() { finish(); }

std::string ProgressBar::amount(double n) const {
  if (unit_ == Unit::bytes) return format_bytes(static_cast<uint64_t>(n));
  return format_count(static_cast<int64_t>(n)) + " tokens";
}

void ProgressBar::update(uint64_t done, uint64_t total) {
  const auto now = Clock::now();
  if (!started_) {
    started_ = true;
    before_ = done;
    begin_ = now;
    if (!terminal_)
      say(fmt::format(
          "{}: {}{}", label_, amount(static_cast<double>(total)),
          done > 0 ? fmt::format(", {} done before", amount(static_cast<double>(done))) : ""));
  }
  done_ = done;
  using std::chrono::milliseconds;
  if (terminal_ && (now - drawn_ > milliseconds(100) || done == total)) {
    drawn_ = now;
    draw(done, total);
  }
}

void ProgressBar::draw(uint64_t done, uint64_t total) {
  const double elapsed = std::chrono::duration<double>(Clock::now() - begin_).count();
  const auto worked = static_cast<double>(done - before_);
  const double share = total > 0 ? static_cast<double>(done) / static_cast<double>(total) : 1;
  const double rate = elapsed > 0 ? worked / elapsed : 0;
  std::string figures = fmt::format(" {:3.0f}% of {}, {}/s", share * 100,
                                    amount(static_cast<double>(total)), amount(rate));
  if (rate > 0 && done < total)
    figures += fmt::format(", {} left", format_duration(static_cast<double>(total - done) / rate));
  const int room = terminal_columns() - static_cast<int>(label_.size() + figures.size()) - 5;
  const int width = std::clamp(room, 0, 40);
  const int filled = static_cast<int>(share * width);
  const std::string bar =
      width < 8 ? "" : fmt::format(" [{:=<{}}{: <{}}]", "", filled, "", width - filled);
  fmt::print(stderr, "\r\x1b[K{}{}{}", label_, bar, figures);
  std::fflush(stderr);
}

void ProgressBar::finish() {
  if (!started_ || finished_) return;
  finished_ = true;
  const double elapsed = std::chrono::duration<double>(Clock::now() - begin_).count();
  if (terminal_) {
    fmt::print(stderr, "\r\x1b[K");
    std::fflush(stderr);
  }
  if (unit_ == Unit::bytes || !terminal_)
    say(fmt::format("{}: {} in {}", label_, amount(static_cast<double>(done_ - before_)),
                    format_duration(elapsed)));
}

void exit_on_interrupt() {
  struct sigaction action {};
  ::sigaction(SIGINT, nullptr, &action);
  if (action.sa_handler == SIG_IGN) return;
  action = {};
  action.sa_handler = exit_now;
  ::sigemptyset(&action.sa_mask);
  ::sigaction(SIGINT, &action, nullptr);
}

InterruptScope::InterruptScope() {
  reset();
  struct sigaction action {};
  action.sa_handler = on_interrupt;
  ::sigemptyset(&action.sa_mask);
  ::sigaction(SIGINT, &action, &g_previous);
}

InterruptScope::~InterruptScope() { ::sigaction(SIGINT, &g_previous, nullptr); }

const std::atomic<bool>& InterruptScope::flag() { return g_interrupted; }

void InterruptScope::before_exit(void (*restore)()) { g_before_exit.store(restore); }

void InterruptScope::reset() { g_interrupted.store(false); }

}  // namespace exo::cli
