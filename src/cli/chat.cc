#include "cli/chat.h"

#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>

#include "base/os.h"
#include "cli/console.h"
#include "cli/conversation.h"
#include "cli/line_editor.h"

namespace exo::cli {
namespace {

constexpr std::string_view kHelp =
    "/help             this text\n"
    "/reset            forget the conversation\n"
    "/system TEXT      the system text (alone: show it; -: take it away)\n"
    "/set NAME VALUE   temperature, top_k, top_p, min_p, typical_p, seed, max_tokens,\n"
    "                  repetition_penalty, presence_penalty, frequency_penalty, think,\n"
    "                  hide_thinking (alone: show them)\n"
    "/save FILE        write the conversation; /load FILE reads it back\n"
    "/regenerate       answer the last message again\n"
    "/stats            figures of the last answer; how full the context is\n"
    "/exit             leave (Ctrl-D does, too)\n"
    "Ctrl-C stops an answer. A line that ends in \\ goes on in the next one; \"\"\" begins\n"
    "and ends a text of several lines, and what is pasted is one message.\n";

template <typename T>
bool parse_number(const std::string& text, T& out) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), out);
  return error == std::errc() && end == text.data() + text.size();
}

std::string trimmed(const std::string& text) {
  const size_t begin = text.find_first_not_of(" \t");
  if (begin == std::string::npos) return "";
  return text.substr(begin, text.find_last_not_of(" \t") - begin + 1);
}

class Chat {
 public:
  Chat(const Context& context, const RunOptions& options, std::unique_ptr<Answerer> answerer,
       std::unique_ptr<LineEditor> lines)
      : options_(options),
        exo_(context.exo),
        answerer_(std::move(answerer)),
        lines_(std::move(lines)),
        colour_(use_colour(context)) {
    conversation_.system = exo_.system_prompt.value_or("");
  }

  Status run();

 private:
  enum class Next { go_on, leave };
  LineEditor::Outcome read_turn(std::string& turn);
  Next command(const std::string& line);
  void set(const std::string& arguments);
  void show_settings();
  bool set_number(const std::string& name, const std::string& value);
  void turn(const std::string& text);
  void regenerate();
  bool answer();
  void tell(std::string_view text) { say(text); }

  RunOptions options_;
  ExoFlags exo_;
  std::unique_ptr<Answerer> answerer_;
  std::unique_ptr<LineEditor> lines_;
  bool colour_;
  Conversation conversation_;
  std::optional<Answer> last_;
  uint64_t n_answers_ = 0;
  Status write_status_;
};

LineEditor::Outcome Chat::read_turn(std::string& turn) {
  constexpr std::string_view kFence = "\"\"\"";
  turn.clear();
  std::string line;
  bool fenced = false, first = true;
  for (;; first = false) {
    const auto outcome = lines_->read(first ? ">>> " : "... ", line);
    if (outcome == LineEditor::Outcome::end && !first) break;  // what there is, is sent
    if (outcome != LineEditor::Outcome::line) return outcome;
    if (first && line.starts_with(kFence)) {
      fenced = true;
      line.erase(0, kFence.size());
    }
    if (fenced) {
      const size_t end = line.find(kFence);
      turn += line.substr(0, end);
      if (end != std::string::npos) break;
      turn += '\n';
      continue;
    }
    const bool more = line.ends_with('\\');
    if (more) line.back() = '\n';
    turn += line;
    if (!more) break;
  }
  if (!turn.empty()) lines_->remember(fenced ? fmt::format("{0}{1}{0}", kFence, turn) : turn);
  return LineEditor::Outcome::line;
}

Status Chat::run() {
  if (lines_->is_terminal())
    tell(fmt::format("{}: /help lists the commands, Ctrl-D leaves", answerer_->name()));
  std::string line;
  for (;;) {
    const auto outcome = read_turn(line);
    if (outcome == LineEditor::Outcome::end) return write_status_;
    if (outcome == LineEditor::Outcome::interrupted) {
      tell("(Ctrl-D or /exit leaves)");
      continue;
    }
    if (trimmed(line).empty()) continue;
    if (line.front() == '/') {
      if (command(line) == Next::leave) return write_status_;
    } else {
      turn(line);
    }
    if (!write_status_.ok()) return write_status_;
  }
}

