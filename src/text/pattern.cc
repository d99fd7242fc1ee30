#include "text/pattern.h"

#include <fmt/core.h>

#include <algorithm>
#include <limits>
#include <new>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

namespace exo::text {
namespace {

constexpr size_t kMaxPatternBytes = 64 << 10;
constexpr size_t kMaxJitStackBytes = 8 << 20;
// PCRE2's own default. A search that walks a long text takes a few steps a byte on top.
constexpr uint32_t kBaseMatchLimit = 10'000'000;
constexpr uint32_t kStepsPerByte = 16;
constexpr uint32_t kHeapLimitKib = 1 << 20;

std::string pcre2_error(int code) {
  PCRE2_UCHAR text[256];
  pcre2_get_error_message(code, text, sizeof text);
  return reinterpret_cast<const char*>(text);
}

bool is_letter_or_digit(char c) {
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

// Walks a pattern once, left to right.
class Translator {
 public:
  explicit Translator(std::string_view pattern) : rest_(pattern), pattern_(pattern) {}

  Result<std::string> run() {
    while (!rest_.empty()) {
      const char c = rest_.front();
      if (c == '\\') {
        EXO_RETURN_IF_ERROR(escape());
      } else if (in_class_) {
        EXO_RETURN_IF_ERROR(class_character());
      } else if (rest_.starts_with("(?") || c == '{' || c == '}') {
        EXO_RETURN_IF_ERROR(construct());
      } else {
        if (c == '[') {
          in_class_ = true;
          class_start_ = true;
        }
        copy(1);
        if (in_class_ && rest_.starts_with('^')) copy(1);
      }
    }
    // PCRE2 would try this at every white space of a run that isn't at the end of a line, which
    // takes quadratic time. A match can only begin where a run, or the search, begins.
    if (out_ == "\\p{White_Space}+$") out_.insert(0, "(?:\\G|(?<!\\p{White_Space}))");
    return std::move(out_);
  }

 private:
  void copy(size_t n_bytes) {
    out_ += rest_.substr(0, n_bytes);
    rest_.remove_prefix(n_bytes);
  }

  Status refuse(std::string_view what) const {
    return unimplemented(fmt::format(
        "pattern '{}', byte {}: {} is read differently by Oniguruma and PCRE2, and not supported",
        pattern_.substr(0, 200), pattern_.size() - rest_.size(), what));
  }

  Status class_character() {
    const char c = rest_.front();
    if (c == '[') return refuse("a class in a class");
    if (rest_.starts_with("&&")) return refuse("&& in a class");
    if (c == ']' && class_start_) return refuse("an empty class");
    if (c == ']') in_class_ = false;
    class_start_ = false;
    copy(1);
    return ok_status();
  }

  Status escape() {
    class_start_ = false;
    if (rest_.size() < 2) return refuse("a backslash at the end");
    const char c = rest_[1];
    // PCRE2's \s has U+180E, which left White_Space in Unicode 6.3.
    if (c == 's' || c == 'S') {
      out_ += c == 's' ? "\\p{White_Space}" : "\\P{White_Space}";
      rest_.remove_prefix(2);
      return ok_status();
    }
    if (c == 'p' || c == 'P') return property();
    if (is_letter_or_digit(c) && std::string_view("dDrnt").find(c) == std::string_view::npos)
      return refuse(fmt::format("\\{}", c));
    copy(2);
    return ok_status();
  }

  // General categories only: a script's name means script extensions in PCRE2.
  Status property() {
    const size_t end = rest_.find('}');
    if (rest_.size() < 4 || rest_[2] != '{' || end == std::string_view::npos)
      return refuse("a property without braces");
    std::string_view name = rest_.substr(3, end - 3);
    if (name.starts_with('^')) name.remove_prefix(1);
    const bool is_category = !name.empty() && name.size() <= 2 &&
                             std::string_view("CLMNPSZ").find(name[0]) != std::string_view::npos &&
                             (name.size() == 1 || (name[1] >= 'a' && name[1] <= 'z'));
    if (!is_category) return refuse(fmt::format("property {}", name.substr(0, 40)));
    copy(end + 1);
    return ok_status();
  }

  Status construct() {
    if (rest_.front() == '(') {
      for (const char* known : {"(?:", "(?=", "(?!", "(?>", "(?<=", "(?<!", "(?i:"}) {
        if (!rest_.starts_with(known)) continue;
        copy(std::string_view(known).size());
        return ok_status();
      }
      return refuse("this group");
    }
    if (rest_.starts_with("{,")) return refuse("{,n}");
    // Ruby reads {n,m}+ as a repeated group and {n}? as an optional one.
    if (rest_.starts_with("}+") || rest_.starts_with("}?")) return refuse("+ or ? after {n,m}");
    copy(1);
    return ok_status();
  }

  std::string out_;
  std::string_view rest_;
  std::string_view pattern_;
  bool in_class_ = false;
  bool class_start_ = false;
};

}  // namespace

Result<std::string> translate_oniguruma(std::string_view pattern) {
  return Translator(pattern).run();
}

struct Pattern::Scratch::Data {
  pcre2_match_data* match_data = nullptr;
  pcre2_match_context* context = nullptr;
  pcre2_jit_stack* jit_stack = nullptr;
  ~Data() {
    pcre2_match_data_free(match_data);
    pcre2_match_context_free(context);
    pcre2_jit_stack_free(jit_stack);
  }
};

struct Pattern::Code {
  pcre2_code* code = nullptr;
  bool jit = false;
  std::string text;  // as in the file, for errors
  ~Code() { pcre2_code_free(code); }

