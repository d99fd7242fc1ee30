// parse_chat_request(): OpenAI's messages as typed values.

#include <fmt/core.h>

#include "base/json.h"
#include "text/chat_format.h"

namespace exo::text {
namespace {

Result<Role> parse_role(const JsonObject& message, const std::string& where) {
  EXO_ASSIGN_OR_RETURN(const std::string text, message.string("role"));
  const std::string_view name = text;
  for (const Role role : {Role::system, Role::user, Role::assistant, Role::tool})
    if (name == to_string(role)) return role;
  if (name == "developer") return Role::system;
  return invalid_argument(
      fmt::format("{}.role: expected system, developer, user, assistant or tool, got '{}'", where,
                  name.substr(0, 60)));
}

// null, a text, or a list of text parts, which are joined by newlines.
Result<std::optional<std::string>> parse_content(const Json& message, const std::string& where) {
  const auto it = message.find("content");
  if (it == message.end() || it->is_null()) return std::optional<std::string>();
  if (it->is_string()) return std::optional<std::string>(it->get<std::string>());
  if (!it->is_array())
    return invalid_argument(fmt::format(
        "{}.content: expected null, a string or a list of parts, got {}", where, it->type_name()));
  std::string joined;
  for (size_t i = 0; i < it->size(); ++i) {
    const std::string part_where = fmt::format("{}.content[{}]", where, i);
    const JsonObject part((*it)[i], part_where);
    EXO_ASSIGN_OR_RETURN(const std::string type, part.string("type"));
    if (std::string_view(type) != "text")
      return invalid_argument(
          fmt::format("{}.type: only text is supported, got '{}'", part_where, type.substr(0, 60)));
    EXO_ASSIGN_OR_RETURN(const std::string text, part.string("text"));
    if (i > 0) joined += '\n';
    joined += text;
  }
  return std::optional<std::string>(std::move(joined));
}

Result<ToolCall> parse_tool_call(const Json& json, const std::string& where) {
  const JsonObject o(json, where);
  ToolCall call;
  EXO_ASSIGN_OR_RETURN(call.id, o.string_or("id", ""));
  EXO_ASSIGN_OR_RETURN(call.type, o.string_or("type", "function"));
  EXO_ASSIGN_OR_RETURN(const Json* function_json, o.object("function"));
  const JsonObject function(*function_json, where + ".function");
  EXO_ASSIGN_OR_RETURN(call.name, function.string("name"));
  EXO_ASSIGN_OR_RETURN(call.arguments, function.string("arguments"));
  return call;
}

Result<Message> parse_message(const Json& json, const std::string& where) {
  const JsonObject o(json, where);
  Message message;
  EXO_ASSIGN_OR_RETURN(message.role, parse_role(o, where));
  EXO_ASSIGN_OR_RETURN(message.content, parse_content(json, where));
  EXO_ASSIGN_OR_RETURN(message.name, o.string_or("name", ""));
  EXO_ASSIGN_OR_RETURN(message.tool_call_id, o.string_or("tool_call_id", ""));
  EXO_ASSIGN_OR_RETURN(message.prefix, o.boolean_or("prefix", false));
  if (!o.has("tool_calls")) return message;
  EXO_ASSIGN_OR_RETURN(const Json* calls, o.array("tool_calls"));
  message.tool_calls.emplace();
  for (size_t i = 0; i < calls->size(); ++i) {
    EXO_ASSIGN_OR_RETURN(ToolCall call,
                         parse_tool_call((*calls)[i], fmt::format("{}.tool_calls[{}]", where, i)));
    message.tool_calls->push_back(std::move(call));
  }
  return message;
}

}  // namespace

Result<ChatRequest> parse_chat_request(std::string_view json, std::string_view what) {
  EXO_ASSIGN_OR_RETURN(const Json root, parse_json(json, what));
  const JsonObject o(root, std::string(what));
  ChatRequest request;
  EXO_ASSIGN_OR_RETURN(const Json* messages, o.array("messages"));
  for (size_t i = 0; i < messages->size(); ++i) {
    EXO_ASSIGN_OR_RETURN(Message message,
                         parse_message((*messages)[i], fmt::format("{}: messages[{}]", what, i)));
    request.messages.push_back(std::move(message));
  }
  if (o.has("tools")) {
    EXO_ASSIGN_OR_RETURN(const Json* tools, o.array("tools"));
    request.n_tools = tools->size();
  }
  EXO_ASSIGN_OR_RETURN(request.add_generation_prompt, o.boolean_or("add_generation_prompt", false));
  if (o.has("kwargs")) {
    EXO_ASSIGN_OR_RETURN(const Json* kwargs, o.object("kwargs"));
    EXO_ASSIGN_OR_RETURN(
        request.thinking,
        JsonObject(*kwargs, fmt::format("{}: kwargs", what)).boolean_or("thinking", false));
  }
  return request;
}

}  // namespace exo::text
