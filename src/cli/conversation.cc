#include "cli/conversation.h"

#include <fmt/core.h>

#include "base/json.h"
#include "base/os.h"

namespace exo::cli {

Status Conversation::save(const std::string& path) const {
  OrderedJson list = OrderedJson::array();
  for (const text::Message& message : messages)
    list.push_back(
        {{"role", text::to_string(message.role)}, {"content", message.content.value_or("")}});
  const OrderedJson json = {{"system", system}, {"messages", list}};
  return write_file_atomic(path,
                           json.dump(1, ' ', false, OrderedJson::error_handler_t::replace) + "\n");
}

Result<Conversation> Conversation::load(const std::string& path) {
  EXO_ASSIGN_OR_RETURN(const Json json, read_json_file(path));
  const JsonObject object(json, path);
  Conversation conversation;
  EXO_ASSIGN_OR_RETURN(conversation.system, object.string_or("system", ""));
  EXO_ASSIGN_OR_RETURN(const Json* messages, object.array("messages"));
  for (size_t i = 0; i < messages->size(); ++i) {
    const JsonObject item((*messages)[i], fmt::format("{}: messages[{}]", path, i));
    text::Message message;
    EXO_ASSIGN_OR_RETURN(const std::string role, item.string("role"));
    if (role != "user" && role != "assistant")
      return invalid_argument(fmt::format(
          "{}: messages[{}].role: expected user or assistant, got '{}'", path, i, role));
    message.role = role == "user" ? text::Role::user : text::Role::assistant;
    EXO_ASSIGN_OR_RETURN(message.content, item.string("content"));
    conversation.messages.push_back(std::move(message));
  }
  return conversation;
}

}  // namespace exo::cli
