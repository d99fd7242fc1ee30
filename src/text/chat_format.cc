#include "text/chat_format.h"

#include <fmt/core.h>

#include <utility>

namespace exo::text {
namespace {

constexpr std::string_view kBos = "<｜begin▁of▁sentence｜>";
constexpr std::string_view kEos = "<｜end▁of▁sentence｜>";
constexpr std::string_view kUser = "<｜User｜>";
constexpr std::string_view kAssistant = "<｜Assistant｜>";
constexpr std::string_view kCallsBegin = "<｜tool▁calls▁begin｜>";
constexpr std::string_view kCallsEnd = "<｜tool▁calls▁end｜>";
constexpr std::string_view kCallBegin = "<｜tool▁call▁begin｜>";
constexpr std::string_view kCallEnd = "<｜tool▁call▁end｜>";
constexpr std::string_view kOutputsBegin = "<｜tool▁outputs▁begin｜>";
constexpr std::string_view kOutputsEnd = "<｜tool▁outputs▁end｜>";
constexpr std::string_view kOutputBegin = "<｜tool▁output▁begin｜>";
constexpr std::string_view kOutputEnd = "<｜tool▁output▁end｜>";
constexpr std::string_view kSep = "<｜tool▁sep｜>";

// A prompt as it is written. The methods are what several formats share.
class Writer {
 public:
  explicit Writer(const ChatRequest& request) : request_(request) {}

  template <typename... Parts>
  void write(const Parts&... parts) {
    (text.append(parts), ...);
  }

  // The content of a message that can't do without: what a template adds to text must be text.
  Result<std::string_view> content_of(size_t i) const {
    const Message& message = request_.messages[i];
    if (message.content) return std::string_view(*message.content);
    return invalid_argument(
        fmt::format("messages[{}].content: null, and the {} message needs a text here", i,
                    to_string(message.role)));
  }

  // BOS and all system texts, wherever they stand.
  Status begin() {
    write(kBos);
    bool is_first = true;
    for (size_t i = 0; i < request_.messages.size(); ++i) {
      if (request_.messages[i].role != Role::system) continue;
      EXO_ASSIGN_OR_RETURN(const std::string_view content, content_of(i));
      write(is_first ? "" : "\n\n", content);
      is_first = false;
    }
    return ok_status();
  }

  // V3 and R1: a call with its type, its arguments in a code fence.
  void fenced_call(const ToolCall& call) {
    write(kCallBegin, call.type, kSep, call.name, "\n```json\n", call.arguments, "\n```", kCallEnd);
  }

  std::string text;

