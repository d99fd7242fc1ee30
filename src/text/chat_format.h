/// Messages to prompt, as the published chat templates of the DeepSeek models write it, their
/// oddities included (docs/tokenizer.md lists them). Written out in C++: exo runs no Jinja, so a
/// model's template is recognised, not interpreted.
///
/// Source: the templates of the tokenizer_config.json of deepseek-ai/DeepSeek-V2, -V3, -R1,
/// -R1-0528 and -V3.1.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "text/reasoning.h"
#include "text/tokenizer_config.h"

namespace exo::text {

enum class Role { system, user, assistant, tool };
const char* to_string(Role role);

struct ToolCall {
  std::string id;  ///< not rendered by these formats
  std::string type = "function";
  std::string name;
  std::string arguments;  ///< JSON text, rendered as it is
};

struct Message {
  Role role = Role::user;
  std::optional<std::string> content;               ///< null where the assistant only calls tools
  std::optional<std::vector<ToolCall>> tool_calls;  ///< an empty list is not the same as none
  std::string name;                                 ///< not rendered by these formats
  std::string tool_call_id;                         ///< not rendered by these formats
  bool prefix = false;  ///< V3.1: the model is to go on from this assistant text
};

struct ChatRequest {
  std::vector<Message> messages;
  /// Tool definitions given. None of these templates renders them: a caller that wants the model to
  /// know its tools writes them into the system text.
  size_t n_tools = 0;
  bool add_generation_prompt = false;
  bool thinking = false;  ///< V3.1's switch; the others have none
};

struct RenderedPrompt {
  std::string text;          ///< with its BOS
  ReasoningStart reasoning;  ///< how the answer to it begins
};

struct ChatFormat {
  std::string_view name;  ///< "deepseek-v3.1"
  bool thinks;            ///< its models write reasoning
  bool has_thinking_switch;
  /// Use render(): it adds what follows from the text.
  Result<std::string> (*render_text)(const ChatRequest&);
  /// template_fingerprint() of the published template
  uint64_t fingerprint;

  /// Fails on what the template fails on: a null content where text is needed (the message and its
  /// index are named).
  Result<RenderedPrompt> render(const ChatRequest& request) const;
};

/// All formats: deepseek-v2, deepseek-v3, deepseek-r1, deepseek-r1-0528, deepseek-v3.1.
std::span<const ChatFormat> chat_formats();

/// By name; not_found lists the names.
Result<const ChatFormat*> chat_format_by_name(std::string_view name);

/// FNV-1a 64 of a template without white space ("\n" written as an escape counts as white space):
/// copies of one template that differ in line breaks are the same.
uint64_t template_fingerprint(std::string_view jinja);

/// The format of a model: its template's if that is a known one, else the format named `hint` (from
/// the registry or a flag; empty: none). An unknown template without a hint, or neither, is an
/// error that says what to do.
Result<const ChatFormat*> choose_chat_format(const TokenizerConfig& config, std::string_view hint);

/// {"messages": [...], "tools": null|[...], "add_generation_prompt": null|bool, "kwargs":
/// null|{"thinking": bool, ...}} (other kwargs are ignored, as templates do). A message is
/// OpenAI's: role (developer is read as system), content (null, text, or a list of
/// {"type":"text","text"} parts, joined by newlines), tool_calls (null counts as none), name,
/// tool_call_id, prefix. Errors name the field: "messages[2].content[0].type: ...".
Result<ChatRequest> parse_chat_request(std::string_view json, std::string_view what);

}  // namespace exo::text
