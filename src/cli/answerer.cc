#include "cli/answerer.h"

#include <fmt/core.h>

#include <charconv>
#include <random>

#include "cli/console.h"

namespace exo::cli {
namespace {

constexpr int64_t kDefaultMaxGenerateTokens = 10000;  // exo's own

double rate(int64_t n, double seconds) {
  return seconds > 0 ? static_cast<double>(n) / seconds : 0;
}

/// Splits what is streamed and keeps all of it.
class AnswerBuilder {
 public:
  AnswerBuilder(text::ReasoningStart start, const Answerer::OnPiece& on_piece)
      : splitter_(start), on_piece_(on_piece) {}
  void push(std::string_view text) {
    answer_.text += text;
    add(splitter_.push(text));
  }
  Answer finish() {
    answer_.in_reasoning = splitter_.in_reasoning();
    add(splitter_.finish());
    return std::move(answer_);
  }

 private:
  void add(const text::ReasoningSplitter::Piece& piece) {
    if (piece.reasoning.empty() && piece.content.empty()) return;
    answer_.reasoning += piece.reasoning;
    answer_.content += piece.content;
    on_piece_(piece);
  }
  text::ReasoningSplitter splitter_;
  const Answerer::OnPiece& on_piece_;
  Answer answer_;
};

class ModelAnswerer : public Answerer {
 public:
  ModelAnswerer(LoadedModel loaded, TextModel text, bool plain)
      : loaded_(std::move(loaded)), text_(std::move(text)), plain_(plain) {}

  Status start() {
    EXO_ASSIGN_OR_RETURN(auto session, engine::Session::create(*loaded_.engine, text_.tokenizer));
    session_ = std::make_unique<engine::Session>(std::move(session));
    return ok_status();
  }

  Result<Answer> chat(const text::ChatRequest& request, const engine::GenerateOptions& options,
                      const OnPiece& on_piece) override {
    if (text_.format == nullptr) {
      std::string prompt;
      for (const text::Message& message : request.messages) prompt += message.content.value_or("");
      return complete(prompt, options, on_piece);
    }
    EXO_ASSIGN_OR_RETURN(const text::RenderedPrompt prompt, text_.format->render(request));
    EXO_ASSIGN_OR_RETURN(std::vector<int32_t> ids, encode_turn(prompt.text));
    return answer(prompt.text, std::move(ids), prompt.reasoning, options, on_piece);
  }

  Result<Answer> complete(const std::string& prompt, const engine::GenerateOptions& options,
                          const OnPiece& on_piece) override {
    EXO_ASSIGN_OR_RETURN(std::vector<int32_t> ids, encode_raw(text_, prompt));
    return answer(prompt, std::move(ids), text::ReasoningStart::none, options, on_piece);
  }

  bool has_thinking_switch() const override {
    return text_.format != nullptr && text_.format->has_thinking_switch;
  }
  const GenerationDefaults& defaults() const override { return text_.defaults; }
  ContextUse context_use() const override {
    return {static_cast<int64_t>(session_->tokens().size()),
            loaded_.engine->plan().limits.max_context_tokens};
  }
  std::string name() const override { return loaded_.planned.location.name; }

 private:
  /// A turn whose prompt begins with the one before and its answer keeps their ids: an answer's ids
  /// needn't be those that its text is encoded to. What follows an answer is its end token, so the
  /// rest can be encoded alone.
  Result<std::vector<int32_t>> encode_turn(const std::string& prompt) const {
    const std::string known = last_prompt_ + last_answer_;
    if (last_answer_.empty() || !prompt.starts_with(known)) return text_.tokenizer.encode(prompt);
    std::vector<int32_t> ids = last_ids_;
    EXO_ASSIGN_OR_RETURN(const std::vector<int32_t> rest,
                         text_.tokenizer.encode(std::string_view(prompt).substr(known.size())));
    const bool at_special = !rest.empty() && text_.tokenizer.is_special(rest.front());
    if (!at_special) return text_.tokenizer.encode(prompt);
    ids.insert(ids.end(), rest.begin(), rest.end());
    return ids;
  }