Chat::Next Chat::command(const std::string& line) {
  const size_t space = std::min(line.find(' '), line.size());
  const std::string name = line.substr(0, space), arguments = trimmed(line.substr(space));
  if (name == "/exit" || name == "/quit" || name == "/bye") return Next::leave;
  if (name == "/help" || name == "/?") {
    tell(kHelp.substr(0, kHelp.size() - 1));
  } else if (name == "/reset") {
    conversation_.messages.clear();
    last_.reset();
    tell("(forgotten)");
  } else if (name == "/system") {
    if (!arguments.empty()) conversation_.system = arguments == "-" ? "" : arguments;
    tell(conversation_.system.empty() ? "(no system text)"
                                      : fmt::format("(system: {})", conversation_.system));
  } else if (name == "/set") {
    arguments.empty() ? show_settings() : set(arguments);
  } else if ((name == "/save" || name == "/load") && arguments.empty()) {
    tell(fmt::format("{} FILE: which file?", name));
  } else if (name == "/save") {
    const Status status = conversation_.save(arguments);
    tell(status.ok()
             ? fmt::format("(saved {} messages to {})", conversation_.messages.size(), arguments)
             : status.message());
  } else if (name == "/load") {
    auto loaded = Conversation::load(arguments);
    if (loaded.ok()) {
      conversation_ = *std::move(loaded);
      tell(fmt::format("({} messages from {})", conversation_.messages.size(), arguments));
    } else {
      tell(loaded.status().message());
    }
  } else if (name == "/stats") {
    const auto use = answerer_->context_use();
    tell(last_ ? describe_stats(*last_) : "(no answer yet)");
    if (use.max_tokens > 0)
      tell(fmt::format("context: {} of {} tokens", format_count(use.n_tokens),
                       format_count(use.max_tokens)));
  } else if (name == "/regenerate") {
    regenerate();
  } else {
    tell(fmt::format("{}: no such command; /help lists them", name));
  }
  return Next::go_on;
}

bool Chat::set_number(const std::string& name, const std::string& value) {
  SamplingFlags& s = options_.sampling;
  const auto real = [&](std::optional<double>& target) {
    double number = 0;
    if (!parse_number(value, number)) return false;
    target = number;
    return true;
  };
  if (name == "temperature") {
    s.greedy = false;
    return real(s.temperature);
  }
  if (name == "top_p") return real(s.top_p);
  if (name == "min_p") return real(s.min_p);
  if (name == "typical_p") return real(s.typical_p);
  if (name == "repetition_penalty") return real(s.repetition_penalty);
  if (name == "presence_penalty") return real(s.presence_penalty);
  if (name == "frequency_penalty") return real(s.frequency_penalty);
  if (name == "top_k") return parse_number(value, s.top_k.emplace());
  if (name == "seed") return parse_number(value, s.seed.emplace());
  return name == "max_tokens" && parse_number(value, exo_.max_generate_tokens.emplace()) &&
         *exo_.max_generate_tokens >= 0;
}

void Chat::set(const std::string& arguments) {
  const size_t space = std::min(arguments.find(' '), arguments.size());
  const std::string name = arguments.substr(0, space), value = trimmed(arguments.substr(space));
  const bool is_switch = value == "on" || value == "off";
  const RunOptions options_before = options_;
  const ExoFlags exo_before = exo_;
  if (name == "think" && is_switch) {
    options_.thinking = value == "on";
    if (!answerer_->has_thinking_switch())
      tell(fmt::format("({} has no switch for thinking: this changes nothing)", answerer_->name()));
  } else if (name == "hide_thinking" && is_switch) {
    options_.hide_thinking = value == "on";
  } else if (!set_number(name, value)) {
    options_ = options_before;
    exo_ = exo_before;
    tell(
        fmt::format("/set {}: expected a name that /set shows and a number (think and "
                    "hide_thinking: on or off)",
                    arguments));
    return;
  }
  if (auto generate = generate_options(exo_, options_, answerer_->defaults()); !generate.ok()) {
    options_ = options_before;
    exo_ = exo_before;
    tell(generate.status().message());
    return;
  }
  tell(fmt::format("({} is {})", name, value));
}

void Chat::show_settings() {
  auto generate = generate_options(exo_, options_, answerer_->defaults());
  if (!generate.ok()) return tell(generate.status().message());
  const engine::SamplingOptions& s = generate->sampling;
  tell(fmt::format(
      "temperature {}, top_k {}, top_p {}, min_p {}, typical_p {}, repetition_penalty {}, "
      "presence_penalty {}, frequency_penalty {}, seed {}, max_tokens {}, think {}, hide_thinking "
      "{}",
      s.temperature, s.top_k, s.top_p, s.min_p, s.typical_p, s.repetition_penalty,
      s.presence_penalty, s.frequency_penalty,
      options_.sampling.seed ? std::to_string(s.seed) : "new each time", generate->max_tokens,
      options_.thinking.value_or(false) ? "on" : "off", options_.hide_thinking ? "on" : "off"));
}