 private:
  const ChatRequest& request_;
};

Result<std::string> render_v2(const ChatRequest& request) {
  Writer out(request);
  out.write(kBos);
  for (size_t i = 0; i < request.messages.size(); ++i) {
    const Role role = request.messages[i].role;
    if (role == Role::tool) continue;  // the template knows no tools
    EXO_ASSIGN_OR_RETURN(const std::string_view content, out.content_of(i));
    if (role == Role::user) out.write("User: ", content, "\n\n");
    if (role == Role::assistant) out.write("Assistant: ", content, kEos);
    if (role == Role::system) out.write(content, "\n\n");
  }
  if (request.add_generation_prompt) out.write("Assistant:");
  return std::move(out.text);
}

// The template's flags for the first call and the first output are never reset, so a second round
// of tools lacks its opening tokens; and the calls are closed after each call but the first, so a
// single call never is.
Result<std::string> render_v3(const ChatRequest& request) {
  Writer out(request);
  EXO_RETURN_IF_ERROR(out.begin());
  bool after_tool = false, any_call = false, any_output = false;
  for (size_t i = 0; i < request.messages.size(); ++i) {
    const Message& message = request.messages[i];
    if (message.role == Role::system) continue;
    if (message.role == Role::assistant && !message.content) {
      after_tool = false;
      for (const ToolCall& call : message.tool_calls.value_or(std::vector<ToolCall>())) {
        out.write(any_call ? "\n" : "", any_call ? "" : kAssistant, any_call ? "" : kCallsBegin);
        out.fenced_call(call);
        if (any_call) out.write(kCallsEnd, kEos);
        any_call = true;
      }
      continue;
    }
    EXO_ASSIGN_OR_RETURN(const std::string_view content, out.content_of(i));
    if (message.role == Role::user) {
      after_tool = false;
      out.write(kUser, content);
    } else if (message.role == Role::assistant) {
      out.write(after_tool ? kOutputsEnd : kAssistant, content, kEos);
      after_tool = false;
    } else {
      after_tool = true;
      out.write(any_output ? "\n" : kOutputsBegin, kOutputBegin, content, kOutputEnd);
      any_output = true;
    }
  }
  if (after_tool) out.write(kOutputsEnd);
  if (request.add_generation_prompt && !after_tool) out.write(kAssistant);
  return std::move(out.text);
}

// R1 and R1-0528 differ in the generation prompt alone. The flags are never reset, as in V3; text
// beside calls is written before the very first call and dropped later.
Result<std::string> render_r1_with(const ChatRequest& request, std::string_view generation_prompt) {
  Writer out(request);
  EXO_RETURN_IF_ERROR(out.begin());
  bool after_tool = false, any_call = false, any_output = false;
  for (size_t i = 0; i < request.messages.size(); ++i) {
    const Message& message = request.messages[i];
    if (message.role == Role::system) continue;
    if (message.role == Role::assistant && message.tool_calls) {
      after_tool = false;
      for (const ToolCall& call : *message.tool_calls) {
        if (any_call) {
          out.write("\n");
        } else {
          out.write(kAssistant, message.content.value_or(""), kCallsBegin);
        }
        out.fenced_call(call);
        any_call = true;
      }
      out.write(kCallsEnd, kEos);
      continue;
    }
    EXO_ASSIGN_OR_RETURN(std::string_view content, out.content_of(i));
    if (message.role == Role::user) {
      after_tool = false;
      out.write(kUser, content);
    } else if (message.role == Role::tool) {
      after_tool = true;
      out.write(any_output ? "" : kOutputsBegin, kOutputBegin, content, kOutputEnd);
      any_output = true;
    } else if (after_tool) {
      after_tool = false;
      out.write(kOutputsEnd, content, kEos);
    } else {
      const size_t close = content.rfind(kThinkClose);
      if (close != std::string_view::npos) content.remove_prefix(close + kThinkClose.size());
      out.write(kAssistant, content, kEos);
    }
  }
  if (after_tool) out.write(kOutputsEnd);
  if (request.add_generation_prompt && !after_tool) out.write(generation_prompt);
  return std::move(out.text);
}

Result<std::string> render_r1(const ChatRequest& request) {
  return render_r1_with(request, "<｜Assistant｜><think>\n");
}

Result<std::string> render_r1_0528(const ChatRequest& request) {
  return render_r1_with(request, kAssistant);
}

// One flag tells the first call of a message, another whether the assistant's token is still to be
// written (once after each user message).
Result<std::string> render_v3_1(const ChatRequest& request) {
  Writer out(request);
  EXO_RETURN_IF_ERROR(out.begin());
  bool after_tool = false, after_user = false;
  for (size_t i = 0; i < request.messages.size(); ++i) {
    const Message& message = request.messages[i];
    if (message.role == Role::system) continue;
    if (message.role == Role::assistant && message.tool_calls) {
      if (after_user) out.write(kAssistant, kThinkClose);
      after_user = after_tool = false;
      bool is_first = true;
      for (const ToolCall& call : *message.tool_calls) {
        if (is_first) out.write(message.content.value_or(""), kCallsBegin);
        is_first = false;
        out.write(kCallBegin, call.name, kSep, call.arguments, kCallEnd);
      }
      out.write(kCallsEnd, kEos);
      continue;
    }
    EXO_ASSIGN_OR_RETURN(std::string_view content, out.content_of(i));
    if (message.role == Role::user) {
      after_tool = false;
      after_user = true;
      out.write(kUser, content);
    } else if (message.role == Role::tool) {
      after_tool = true;
      after_user = false;
      out.write(kOutputBegin, content, kOutputEnd);
    } else {
      if (after_user)
        out.write(kAssistant, message.prefix && request.thinking ? kThinkOpen : kThinkClose);
      const size_t close = after_tool ? std::string_view::npos : content.find(kThinkClose);
      if (close != std::string_view::npos) content.remove_prefix(close + kThinkClose.size());
      out.write(content, kEos);
      after_user = after_tool = false;
    }
  }
  if (request.add_generation_prompt && after_user && !after_tool)
    out.write(kAssistant, request.thinking ? kThinkOpen : kThinkClose);
  return std::move(out.text);
}

constexpr ChatFormat kFormats[] = {
    {"deepseek-v2", false, false, render_v2, 0x7eef8afa25d54e1c},
    {"deepseek-v3", false, false, render_v3, 0xf7dbff683e84df2a},
    {"deepseek-r1", true, false, render_r1, 0x7800a64ae3c4b9b5},
    {"deepseek-r1-0528", true, false, render_r1_0528, 0xc08c55b7b9b5024f},
    {"deepseek-v3.1", true, true, render_v3_1, 0xf3d0f7a8997b5fc0},
};

std::string format_names() {
  std::string names;
  for (const ChatFormat& format : kFormats) {
    if (!names.empty()) names += ", ";
    names += format.name;
  }
  return names;
}

bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

}  // namespace

const char* to_string(Role role) {
  switch (role) {
    case Role::system:
      return "system";
    case Role::user:
      return "user";
    case Role::assistant:
      return "assistant";
    case Role::tool:
      break;
  }
  return "tool";
}

Result<RenderedPrompt> ChatFormat::render(const ChatRequest& request) const {
  EXO_ASSIGN_OR_RETURN(std::string text, render_text(request));
  // The prompt itself says how the answer begins, whatever wrote the tag there.
  std::string_view end = text;
  while (!end.empty() && is_space(end.back())) end.remove_suffix(1);
  const ReasoningStart reasoning = !thinks || end.ends_with(kThinkClose) ? ReasoningStart::none
                                   : end.ends_with(kThinkOpen)           ? ReasoningStart::in_prompt
                                                                         : ReasoningStart::by_model;
  return RenderedPrompt{std::move(text), reasoning};
}

std::span<const ChatFormat> chat_formats() { return kFormats; }

Result<const ChatFormat*> chat_format_by_name(std::string_view name) {
  for (const ChatFormat& format : kFormats)
    if (format.name == name) return &format;
  return not_found(
      fmt::format("chat format '{}' is not known (known: {})", name.substr(0, 60), format_names()));
}

uint64_t template_fingerprint(std::string_view jinja) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (size_t i = 0; i < jinja.size(); ++i) {
    if (is_space(jinja[i])) continue;
    if (jinja.substr(i).starts_with("\\n")) {
      ++i;
      continue;
    }
    hash = (hash ^ static_cast<uint8_t>(jinja[i])) * 0x100000001b3u;
  }
  return hash;
}

Result<const ChatFormat*> choose_chat_format(const TokenizerConfig& config, std::string_view hint) {
  if (config.chat_template) {
    const uint64_t fingerprint = template_fingerprint(*config.chat_template);
    for (const ChatFormat& format : kFormats)
      if (format.fingerprint == fingerprint) return &format;
  }
  if (!hint.empty()) return chat_format_by_name(hint);
  return failed_precondition(fmt::format(
      "the model {} and nothing names its chat format: name one of {}, or give the prompt as plain "
      "text",
      config.chat_template ? "has a chat template that exo doesn't know" : "has no chat template",
      format_names()));
}

}  // namespace exo::text