  Result<Answer> answer(const std::string& prompt, std::vector<int32_t> ids,
                        text::ReasoningStart start, const engine::GenerateOptions& options,
                        const OnPiece& on_piece) {
    AnswerBuilder builder(start, on_piece);
    engine::Session::OnPrefill on_prefill;
    std::unique_ptr<ProgressBar> bar;
    constexpr size_t kLongPrompt = 2048;
    if (ids.size() > kLongPrompt && !plain_) {
      bar = std::make_unique<ProgressBar>("reading the prompt", ProgressBar::Unit::tokens, false);
      on_prefill = [&](int64_t done, int64_t total) {
        bar->update(static_cast<uint64_t>(done), static_cast<uint64_t>(total));
      };
    }
    EXO_ASSIGN_OR_RETURN(engine::Generation generation, session_->generate(
                                                            ids, options,
                                                            [&](std::string_view text) {
                                                              if (bar) bar->finish();
                                                              builder.push(text);
                                                            },
                                                            on_prefill));
    Answer result = builder.finish();
    result.reason = generation.reason;
    result.stats = generation.stats;
    // An end token is part of the next prompt, not of the answer; a stop string's ids are not text.
    if (generation.reason == engine::FinishReason::eos) generation.ids.pop_back();
    const bool text_is_ids = generation.reason != engine::FinishReason::stop_string;
    last_prompt_ = prompt;
    last_answer_ = text_is_ids ? result.text : "";
    last_ids_ = std::move(ids);
    last_ids_.insert(last_ids_.end(), generation.ids.begin(), generation.ids.end());
    return result;
  }

  LoadedModel loaded_;
  TextModel text_;
  bool plain_;
  std::unique_ptr<engine::Session> session_;
  std::string last_prompt_, last_answer_;
  std::vector<int32_t> last_ids_;  ///< of both
};

/// Answers with the question, word by word: everything around a model, without one.
class DummyAnswerer : public Answerer {
 public:
  Result<Answer> chat(const text::ChatRequest& request, const engine::GenerateOptions& options,
                      const OnPiece& on_piece) override {
    return complete(request.messages.empty() ? "" : request.messages.back().content.value_or(""),
                    options, on_piece);
  }
  Result<Answer> complete(const std::string& prompt, const engine::GenerateOptions& options,
                          const OnPiece& on_piece) override {
    AnswerBuilder builder(text::ReasoningStart::by_model, on_piece);
    const std::string reply = "dummy: " + prompt;
    int64_t n_words = 0;
    engine::FinishReason reason = engine::FinishReason::eos;
    for (size_t begin = 0; begin < reply.size(); ++n_words) {
      if (options.max_tokens >= 0 && n_words >= options.max_tokens)
        reason = engine::FinishReason::max_tokens;
      if (options.cancel != nullptr && options.cancel->load())
        reason = engine::FinishReason::cancelled;
      if (reason != engine::FinishReason::eos) break;
      const size_t end = std::min(reply.find(' ', begin), reply.size() - 1) + 1;
      builder.push(std::string_view(reply).substr(begin, end - begin));
      begin = end;
    }
    Answer answer = builder.finish();
    answer.reason = reason;
    answer.stats.n_prompt_tokens = 1;
    answer.stats.n_generated = n_words;
    return answer;
  }
  bool has_thinking_switch() const override { return true; }
  const GenerationDefaults& defaults() const override { return defaults_; }
  ContextUse context_use() const override { return {}; }
  std::string name() const override { return "dummy"; }

