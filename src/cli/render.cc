#include "cli/commands.h"
#include "cli/text_model.h"
#include "text/jsonl.h"

namespace exo::cli {

Status render_command(const Context& context, const RenderOptions& options) {
  EXO_ASSIGN_OR_RETURN(const hub::ModelLocation at, hub::locate(context.paths, options.model));
  EXO_ASSIGN_OR_RETURN(const text::ChatFormat* format, chat_format_of(at, options.chat_format));
  if (at.folder.empty())  // known by name, nothing on disk: the prompt alone
    return for_each_line(
        [&](std::string_view line) { return text::render_line(*format, nullptr, line); });
  EXO_ASSIGN_OR_RETURN(const text::Tokenizer tokenizer, load_tokenizer(at));
  return for_each_line(
      [&](std::string_view line) { return text::render_line(*format, &tokenizer, line); });
}

}  // namespace exo::cli
