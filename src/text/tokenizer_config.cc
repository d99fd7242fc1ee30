#include "text/tokenizer_config.h"

#include <fmt/core.h>

#include <filesystem>

#include "base/json.h"
#include "base/os.h"
#include "base/utf8.h"

namespace exo::text {
namespace {

constexpr uint64_t kMaxConfigBytes = uint64_t{16} << 20;

// A token is written as its text, or as an object that has it as "content".
Status read_token(const JsonObject& o, const Json& json, const std::string& where, const char* key,
                  std::optional<std::string>& token) {
  if (!o.has(key)) return ok_status();
  if (json[key].is_object()) {
    EXO_ASSIGN_OR_RETURN(
        token, JsonObject(json[key], fmt::format("{}: {}", where, key)).string("content"));
  } else {
    EXO_ASSIGN_OR_RETURN(token, o.string(key));
  }
  return ok_status();
}

// One template, or a list of {"name", "template"}.
Status read_template(const JsonObject& o, const Json& json, const std::string& where,
                     std::optional<std::string>& chat_template) {
  if (!o.has("chat_template")) return ok_status();
  const Json& value = json["chat_template"];
  if (!value.is_array()) {
    EXO_ASSIGN_OR_RETURN(chat_template, o.string("chat_template"));
    return ok_status();
  }
  for (size_t i = 0; i < value.size(); ++i) {
    const JsonObject entry(value[i], fmt::format("{}: chat_template[{}]", where, i));
    EXO_ASSIGN_OR_RETURN(const std::string name, entry.string("name"));
    if (name != "default") continue;
    EXO_ASSIGN_OR_RETURN(chat_template, entry.string("template"));
  }
  return ok_status();
}

}  // namespace

Result<TokenizerConfig> TokenizerConfig::load(const std::string& folder) {
  TokenizerConfig config;
  std::error_code error;
  const auto json_path = std::filesystem::path(folder) / "tokenizer_config.json";
  if (std::filesystem::exists(json_path, error)) {
    const std::string where = json_path.string();
    EXO_ASSIGN_OR_RETURN(const Json json, read_json_file(where, kMaxConfigBytes));
    const JsonObject o(json, where);
    EXO_RETURN_IF_ERROR(read_token(o, json, where, "bos_token", config.bos_token));
    EXO_RETURN_IF_ERROR(read_token(o, json, where, "eos_token", config.eos_token));
    EXO_ASSIGN_OR_RETURN(config.add_bos_token, o.boolean_or("add_bos_token", false));
    EXO_RETURN_IF_ERROR(read_template(o, json, where, config.chat_template));
  }
  const auto template_path = std::filesystem::path(folder) / "chat_template.jinja";
  if (std::filesystem::exists(template_path, error)) {
    EXO_ASSIGN_OR_RETURN(config.chat_template, read_file(template_path.string(), kMaxConfigBytes));
    if (!is_valid_utf8(*config.chat_template))
      return invalid_argument(template_path.string() + ": not valid UTF-8");
  }
  return config;
}

}  // namespace exo::text
