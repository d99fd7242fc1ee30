#include <fmt/core.h>
#include <unistd.h>

#include "base/json.h"
#include "base/os.h"
#include "base/utf8.h"
#include "cli/answerer.h"
#include "cli/chat.h"
#include "cli/commands.h"
#include "cli/console.h"

namespace exo::cli {
namespace {

constexpr uint64_t kMaxPromptBytes = 64 << 20;

std::string to_json(const Answer& answer) {
  const engine::GenerateStats& s = answer.stats;
  const OrderedJson json = {{"text", answer.content},
                            {"reasoning", answer.reasoning},
                            {"finish_reason", engine::describe(answer.reason)},
                            {"prompt_tokens", s.n_prompt_tokens},
                            {"prefill_s", s.prefill_s},
                            {"first_token_s", s.first_token_s},
                            {"generated_tokens", s.n_generated},
                            {"decode_s", s.decode_s}};
  return json.dump(1, ' ', false, OrderedJson::error_handler_t::replace) + "\n";
}

Status check_prompt(std::string_view prompt) {
  if (prompt.empty()) return invalid_argument("the prompt is empty: expected some text");
  if (!is_valid_utf8(prompt))
    say("exo: the prompt is not UTF-8 everywhere: what is not is read as U+FFFD");
  return ok_status();
}

Status answer_once(const Context& context, const RunOptions& options, const std::string& prompt) {
  EXO_RETURN_IF_ERROR(check_prompt(prompt));
  EXO_ASSIGN_OR_RETURN(const auto answerer, make_answerer(context, options));
  if (options.thinking && !answerer->has_thinking_switch())
    say(fmt::format("exo: {} has no switch for thinking: --think and --no-think change nothing",
                    answerer->name()));
  EXO_ASSIGN_OR_RETURN(engine::GenerateOptions generate,
                       generate_options(context.exo, options, answerer->defaults()));
  const InterruptScope interrupt;
  generate.cancel = &InterruptScope::flag();
  AnswerPrinter printer(!options.json, options.hide_thinking, use_colour(context));
  const auto on_piece = [&](const text::ReasoningSplitter::Piece& piece) { printer.print(piece); };
  Result<Answer> answer = internal_error("no answer");
  if (options.raw) {
    answer = answerer->complete(prompt, generate, on_piece);
  } else {
    text::ChatRequest request = make_request(context.exo.system_prompt.value_or(""), {}, prompt);
    request.thinking = options.thinking.value_or(false);
    answer = answerer->chat(request, generate, on_piece);
  }
  printer.finish();
  if (!answer.ok()) return answer.status();
  if (options.json) EXO_RETURN_IF_ERROR(write_out(to_json(*answer)));
  say(fmt::format(
      "exo: {}{}", describe_stats(*answer),
      generate.sampling.temperature > 0 ? fmt::format(" | seed {}", generate.sampling.seed) : ""));
  EXO_RETURN_IF_ERROR(printer.status());
  if (answer->reason == engine::FinishReason::context_full)
    say("exo: the context is full and the answer ends here; --context makes it larger");
  return answer->reason == engine::FinishReason::cancelled ? cancelled("") : ok_status();
}

}  // namespace

Status run_command(const Context& context, const RunOptions& options) {
  if (options.prompt) return answer_once(context, options, *options.prompt);
  if (!options.prompt_file.empty()) {
    EXO_ASSIGN_OR_RETURN(const std::string prompt,
                         read_input(options.prompt_file, kMaxPromptBytes));
    return answer_once(context, options, prompt);
  }
  if (options.json)
    return invalid_argument("--json: needs --prompt or --prompt-file: a chat has no one document");
  return chat(context, options);
}

}  // namespace exo::cli
