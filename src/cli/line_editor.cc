#include "cli/line_editor.h"

#include <fcntl.h>
#include <histedit.h>
#include <langinfo.h>
#include <poll.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>

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
  explicit Terminal(const std::string& history_file) : history_file_(history_file) {
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
    if (history_file_.empty()) return;
    std::error_code ignored;
    std::filesystem::create_directories(std::filesystem::path(history_file_).parent_path(),
                                        ignored);
    ::history(history_, &event, H_LOAD, history_file_.c_str());
  }
  ~Terminal() override {
    ::el_end(edit_);
    ::history_end(history_);
    if (has_settings_) ::tcsetattr(STDIN_FILENO, TCSADRAIN, &settings_);
    if (input_ != STDIN_FILENO) ::close(input_);
  }

  Outcome read(const std::string& prompt, std::string& line) override {
    prompt_ = prompt;
    int n = 0;
    const char* text = ::el_gets(edit_, &n);
    if (InterruptScope::interrupted()) {
      InterruptScope::reset();
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
    return Outcome::line;
  }

  void remember(const std::string& text) override {
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
    has_settings_ = ::tcgetattr(STDIN_FILENO, &settings_) == 0;
    if (has_settings_) {
      struct termios ours = settings_;
      ours.c_cc[VEOF] = _POSIX_VDISABLE;
      ::tcsetattr(STDIN_FILENO, TCSADRAIN, &ours);
    }
    const char* name = ::ttyname(STDIN_FILENO);
    const int own = name ? ::open(name, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC) : -1;
    if (own >= 0) input_ = own;
  }

  /// Reads one character; 0 at the end of input, -1 when Ctrl-C was pressed, which libedit's own
  /// reader would swallow.
  static int read_character(EditLine* edit, wchar_t* out) {
    const int input = self(edit).input_;
    // SIGINT comes while ppoll waits and at no other time, so that none slips in before it.
    sigset_t interrupt, others;
    ::sigemptyset(&interrupt);
    ::sigaddset(&interrupt, SIGINT);
    ::pthread_sigmask(SIG_BLOCK, &interrupt, &others);
    const int n = read_utf8(input, others, out);
    ::pthread_sigmask(SIG_SETMASK, &others, nullptr);
    return n;
  }

  static int read_utf8(int input, const sigset_t& others, wchar_t* out) {
    std::string bytes;
    for (;;) {
      if (InterruptScope::interrupted()) return -1;
      struct pollfd ready = {input, POLLIN, 0};
      if (::ppoll(&ready, 1, nullptr, &others) < 0) continue;
      char byte = 0;
      const ssize_t n = ::read(input, &byte, 1);
      if (n < 0 && (errno == EINTR || errno == EAGAIN)) continue;
      if (n <= 0) return 0;
      bytes.push_back(byte);
      const Utf8Step step = decode_utf8(bytes);
      if (step.truncated) continue;
      *out = step.code_point < 0 ? L'\xFFFD' : static_cast<wchar_t>(step.code_point);
      return 1;
    }
  }

  static char* prompt(EditLine* edit) { return self(edit).prompt_.data(); }

  std::string history_file_;
  std::string prompt_;
  struct termios settings_ = {};  // as the terminal was
  bool has_settings_ = false;
  int input_ = STDIN_FILENO;
  EditLine* edit_ = nullptr;
  History* history_ = nullptr;
};

}  // namespace

std::unique_ptr<LineEditor> LineEditor::create(const std::string& history_file) {
  if (exo::is_terminal(STDIN_FILENO) && exo::is_terminal(STDOUT_FILENO))
    return std::make_unique<Terminal>(history_file);
  return std::make_unique<PlainLines>();
}

}  // namespace exo::cli
