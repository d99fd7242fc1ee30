/// A conversation as data, and its file. No terminal here.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "base/status.h"
#include "text/chat_format.h"

namespace exo::cli {

struct Conversation {
  std::string system;
  std::vector<text::Message> messages;  ///< user and assistant in turn

  /// {"system", "messages": [{"role", "content"}]}, written atomically.
  Status save(const std::string& path) const;
  static Result<Conversation> load(const std::string& path);
};

}  // namespace exo::cli
