/// Ends a stream of text at the first stop string, without ever emitting a part of it.
///
/// The match that is complete first wins; of several complete at the same byte the longest (it
/// began earliest). So the answer doesn't depend on how the text was cut into pieces. Text that may
/// be the beginning of a stop string is held back until it is known. Each byte costs O(number of
/// stops), amortised (Knuth, Morris, Pratt 1977, one automaton a stop).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace exo::text {

class StopStrings {
 public:
  /// None at all is allowed: all text passes at once. An empty stop string is an error.
  static Result<StopStrings> create(std::vector<std::string> stops);

  struct Step {
    std::string text;  ///< may be shown; never cuts a character that the pushes didn't cut
    std::optional<size_t> stop;  ///< index of the stop string that ended the stream
  };
  /// After a stop every further push gives no text and the same stop.
  Step push(std::string_view text);
  /// The stream ended otherwise (EOS, length): what was held back. Nothing after a stop.
  std::string finish();

 private:
  struct Stop {
    std::string text;
    std::vector<uint32_t> fallback;  ///< length of the longest proper border of each prefix
    size_t matched = 0;
  };
  std::vector<Stop> stops_;
  std::string held_;
  std::optional<size_t> stopped_;
};

}  // namespace exo::text
