/// One regular expression of a tokenizer.json, run by PCRE2 (UTF and UCP, compiled to machine code
/// where PCRE2 can).
///
/// tokenizer.json patterns are written for Oniguruma (Ruby syntax). What both read alike is passed
/// on, `\s` and `$` are translated, and what they read differently is refused (unimplemented), so
/// that an unforeseen file gives an error instead of other ids.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

#include "base/status.h"

namespace exo::text {

class Pattern {
 public:
  /// `literal`: the text itself is looked for. A pattern that can match nothing is refused.
  static Result<Pattern> compile(std::string_view pattern, bool literal);

  Pattern(Pattern&&) noexcept;
  Pattern& operator=(Pattern&&) noexcept;
  ~Pattern();

  /// The memory of one search; not to be shared by threads.
  class Scratch {
   public:
    explicit Scratch(const Pattern& pattern);
    Scratch(Scratch&&) noexcept;
    ~Scratch();

   private:
    friend class Pattern;
    struct Data;
    std::unique_ptr<Data> data_;
  };

  struct Match {
    size_t begin;
    size_t end;  ///< > begin
    bool found;
  };
  /// The leftmost match in `text` (valid UTF-8) at or after `from`. resource_exhausted: the search
  /// passed PCRE2's limits.
  Result<Match> find(std::string_view text, size_t from, Scratch& scratch) const;

 private:
  struct Code;
  explicit Pattern(std::unique_ptr<Code> code);
  std::unique_ptr<Code> code_;
};

/// The PCRE2 spelling of an Oniguruma pattern. Errors: unimplemented, naming what and where.
Result<std::string> translate_oniguruma(std::string_view pattern);

}  // namespace exo::text
