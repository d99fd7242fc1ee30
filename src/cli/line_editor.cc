#include "cli/line_editor.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <histedit.h>
#include <langinfo.h>
#include <poll.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <clocale>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <iostream>

#include "base/os.h"
#include "base/utf8.h"
#include "cli/console.h"

namespace exo::cli {
namespace {

constexpr int kHistoryLines = 1000;
constexpr size_t kMaxHistoryBytes = 16 << 10;  // of one entry: more is no line to edit again

// A terminal in bracketed-paste mode says where a paste begins and ends, so that the line breaks
// in it aren't taken for Return.
constexpr const char* kPasteModeOn = "\x1b[?2004h";
constexpr const char* kPasteModeOff = "\x1b[?2004l";
constexpr std::string_view kPasteEnd = "\x1b[201~";
// A longer paste stands in the line as one word: libedit would draw all of it for every key.
constexpr size_t kShownPasteBytes = 1024;
constexpr size_t kShownPasteLines = 8;

// As the terminal was, for whoever ends the program at once (a second Ctrl-C).
struct termios g_settings {};
void restore_terminal() {
  [[maybe_unused]] const ssize_t n =
      ::write(STDOUT_FILENO, kPasteModeOff, std::strlen(kPasteModeOff));
  ::tcsetattr(STDIN_FILENO, TCSADRAIN, &g_settings);
}

volatile std::sig_atomic_t g_resized = 0, g_continued = 0;
extern "C" void on_resize(int) { g_resized = 1; }
extern "C" void on_continue(int) { g_continued = 1; }

void watch(int signal, void (*handler)(int), struct sigaction& before) {
  struct sigaction action {};
  action.sa_handler = handler;
  ::sigemptyset(&action.sa_mask);
  ::sigaction(signal, &action, &before);
}

/// UTF-8 that may stand in a line: line breaks as \n, no other control characters but tabs, U+FFFD
/// for what is no UTF-8.
std::string clean_paste(std::string_view bytes) {
  std::string text;
  while (!bytes.empty()) {
    const Utf8Step step = decode_utf8(bytes);
    const auto code = step.code_point < 0 ? 0xFFFD : static_cast<uint32_t>(step.code_point);
    bytes.remove_prefix(static_cast<size_t>(step.n_bytes));
    if (code == '\r') {
      text += '\n';
      if (bytes.starts_with('\n')) bytes.remove_prefix(1);
    } else if (code == '\n' || code == '\t' || (code >= 0x20 && code != 0x7F)) {
      append_utf8(text, code);
    }
  }
  while (text.ends_with('\n')) text.pop_back();  // Return is for the person to press
  return text;
}

class PlainLines : public LineEditor {
 public:
  Outcome read(const std::string&, std::string& line) override {
    return std::getline(std::cin, line) ? Outcome::line : Outcome::end;
  }
  void remember(const std::string&) override {}
  bool is_terminal() const override { return false; }
};

class Terminal : public LineEditor {
 public:
  Terminal(const std::string& history_file, std::vector<std::string> commands)
      : history_file_(history_file), commands_(std::move(commands)) {
    // Wide characters of libedit need a UTF-8 locale; the user's if it is one.
    if (std::setlocale(LC_CTYPE, "") == nullptr ||
        std::strcmp(::nl_langinfo(CODESET), "UTF-8") != 0)
      std::setlocale(LC_CTYPE, "C.UTF-8");
    open_terminal();
    edit_ = ::el_init("exo", stdin, stdout, stderr);
    history_ = ::history_init();
    HistEvent event;
    ::history(history_, &event, H_SETSIZE, kHistoryLines);
    ::history(history_, &event, H_SETUNIQUE, 1);
    ::el_set(edit_, EL_CLIENTDATA, this);
    ::el_set(edit_, EL_PROMPT, &Terminal::prompt);
    ::el_set(edit_, EL_EDITOR, "emacs");
    ::el_set(edit_, EL_HIST, ::history, history_);
    ::el_set(edit_, EL_GETCFN, &Terminal::read_character);
    ::el_set(edit_, EL_BIND, "^R", "em-inc-search-prev", nullptr);
    ::el_set(edit_, EL_SETTY, "-x", "eof=", nullptr);        // see open_terminal
    ::el_set(edit_, EL_BIND, "^@", "em-set-mark", nullptr);  // Ctrl-Space; libedit took it for EOF
    ::el_set(edit_, EL_ADDFN, "exo-paste", "Insert what is pasted", &Terminal::paste);
    ::el_set(edit_, EL_BIND, "\\e[200~", "exo-paste", nullptr);
    ::el_set(edit_, EL_ADDFN, "exo-complete", "Complete a command", &Terminal::complete);
    ::el_set(edit_, EL_BIND, "^I", "exo-complete", nullptr);
    watch(SIGWINCH, on_resize, resize_before_);
    watch(SIGCONT, on_continue, continue_before_);
    write_terminal(kPasteModeOn);
    if (history_file_.empty()) return;
    std::error_code ignored;
    std::filesystem::create_directories(std::filesystem::path(history_file_).parent_path(),
                                        ignored);
    ::history(history_, &event, H_LOAD, history_file_.c_str());
  }
  ~Terminal() override {
    write_terminal(kPasteModeOff);
    ::sigaction(SIGWINCH, &resize_before_, nullptr);
    ::sigaction(SIGCONT, &continue_before_, nullptr);
    InterruptScope::before_exit(nullptr);
    ::el_end(edit_);
    ::history_end(history_);
    if (has_settings_) ::tcsetattr(STDIN_FILENO, TCSADRAIN, &g_settings);
    if (input_ != STDIN_FILENO) ::close(input_);
  }