  int run(std::string_view subject, size_t from, const Scratch::Data& data) const {
    const auto* begin = reinterpret_cast<PCRE2_SPTR>(subject.data());
    if (jit)
      return pcre2_jit_match(code, begin, subject.size(), from, 0, data.match_data, data.context);
    return pcre2_match(code, begin, subject.size(), from, PCRE2_NO_UTF_CHECK, data.match_data,
                       data.context);
  }
};

Pattern::Pattern(std::unique_ptr<Code> code) : code_(std::move(code)) {}
Pattern::Pattern(Pattern&&) noexcept = default;
Pattern& Pattern::operator=(Pattern&&) noexcept = default;
Pattern::~Pattern() = default;

Pattern::Scratch::Scratch(Scratch&&) noexcept = default;
Pattern::Scratch::~Scratch() = default;

Pattern::Scratch::Scratch(const Pattern& pattern) : data_(std::make_unique<Data>()) {
  data_->match_data = pcre2_match_data_create_from_pattern(pattern.code_->code, nullptr);
  data_->context = pcre2_match_context_create(nullptr);
  if (data_->match_data == nullptr || data_->context == nullptr) throw std::bad_alloc();
  pcre2_set_heap_limit(data_->context, kHeapLimitKib);
}

Result<Pattern> Pattern::compile(std::string_view pattern, bool literal) {
  if (pattern.size() > kMaxPatternBytes)
    return invalid_argument(fmt::format("a pattern of {} bytes, at most {} are supported",
                                        pattern.size(), kMaxPatternBytes));
  std::string translated(pattern);
  if (!literal) {
    EXO_ASSIGN_OR_RETURN(translated, translate_oniguruma(pattern));
  }
  std::unique_ptr<pcre2_compile_context, decltype(&pcre2_compile_context_free)> context(
      pcre2_compile_context_create(nullptr), pcre2_compile_context_free);
  if (context == nullptr) return resource_exhausted("no memory for a pattern");
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  const uint32_t options =
      PCRE2_UTF | (literal ? PCRE2_LITERAL : PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C);
  int error = 0;
  size_t offset = 0;
  auto code = std::make_unique<Code>();
  code->text = pattern.substr(0, 200);
  code->code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                             options, &error, &offset, context.get());
  if (code->code == nullptr)
    return invalid_argument(fmt::format("pattern '{}' is not a regular expression: {} (byte {})",
                                        code->text, pcre2_error(error), offset));
  uint32_t matches_empty = 0;
  pcre2_pattern_info(code->code, PCRE2_INFO_MATCHEMPTY, &matches_empty);
  if (matches_empty != 0)
    return unimplemented(
        fmt::format("pattern '{}' can match nothing at all: not supported", code->text));
  code->jit = pcre2_jit_compile(code->code, PCRE2_JIT_COMPLETE) == 0;
  return Pattern(std::move(code));
}

Result<Pattern::Match> Pattern::find(std::string_view text, size_t from, Scratch& scratch) const {
  Scratch::Data& data = *scratch.data_;
  const uint64_t limit = kBaseMatchLimit + uint64_t{kStepsPerByte} * text.size();
  pcre2_set_match_limit(data.context, static_cast<uint32_t>(std::min<uint64_t>(
                                          limit, std::numeric_limits<uint32_t>::max())));
  int n = code_->run(text, from, data);
  // PCRE2 uses 32 KiB of the machine's stack until it is given one, which hardly any text needs.
  if (n == PCRE2_ERROR_JIT_STACKLIMIT && data.jit_stack == nullptr) {
    data.jit_stack = pcre2_jit_stack_create(64 << 10, kMaxJitStackBytes, nullptr);
    pcre2_jit_stack_assign(data.context, nullptr, data.jit_stack);
    n = code_->run(text, from, data);
  }
  if (n == PCRE2_ERROR_NOMATCH) return Match{text.size(), text.size(), false};
  if (n < 0)
    return resource_exhausted(
        fmt::format("the tokenizer's pattern '{}' fails on {} bytes of text: {}", code_->text,
                    text.size(), pcre2_error(n)));
  const size_t* range = pcre2_get_ovector_pointer(data.match_data);
  return Match{range[0], range[1], true};
}

}  // namespace exo::text
