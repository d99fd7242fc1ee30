/// A model's text side: its tokenizer, chat format, end tokens and the sampling defaults of its
/// generation_config.json.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "hub/store.h"
#include "model/config.h"
#include "text/chat_format.h"
#include "text/tokenizer.h"

namespace exo::cli {

/// The tokenizer of a located model. not_found says what to do.
Result<text::Tokenizer> load_tokenizer(const hub::ModelLocation& at);

/// `name` if given, else what the model's template is, else what the registry says.
Result<const text::ChatFormat*> chat_format_of(const hub::ModelLocation& at,
                                               const std::string& name);

/// For a model without a tokenizer: byte b is id b; ids from 256 on print as <id>. (A vocabulary of
/// fewer than 256 refuses the other bytes where a prompt is checked.)
Result<text::Tokenizer> byte_tokenizer(int64_t vocab_size);

struct GenerationDefaults {
  std::optional<double> temperature, top_p, min_p, typical_p, repetition_penalty;
  std::optional<int> top_k;
  std::vector<int32_t> eos_ids;
};
/// generation_config.json of a folder; without one (or with do_sample false) nothing but the
/// config's end tokens.
Result<GenerationDefaults> generation_defaults(const std::string& folder,
                                               const model::HfConfig& config);

struct TextModel {
  text::Tokenizer tokenizer;
  const text::ChatFormat* format = nullptr;  ///< null: prompts go in as they are
  std::optional<int32_t> bos;
  GenerationDefaults defaults;
};
struct TextModelOptions {
  std::string tokenizer;    ///< --tokenizer
  std::string chat_format;  ///< --chat-format
  bool raw = false;
};
/// Everything above for a run. Says on stderr when the model has no tokenizer and bytes are used,
/// and when it has no chat format.
Result<TextModel> load_text_model(const hub::ModelLocation& at, const std::string& files_folder,
                                  const model::HfConfig& config, const TextModelOptions& options);

/// BOS (unless the text begins with it) and the text's ids.
Result<std::vector<int32_t>> encode_raw(const TextModel& text, std::string_view prompt);

/// Answers each line of stdin that isn't blank with a line on stdout; the first error ends it and
/// names its line.
Status for_each_line(const std::function<Result<std::string>(std::string_view)>& answer);

}  // namespace exo::cli