  Outcome read(const std::string& prompt, std::string& line) override {
    prompt_ = prompt;
    pastes_.clear();
    // Before the prompt: libedit would show it first, and what is typed meanwhile appears twice.
    ::el_set(edit_, EL_PREP_TERM, 1);
    int n = 0;
    const char* text = ::el_gets(edit_, &n);
    if (InterruptScope::interrupted()) {
      InterruptScope::reset();
      bytes_.clear();
      ::el_reset(edit_);
      std::fputs("\n", stdout);
      std::fflush(stdout);
      return Outcome::interrupted;
    }
    if (text == nullptr || n <= 0) {
      std::fputs("\n", stdout);
      std::fflush(stdout);
      return Outcome::end;
    }
    line.assign(text, static_cast<size_t>(n));
    while (!line.empty() && (line.back() == '\n' || line.back() == '\r')) line.pop_back();
    for (const auto& [word, text_of] : pastes_)
      if (const size_t at = line.find(word); at != std::string::npos)
        line.replace(at, word.size(), text_of);
    return Outcome::line;
  }

  void remember(const std::string& text) override {
    if (text.size() > kMaxHistoryBytes) return;
    HistEvent event;
    ::history(history_, &event, H_ENTER, text.c_str());
    if (history_file_.empty()) return;
    const mode_t before = ::umask(0077);
    ::history(history_, &event, H_SAVE, history_file_.c_str());
    ::umask(before);
  }
  bool is_terminal() const override { return true; }

 private:
  static Terminal& self(EditLine* edit) {
    Terminal* self = nullptr;
    ::el_get(edit, EL_CLIENTDATA, &self);
    return *self;
  }

  /// What is typed while an answer runs, or before libedit has taken the terminal over, reaches it
  /// whole. The kernel would turn a Ctrl-D of that time into a NUL, so it has no EOF character as
  /// long as the chat lasts. And Ctrl-C throws away what poll() has just reported, upon which a
  /// read() would wait for ever: this one has a descriptor of its own that doesn't block (a flag
  /// on stdin itself would reach everyone who shares it, the shell too).
  void open_terminal() {
    has_settings_ = ::tcgetattr(STDIN_FILENO, &g_settings) == 0;
    if (has_settings_) {
      InterruptScope::before_exit(restore_terminal);
      struct termios ours = g_settings;
      ours.c_cc[VEOF] = _POSIX_VDISABLE;
      ::tcsetattr(STDIN_FILENO, TCSADRAIN, &ours);
    }
    const char* name = ::ttyname(STDIN_FILENO);
    const int own = name ? ::open(name, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC) : -1;
    if (own >= 0) input_ = own;
  }

  void write_terminal(std::string_view text) {
    // Nothing to be done where it fails: the terminal is gone then.
    [[maybe_unused]] const ssize_t n = ::write(STDOUT_FILENO, text.data(), text.size());
  }

  enum : int { kInterrupted = -1, kEnd = -2 };

  /// The next byte typed; kInterrupted when Ctrl-C was pressed, which libedit's own reader would
  /// swallow.
  int next_byte() {
    if (InterruptScope::interrupted()) return kInterrupted;
    if (bytes_.empty()) {
      // These signals come while ppoll waits and at no other time, so that none slips in before it.
      sigset_t blocked, others;
      ::sigemptyset(&blocked);
      for (int signal : {SIGINT, SIGWINCH, SIGCONT}) ::sigaddset(&blocked, signal);
      ::pthread_sigmask(SIG_BLOCK, &blocked, &others);
      const int end = wait_for_bytes(others);
      ::pthread_sigmask(SIG_SETMASK, &others, nullptr);
      if (end != 0) return end;
    }
    const auto byte = static_cast<unsigned char>(bytes_[n_taken_++]);
    if (n_taken_ == bytes_.size()) {
      bytes_.clear();
      n_taken_ = 0;
    }
    return byte;
  }

  int wait_for_bytes(const sigset_t& others) {
    for (;;) {
      if (InterruptScope::interrupted()) return kInterrupted;
      follow_terminal();
      struct pollfd ready = {input_, POLLIN, 0};
      // A shell continues a program and gives it the terminal in either order: look again soon.
      const struct timespec soon = {0, 20'000'000};
      if (::ppoll(&ready, 1, g_continued != 0 ? &soon : nullptr, &others) <= 0) continue;
      char buffer[4096];
      const ssize_t n = ::read(input_, buffer, sizeof buffer);
      if (n < 0 && (errno == EINTR || errno == EAGAIN)) continue;
      if (n <= 0) return kEnd;
      bytes_.assign(buffer, static_cast<size_t>(n));
      n_taken_ = 0;
      return 0;
    }
  }

