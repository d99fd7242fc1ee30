/// Leveled log lines on stderr (spdlog behind it). Set up once by cli from DEBUG / TINYGRAD_DEBUG /
/// --verbose.
///   log_info("loading {} layers", n);
#pragma once

#include <fmt/core.h>

#include <string_view>

namespace exo {

enum class LogLevel { trace, debug, info, warn, error, off };

void set_log_level(LogLevel level);
bool log_enabled(LogLevel level);
void log_line(LogLevel level, std::string_view message);

template <typename... Args>
void log_trace(fmt::format_string<Args...> f, Args&&... args) {
  if (log_enabled(LogLevel::trace))
    log_line(LogLevel::trace, fmt::format(f, std::forward<Args>(args)...));
}
template <typename... Args>
void log_debug(fmt::format_string<Args...> f, Args&&... args) {
  if (log_enabled(LogLevel::debug))
    log_line(LogLevel::debug, fmt::format(f, std::forward<Args>(args)...));
}
template <typename... Args>
void log_info(fmt::format_string<Args...> f, Args&&... args) {
  if (log_enabled(LogLevel::info))
    log_line(LogLevel::info, fmt::format(f, std::forward<Args>(args)...));
}
template <typename... Args>
void log_warn(fmt::format_string<Args...> f, Args&&... args) {
  if (log_enabled(LogLevel::warn))
    log_line(LogLevel::warn, fmt::format(f, std::forward<Args>(args)...));
}
template <typename... Args>
void log_error(fmt::format_string<Args...> f, Args&&... args) {
  if (log_enabled(LogLevel::error))
    log_line(LogLevel::error, fmt::format(f, std::forward<Args>(args)...));
}

}  // namespace exo
