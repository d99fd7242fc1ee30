#include "cli/line_editor.h"

#include <histedit.h>
#include <langinfo.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <clocale>
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

/// Reads one character; -1 at the end of input and when Ctrl-C was pressed, which libedit's own
/// reader would swallow.
int read_character(EditLine*, wchar_t* out) {
  std::string bytes;
  for (;;) {
    struct pollfd input = {STDIN_FILENO, POLLIN, 0};
    if (InterruptScope::interrupted()) return -1;
    if (::poll(&input, 1, -1) < 0) continue;
    char byte = 0;
    const ssize_t n = ::read(STDIN_FILENO, &byte, 1);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return n == 0 ? 0 : -1;
    bytes.push_back(byte);
    const Utf8Step step = decode_utf8(bytes);
    if (step.truncated) continue;
    *out = step.code_point < 0 ? L'\xFFFD' : static_cast<wchar_t>(step.code_point);
    return 1;
  }
}

class Terminal : public LineEditor {
 public:
  explicit Terminal(const std::string& history_file) : history_file_(history_file) {
    // Wide characters of libedit need a UTF-8 locale; the user's if it is one.
    if (std::setlocale(LC_CTYPE, "") == nullptr ||
        std::strcmp(::nl_langinfo(CODESET), "UTF-8") != 0)
      std::setlocale(LC_CTYPE, "C.UTF-8");
    edit_ = ::el_init("exo", stdin, stdout, stderr);
    history_ = ::history_init();
    HistEvent event;
    ::history(history_, &event, H_SETSIZE, kHistoryLines);
    ::history(history_, &event, H_SETUNIQUE, 1);
    ::el_set(edit_, EL_CLIENTDATA, this);
    ::el_set(edit_, EL_PROMPT, &Terminal::prompt);
    ::el_set(edit_, EL_EDITOR, "emacs");
    ::el_set(edit_, EL_HIST, ::history, history_);
    ::el_set(edit_, EL_GETCFN, read_character);
    ::el_set(edit_, EL_BIND, "^R", "em-inc-search-prev", nullptr);
    if (history_file_.empty()) return;
    std::error_code ignored;
    std::filesystem::create_directories(std::filesystem::path(history_file_).parent_path(),
                                        ignored);
    ::history(history_, &event, H_LOAD, history_file_.c_str());
  }
  ~Terminal() override {
    ::el_end(edit_);
    ::history_end(history_);
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
  static char* prompt(EditLine* edit) {
    Terminal* self = nullptr;
    ::el_get(edit, EL_CLIENTDATA, &self);
    return self->prompt_.data();
  }

  std::string history_file_;
  std::string prompt_;
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
