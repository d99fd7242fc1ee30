#include "cli/commands.h"
#include "cli/text_model.h"
#include "text/jsonl.h"

namespace exo::cli {

Status tokenize_command(const Context& context, const TokenizeOptions& options) {
  EXO_ASSIGN_OR_RETURN(const hub::ModelLocation at, hub::locate(context.paths, options.model));
  EXO_ASSIGN_OR_RETURN(const text::Tokenizer tokenizer, load_tokenizer(at));
  return for_each_line([&](std::string_view line) {
    return options.decode ? text::detokenize_line(tokenizer, line)
                          : text::tokenize_line(tokenizer, line);
  });
}

}  // namespace exo::cli
