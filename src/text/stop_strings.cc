#include "text/stop_strings.h"

#include <algorithm>
#include <utility>

namespace exo::text {

Result<StopStrings> StopStrings::create(std::vector<std::string> stops) {
  StopStrings matcher;
  for (std::string& text : stops) {
    if (text.empty()) return invalid_argument("a stop string is empty: it would stop at once");
    Stop stop;
    stop.fallback.assign(text.size() + 1, 0);
    for (size_t i = 1, border = 0; i < text.size(); ++i) {
      while (border > 0 && text[i] != text[border]) border = stop.fallback[border];
      if (text[i] == text[border]) ++border;
      stop.fallback[i + 1] = static_cast<uint32_t>(border);
    }
    stop.text = std::move(text);
    matcher.stops_.push_back(std::move(stop));
  }
  return matcher;
}

StopStrings::Step StopStrings::push(std::string_view text) {
  if (stopped_) return {{}, stopped_};
  for (const char c : text) {
    held_.push_back(c);
    size_t longest = 0;
    for (size_t i = 0; i < stops_.size(); ++i) {
      Stop& stop = stops_[i];
      while (stop.matched > 0 && c != stop.text[stop.matched])
        stop.matched = stop.fallback[stop.matched];
      if (c == stop.text[stop.matched]) ++stop.matched;
      if (stop.matched == stop.text.size() && stop.matched > longest) {
        longest = stop.matched;
        stopped_ = i;
      }
    }
    if (stopped_) {
      held_.resize(held_.size() - longest);
      return {std::exchange(held_, {}), stopped_};
    }
  }
  size_t n_held = 0;
  for (const Stop& stop : stops_) n_held = std::max(n_held, stop.matched);
  Step step{held_.substr(0, held_.size() - n_held), std::nullopt};
  held_.erase(0, held_.size() - n_held);
  return step;
}

std::string StopStrings::finish() { return stopped_ ? std::string() : std::exchange(held_, {}); }

}  // namespace exo::text