bool Chat::answer() {
  auto generate = generate_options(exo_, options_, answerer_->defaults());
  if (!generate.ok()) {
    tell(generate.status().message());
    return false;
  }
  // A given seed gives the same conversation again, and not the same draws in every answer.
  if (options_.sampling.seed) generate->sampling.seed += n_answers_;
  ++n_answers_;
  text::ChatRequest request = make_request(conversation_.system, conversation_.messages, "");
  request.messages.pop_back();  // the last message is the user's already
  request.thinking = options_.thinking.value_or(false);
  InterruptScope::reset();
  generate->cancel = &InterruptScope::flag();
  AnswerPrinter printer(true, options_.hide_thinking, colour_);
  auto answer =
      answerer_->chat(request, *generate,
                      [&](const text::ReasoningSplitter::Piece& piece) { printer.print(piece); });
  printer.finish();
  InterruptScope::reset();
  write_status_ = printer.status();
  if (!answer.ok()) {
    tell(answer.status().message());
    return false;
  }
  text::Message message;
  message.role = text::Role::assistant;
  // Reasoning without an end would be read as content by the templates that drop reasoning.
  message.content = answer->in_reasoning ? "" : answer->text;
  conversation_.messages.push_back(std::move(message));
  if (answer->reason == engine::FinishReason::cancelled) tell("(stopped)");
  if (answer->reason == engine::FinishReason::max_tokens)
    tell("(the answer is at its token limit; /set max_tokens N changes it)");
  if (answer->reason == engine::FinishReason::context_full)
    tell(
        "(the context is full: the answer ends here, and is kept; /save FILE keeps the "
        "conversation, /reset begins anew, --context N makes room)");
  last_ = *std::move(answer);
  return true;
}

void Chat::turn(const std::string& text) {
  text::Message message;
  message.role = text::Role::user;
  message.content = text;
  conversation_.messages.push_back(std::move(message));
  if (answer()) return;
  conversation_.messages.pop_back();
  tell("(this message is not part of the conversation)");
}

void Chat::regenerate() {
  if (conversation_.messages.empty()) return tell("(nothing to answer yet)");
  text::Message before;
  const bool had_answer = conversation_.messages.back().role == text::Role::assistant;
  if (had_answer) {
    before = std::move(conversation_.messages.back());
    conversation_.messages.pop_back();
  }
  if (!answer() && had_answer) conversation_.messages.push_back(std::move(before));
}

}  // namespace

bool use_colour(const Context& context) {
  return context.environment.no_color.empty() && !context.exo.disable_tui &&
         is_terminal(STDOUT_FILENO);
}

text::ChatRequest make_request(const std::string& system, const std::vector<text::Message>& before,
                               const std::string& user) {
  text::ChatRequest request;
  request.add_generation_prompt = true;
  text::Message message;
  if (!system.empty()) {
    message.role = text::Role::system;
    message.content = system;
    request.messages.push_back(message);
  }
  request.messages.insert(request.messages.end(), before.begin(), before.end());
  message.role = text::Role::user;
  message.content = user;
  request.messages.push_back(std::move(message));
  return request;
}

void AnswerPrinter::write(std::string_view text) {
  if (text.empty() || !status_.ok()) return;
  last_ = text.back();
  anything_ = true;
  status_ = write_out(text);
}

void AnswerPrinter::print(const text::ReasoningSplitter::Piece& piece) {
  if (!enabled_) return;
  if (!piece.reasoning.empty() && hide_thinking_ && !hidden_said_) {
    hidden_said_ = true;
    say("(thinking ...)");
  }
  if (!piece.reasoning.empty() && !hide_thinking_) {
    if (!in_reasoning_) write(colour_ ? "\x1b[2m" : "<think>");
    in_reasoning_ = true;
    write(piece.reasoning);
  }
  if (!piece.content.empty()) print_content(piece.content);
}

void AnswerPrinter::print_content(std::string_view content) {
  // Models put blank lines between the two. A person sees one of them, other programs all.
  if (in_reasoning_) {
    line_ended_ = last_ == '\n';
    write(colour_ ? "\x1b[0m" : "</think>");
    between_ = colour_;
  } else if (hidden_said_ && !anything_) {
    between_ = true;
  }
  in_reasoning_ = false;
  if (between_) {
    content.remove_prefix(std::min(content.find_first_not_of(" \t\r\n"), content.size()));
    if (content.empty()) return;
    if (anything_) write(line_ended_ ? "\n" : "\n\n");
    between_ = false;
  }
  write(content);
}

void AnswerPrinter::finish() {
  if (!enabled_) return;
  const char last = last_;
  if (in_reasoning_ && colour_) write("\x1b[0m");
  if (anything_ && last != '\n') write("\n");
}

Status chat(const Context& context, const RunOptions& options) {
  EXO_ASSIGN_OR_RETURN(auto answerer, make_answerer(context, options));
  EXO_RETURN_IF_ERROR(generate_options(context.exo, options, answerer->defaults()).status());
  auto lines = LineEditor::create(
      context.paths.exo_home + "/history",
      {"/help", "/reset", "/system", "/set", "/save", "/load", "/regenerate", "/stats", "/exit"});
  const InterruptScope interrupt;
  Chat session(context, options, std::move(answerer), std::move(lines));
  return session.run();
}

}  // namespace exo::cli