 private:
  GenerationDefaults defaults_;
};

Result<std::pair<int32_t, float>> parse_bias(const std::string& text) {
  const size_t equals = text.find('=');
  int32_t id = -1;
  float bias = 0;
  const char* begin = text.data();
  const char* end = begin + text.size();
  const bool good = equals != std::string::npos &&
                    std::from_chars(begin, begin + equals, id).ptr == begin + equals &&
                    std::from_chars(begin + equals + 1, end, bias).ptr == end &&
                    equals + 1 < text.size();
  if (!good)
    return invalid_argument(
        fmt::format("--logit-bias {}: expected ID=BIAS, such as 1234=-5.5", text));
  return std::pair{id, bias};
}

}  // namespace

Result<std::unique_ptr<Answerer>> make_answerer(const Context& context, const RunOptions& options) {
  if (context.exo.inference_engine == "dummy")
    return std::unique_ptr<Answerer>(std::make_unique<DummyAnswerer>());
  EXO_ASSIGN_OR_RETURN(LoadedModel loaded, load_model(context, options.model, {}));
  const PlannedModel& planned = loaded.planned;
  const std::string folder =
      planned.files_folder.empty() ? planned.cache_folder : planned.files_folder;
  EXO_ASSIGN_OR_RETURN(TextModel text,
                       load_text_model(planned.location, folder, planned.plan.config,
                                       {options.tokenizer, options.chat_format, options.raw}));
  auto answerer =
      std::make_unique<ModelAnswerer>(std::move(loaded), std::move(text), context.exo.disable_tui);
  EXO_RETURN_IF_ERROR(answerer->start());
  return std::unique_ptr<Answerer>(std::move(answerer));
}

Result<engine::GenerateOptions> generate_options(const ExoFlags& exo, const RunOptions& options,
                                                 const GenerationDefaults& defaults) {
  const SamplingFlags& flags = options.sampling;
  engine::GenerateOptions generate;
  engine::SamplingOptions& sampling = generate.sampling;
  sampling.temperature = flags.temperature.value_or(
      exo.default_temp.value_or(defaults.temperature.value_or(sampling.temperature)));
  sampling.top_k = flags.top_k.value_or(defaults.top_k.value_or(sampling.top_k));
  sampling.top_p = flags.top_p.value_or(defaults.top_p.value_or(sampling.top_p));
  sampling.min_p = flags.min_p.value_or(defaults.min_p.value_or(sampling.min_p));
  sampling.typical_p = flags.typical_p.value_or(defaults.typical_p.value_or(sampling.typical_p));
  sampling.repetition_penalty = flags.repetition_penalty.value_or(
      defaults.repetition_penalty.value_or(sampling.repetition_penalty));
  sampling.presence_penalty = flags.presence_penalty.value_or(sampling.presence_penalty);
  sampling.frequency_penalty = flags.frequency_penalty.value_or(sampling.frequency_penalty);
  if (flags.greedy) sampling.temperature = 0;
  for (const std::string& text : flags.logit_bias) {
    EXO_ASSIGN_OR_RETURN(const auto bias, parse_bias(text));
    sampling.logit_bias.push_back(bias);
  }
  sampling.seed = flags.seed ? *flags.seed : std::random_device{}();
  EXO_RETURN_IF_ERROR(engine::check(sampling));
  generate.max_tokens = exo.max_generate_tokens.value_or(kDefaultMaxGenerateTokens);
  generate.stops = flags.stops;
  if (!options.ignore_eos) generate.eos_ids = defaults.eos_ids;
  return generate;
}

std::string describe_stats(const Answer& answer) {
  const engine::GenerateStats& s = answer.stats;
  const int64_t n_new = s.n_prompt_tokens - s.n_reused_tokens;
  std::string text = fmt::format("{} prompt tokens", s.n_prompt_tokens);
  if (s.n_reused_tokens > 0) text += fmt::format(" ({} kept)", s.n_reused_tokens);
  text += fmt::format(", {:.1f} tok/s | {} tokens", rate(n_new, s.prefill_s), s.n_generated);
  if (s.n_generated > 1) text += fmt::format(", {:.1f} tok/s", rate(s.n_generated - 1, s.decode_s));
  return text + fmt::format(" | first after {} | {}", format_duration(s.first_token_s),
                            engine::describe(answer.reason));
}

}  // namespace exo::cli