  /// Another size, or back after Ctrl-Z: the shell has set the terminal to its own mode meanwhile,
  /// and what was typed is drawn again where the cursor is now.
  void follow_terminal() {
    const bool continued = g_continued != 0, resized = g_resized != 0;
    const bool in_background = ::tcgetpgrp(STDIN_FILENO) != ::getpgrp();
    if ((!continued && !resized) || in_background) return;
    g_continued = 0;
    g_resized = 0;
    const int rows_above = continued ? 0 : rows_before_cursor();
    if (continued) {
      ::el_set(edit_, EL_PREP_TERM, 0);  // it takes the terminal's mode for the one that it set
      ::el_set(edit_, EL_PREP_TERM, 1);
      write_terminal(kPasteModeOn);
    }
    if (resized) ::el_resize(edit_);
    write_terminal(rows_above > 0 ? fmt::format("\r\x1b[{}A\x1b[J", rows_above) : "\r\x1b[J");
    ::el_set(edit_, EL_REFRESH);
  }

  int rows_before_cursor() {
    const LineInfo* line = ::el_line(edit_);
    const int columns = terminal_columns();
    int row = 0, column = static_cast<int>(prompt_.size());
    for (const char* at = line->buffer; at != line->cursor; ++at) {
      const bool begins_character = (static_cast<unsigned char>(*at) & 0xC0) != 0x80;
      column += begins_character ? 1 : 0;
      if (*at != '\n' && column < columns) continue;
      ++row;
      column = 0;
    }
    return row;
  }

  /// One character for libedit; 0 at the end of input, -1 when Ctrl-C was pressed.
  static int read_character(EditLine* edit, wchar_t* out) {
    std::string bytes;
    for (;;) {
      const int byte = self(edit).next_byte();
      if (byte < 0) return byte == kInterrupted ? -1 : 0;
      bytes.push_back(static_cast<char>(byte));
      const Utf8Step step = decode_utf8(bytes);
      if (step.truncated) continue;
      *out = step.code_point < 0 ? L'\xFFFD' : static_cast<wchar_t>(step.code_point);
      return 1;
    }
  }

  static unsigned char paste(EditLine* edit, int) {
    Terminal& terminal = self(edit);
    std::string bytes;
    while (!bytes.ends_with(kPasteEnd)) {
      const int byte = terminal.next_byte();
      if (byte < 0) return CC_EOF;
      bytes.push_back(static_cast<char>(byte));
    }
    bytes.resize(bytes.size() - kPasteEnd.size());
    std::string text = clean_paste(bytes);
    const auto n_lines = static_cast<size_t>(std::count(text.begin(), text.end(), '\n')) + 1;
    if (text.size() > kShownPasteBytes || n_lines > kShownPasteLines) {
      std::string word = fmt::format("[paste {}: {}{}]", terminal.pastes_.size() + 1,
                                     n_lines > 1 ? fmt::format("{} lines, ", n_lines) : "",
                                     format_bytes(text.size()));
      terminal.pastes_.emplace_back(word, std::move(text));
      text = std::move(word);
    }
    if (!text.empty()) ::el_insertstr(edit, text.c_str());
    return CC_REFRESH;
  }

  static unsigned char complete(EditLine* edit, int) {
    const LineInfo* line = ::el_line(edit);
    const std::string_view before(line->buffer, static_cast<size_t>(line->cursor - line->buffer));
    if (before.empty() || before.front() != '/') {
      ::el_insertstr(edit, "\t");
      return CC_REFRESH;
    }
    const std::string* only = nullptr;
    for (const std::string& command : self(edit).commands_) {
      if (!command.starts_with(before)) continue;
      if (only != nullptr) return CC_REFRESH_BEEP;
      only = &command;
    }
    if (only == nullptr) return CC_REFRESH_BEEP;
    ::el_insertstr(edit, (only->substr(before.size()) + " ").c_str());
    return CC_REFRESH;
  }

  static char* prompt(EditLine* edit) { return self(edit).prompt_.data(); }

  std::string history_file_;
  std::vector<std::string> commands_;
  std::string prompt_;
  std::string bytes_;  ///< read and not yet given to libedit, from n_taken_ on
  size_t n_taken_ = 0;
  std::vector<std::pair<std::string, std::string>> pastes_;  ///< word in the line, its text
  struct sigaction resize_before_ = {}, continue_before_ = {};
  bool has_settings_ = false;
  int input_ = STDIN_FILENO;
  EditLine* edit_ = nullptr;
  History* history_ = nullptr;
};

}  // namespace

std::unique_ptr<LineEditor> LineEditor::create(const std::string& history_file,
                                               std::vector<std::string> commands) {
  if (exo::is_terminal(STDIN_FILENO) && exo::is_terminal(STDOUT_FILENO))
    return std::make_unique<Terminal>(history_file, std::move(commands));
  return std::make_unique<PlainLines>();
}

}  // namespace exo::cli
