#include "text/jsonl.h"

#include <limits>
#include <vector>

#include "base/json.h"

namespace exo::text {
namespace {

constexpr const char* kWhat = "input line";

}  // namespace

Result<std::string> tokenize_line(const Tokenizer& tokenizer, std::string_view line) {
  EXO_ASSIGN_OR_RETURN(const Json json, parse_json(line, kWhat));
  EXO_ASSIGN_OR_RETURN(const std::string text, JsonObject(json, kWhat).string("text"));
  EXO_ASSIGN_OR_RETURN(const std::vector<int32_t> ids, tokenizer.encode(text));
  return Json{{"ids", ids}}.dump();
}

Result<std::string> detokenize_line(const Tokenizer& tokenizer, std::string_view line) {
  EXO_ASSIGN_OR_RETURN(const Json json, parse_json(line, kWhat));
  const JsonObject o(json, kWhat);
  EXO_ASSIGN_OR_RETURN(const Json* list, o.array("ids"));
  EXO_ASSIGN_OR_RETURN(const bool skip, o.boolean_or("skip_special_tokens", false));
  std::vector<int32_t> ids;
  for (size_t i = 0; i < list->size(); ++i) {
    const Json& id = (*list)[i];
    if (!id.is_number_unsigned() ||
        id.get<uint64_t>() > uint64_t{std::numeric_limits<int32_t>::max()})
      return invalid_argument(std::string(kWhat) + ": ids[" + std::to_string(i) +
                              "]: expected an id (an integer from 0 on)");
    ids.push_back(id.get<int32_t>());
  }
  return Json{{"text", tokenizer.decode(ids, skip)}}.dump();
}

Result<std::string> render_line(const ChatFormat& format, const Tokenizer* tokenizer,
                                std::string_view line) {
  EXO_ASSIGN_OR_RETURN(const ChatRequest request, parse_chat_request(line, kWhat));
  EXO_ASSIGN_OR_RETURN(const RenderedPrompt prompt, format.render(request));
  OrderedJson answer{{"prompt", prompt.text}};
  if (tokenizer != nullptr) {
    EXO_ASSIGN_OR_RETURN(answer["ids"], tokenizer->encode(prompt.text));
  }
  return answer.dump();
}

}  // namespace exo::text
