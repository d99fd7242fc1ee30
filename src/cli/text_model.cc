#include "cli/text_model.h"

#include <fmt/core.h>

#include <algorithm>
#include <iostream>

#include "base/json.h"
#include "cli/console.h"
#include "text/byte_level.h"
#include "text/tokenizer_config.h"

namespace exo::cli {
namespace {

std::string join(const std::string& folder, std::string_view name) {
  return fmt::format("{}/{}", folder, name);
}

bool has_tokenizer(const std::string& folder) {
  return hub::file_exists(join(folder, "tokenizer.json"));
}

Status add_ids(const Json& json, const std::string& where, std::vector<int32_t>& ids) {
  const Json list = json.is_array() ? json : Json::array({json});
  for (const Json& id : list) {
    if (!id.is_number_integer() || id < 0 || id > INT32_MAX)
      return invalid_argument(
          fmt::format("{}: eos_token_id: expected an id or a list of ids, got {}", where,
                      id.dump().substr(0, 100)));
    ids.push_back(id.get<int32_t>());
  }
  return ok_status();
}

}  // namespace

Result<text::Tokenizer> load_tokenizer(const hub::ModelLocation& at) {
  if (at.folder.empty())
    return not_found(
        fmt::format("{}: nothing of it is on this machine, and its tokenizer.json is "
                    "needed; give a folder that has one",
                    at.name));
  return text::Tokenizer::load(at.folder);
}

Result<const text::ChatFormat*> chat_format_of(const hub::ModelLocation& at,
                                               const std::string& name) {
  if (!name.empty()) return text::chat_format_by_name(name);
  text::TokenizerConfig config;
  if (!at.folder.empty()) {
    EXO_ASSIGN_OR_RETURN(config, text::TokenizerConfig::load(at.folder));
  }
  const std::string_view hint = at.entry != nullptr ? at.entry->chat_format : std::string_view();
  return text::choose_chat_format(config, hint);
}

Result<text::Tokenizer> byte_tokenizer(int64_t vocab_size) {
  OrderedJson vocab = OrderedJson::object(), added = OrderedJson::array();
  for (int b = 0; b < 256; ++b) vocab[text::byte_level_symbol(static_cast<uint8_t>(b))] = b;
  for (int64_t id = 256; id < vocab_size; ++id)
    added.push_back({{"id", id},
                     {"content", fmt::format("<{}>", id)},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", false}});
  const OrderedJson byte_level = {{"type", "ByteLevel"},
                                  {"add_prefix_space", false},
                                  {"trim_offsets", true},
                                  {"use_regex", false}};
  const OrderedJson json = {{"version", "1.0"},
                            {"added_tokens", added},
                            {"normalizer", nullptr},
                            {"pre_tokenizer", byte_level},
                            {"post_processor", nullptr},
                            {"decoder", byte_level},
                            {"model",
                             {{"type", "BPE"},
                              {"dropout", nullptr},
                              {"unk_token", nullptr},
                              {"vocab", vocab},
                              {"merges", OrderedJson::array()}}}};
  return text::Tokenizer::from_json(json.dump(), "byte tokens");
}

Result<GenerationDefaults> generation_defaults(const std::string& folder,
                                               const model::HfConfig& config) {
  GenerationDefaults defaults;
  defaults.eos_ids = config.eos_token_ids;
  const std::string path = join(folder, "generation_config.json");
  if (!hub::file_exists(path)) return defaults;
  EXO_ASSIGN_OR_RETURN(const Json json, read_json_file(path));
  const JsonObject object(json, path);
  if (object.has("eos_token_id")) {
    std::vector<int32_t> ids;
    EXO_RETURN_IF_ERROR(add_ids(json["eos_token_id"], path, ids));
    for (int32_t id : ids)
      if (std::find(defaults.eos_ids.begin(), defaults.eos_ids.end(), id) == defaults.eos_ids.end())
        defaults.eos_ids.push_back(id);
  }
  EXO_ASSIGN_OR_RETURN(const bool samples, object.boolean_or("do_sample", false));
  if (!samples) return defaults;
  const auto read = [&](std::string_view key, std::optional<double>& value) -> Status {
    if (!object.has(key)) return ok_status();
    EXO_ASSIGN_OR_RETURN(value, object.number(key));
    return ok_status();
  };
  defaults.temperature = 1;  // transformers' default of a sampling model
  EXO_RETURN_IF_ERROR(read("temperature", defaults.temperature));
  EXO_RETURN_IF_ERROR(read("top_p", defaults.top_p));
  EXO_RETURN_IF_ERROR(read("min_p", defaults.min_p));
  EXO_RETURN_IF_ERROR(read("typical_p", defaults.typical_p));
  EXO_RETURN_IF_ERROR(read("repetition_penalty", defaults.repetition_penalty));
  if (object.has("top_k")) {
    EXO_ASSIGN_OR_RETURN(const int64_t top_k, object.integer("top_k", 0, INT32_MAX));
    defaults.top_k = static_cast<int>(top_k);
  }
  return defaults;
}

Result<TextModel> load_text_model(const hub::ModelLocation& at, const std::string& files_folder,
                                  const model::HfConfig& config, const TextModelOptions& options) {
  const std::string folder = options.tokenizer.empty() ? files_folder : options.tokenizer;
  const bool bytes = options.tokenizer.empty() && !has_tokenizer(files_folder);
  if (bytes)
    say(
        fmt::format("exo: {} has no tokenizer.json: each byte of the prompt is a token (byte b is "
                    "id b, ids from 256 on print as <id>); --tokenizer FOLDER gives another one",
                    at.name));
  EXO_ASSIGN_OR_RETURN(auto tokenizer,
                       bytes ? byte_tokenizer(config.vocab_size) : text::Tokenizer::load(folder));
  TextModel text{std::move(tokenizer), nullptr, std::nullopt, {}};
  text.bos = bytes ? std::nullopt : text.tokenizer.bos_id();
  if (!text.bos && config.bos_token_id >= 0 && config.bos_token_id < config.vocab_size)
    text.bos = config.bos_token_id;
  EXO_ASSIGN_OR_RETURN(text.defaults, generation_defaults(files_folder, config));
  if (const auto eos = text.tokenizer.eos_id();
      !bytes && eos &&
      std::find(text.defaults.eos_ids.begin(), text.defaults.eos_ids.end(), *eos) ==
          text.defaults.eos_ids.end())
    text.defaults.eos_ids.push_back(*eos);
  if (options.raw || (bytes && options.chat_format.empty())) return text;
  if (!options.chat_format.empty()) {
    EXO_ASSIGN_OR_RETURN(text.format, text::chat_format_by_name(options.chat_format));
    return text;
  }
  const std::string_view hint = at.entry != nullptr ? at.entry->chat_format : std::string_view();
  const text::TokenizerConfig& tokenizer_config = text.tokenizer.config();
  if (!tokenizer_config.chat_template && hint.empty()) {
    say(
        fmt::format("exo: {} has no chat template: the model goes on from the text as it is "
                    "(--chat-format NAME gives it one)",
                    at.name));
    return text;
  }
  EXO_ASSIGN_OR_RETURN(text.format, text::choose_chat_format(tokenizer_config, hint));
  return text;
}

Result<std::vector<int32_t>> encode_raw(const TextModel& text, std::string_view prompt) {
  EXO_ASSIGN_OR_RETURN(std::vector<int32_t> ids, text.tokenizer.encode(prompt));
  if (text.bos && (ids.empty() || ids.front() != *text.bos)) ids.insert(ids.begin(), *text.bos);
  return ids;
}

Status for_each_line(const std::function<Result<std::string>(std::string_view)>& answer) {
  std::string line;
  for (int64_t n = 1; std::getline(std::cin, line); ++n) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    auto reply = answer(line);
    if (!reply.ok()) return std::move(reply).status().with_context(fmt::format("stdin line {}", n));
    reply->push_back('\n');
    EXO_RETURN_IF_ERROR(write_out(*reply));
  }
  return ok_status();
}

}  // namespace exo::cli
