#include "engine/generate.h"

#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "base/log.h"
#include "text/stop_strings.h"
#include "text/stream_decoder.h"

namespace exo::engine {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

bool cancelled_by(const GenerateOptions& options) {
  return options.cancel != nullptr && options.cancel->load(std::memory_order_relaxed);
}

std::vector<float> copy_row(const TensorView& logits) {
  const float* row = logits.row<float>(0);
  return {row, row + logits.dim(1)};
}

/// Ids to text that may be shown: whole characters, stop strings held back.
class TextStream {
 public:
  TextStream(const text::Tokenizer& tokenizer, bool skip_special_tokens, text::StopStrings stops,
             const Session::OnText& on_text)
      : decoder_(tokenizer, skip_special_tokens), stops_(std::move(stops)), on_text_(on_text) {}

  /// True when a stop string ended the answer.
  bool push(int32_t id) { return push_text(decoder_.push(id)); }
  /// The end, whatever ended it. True when the last bytes complete a stop string.
  bool finish() {
    const bool stopped = push_text(decoder_.flush());
    show(stops_.finish());
    return stopped;
  }

 private:
  bool push_text(std::string_view text) {
    const text::StopStrings::Step step = stops_.push(text);
    show(step.text);
    return step.stop.has_value();
  }
  void show(std::string_view text) {
    if (!text.empty()) on_text_(text);
  }

  text::StreamDecoder decoder_;
  text::StopStrings stops_;
  const Session::OnText& on_text_;
};

}  // namespace

std::string_view describe(FinishReason reason) {
  switch (reason) {
    case FinishReason::eos:
      return "end of answer";
    case FinishReason::stop_string:
      return "stop string";
    case FinishReason::max_tokens:
      return "token limit";
    case FinishReason::context_full:
      return "context full";
    case FinishReason::cancelled:
      return "stopped";
  }
  return "?";
}

Result<Session> Session::create(Engine& engine, const text::Tokenizer& tokenizer) {
  EXO_ASSIGN_OR_RETURN(const SequenceId id, engine.add_sequence());
  return Session(engine, tokenizer, id);
}

Session::Session(Session&& other) noexcept
    : engine_(std::exchange(other.engine_, nullptr)),
      tokenizer_(other.tokenizer_),
      id_(other.id_),
      tokens_(std::move(other.tokens_)) {}

Session::~Session() {
  if (engine_ != nullptr) engine_->remove_sequence(id_);
}

Status Session::check_prompt(std::span<const int32_t> prompt) const {
  if (prompt.empty()) return invalid_argument("the prompt is empty: expected at least one token");
  const model::Plan& plan = engine_->plan();
  const int64_t context = plan.limits.max_context_tokens;
  if (static_cast<int64_t>(prompt.size()) > context)
    return failed_precondition(
        fmt::format("the prompt has {} tokens and the context holds {}: shorten it, or raise "
                    "--context (this model: at most {})",
                    prompt.size(), context, plan.config.max_position_embeddings));
  for (size_t i = 0; i < prompt.size(); ++i)
    if (prompt[i] < 0 || prompt[i] >= plan.config.vocab_size)
      return invalid_argument(
          fmt::format("prompt token {} is id {}, and this model's vocabulary has {}: is the "
                      "tokenizer this model's?",
                      i, prompt[i], plan.config.vocab_size));
  return ok_status();
}

Status Session::keep_common_prefix(std::span<const int32_t> prompt) {
  // The last prompt token is always computed: its logits begin the answer.
  const auto common =
      std::mismatch(tokens_.begin(), tokens_.end(), prompt.begin(), prompt.end()).first;
  const size_t n = std::min(static_cast<size_t>(common - tokens_.begin()), prompt.size() - 1);
  EXO_RETURN_IF_ERROR(engine_->truncate(id_, static_cast<int64_t>(n)));
  tokens_.resize(n);
  return ok_status();
}

Result<bool> Session::prefill(std::span<const int32_t> prompt, const GenerateOptions& options,
                              const OnPrefill& on_prefill, std::vector<float>& logits) {
  // Chunk by chunk here, so that a long prompt can be stopped and its progress shown.
  const auto chunk = static_cast<size_t>(engine_->plan().limits.max_batch_tokens);
  const size_t n_known = tokens_.size();
  while (tokens_.size() < prompt.size()) {
    if (cancelled_by(options)) return false;
    const size_t n = std::min(chunk, prompt.size() - tokens_.size());
    const auto part = prompt.subspan(tokens_.size(), n);
    const auto begin = Clock::now();
    std::vector<int32_t> wanted;
    if (tokens_.size() + n == prompt.size()) wanted.push_back(static_cast<int32_t>(n) - 1);
    EXO_RETURN_IF_ERROR(
        engine_->prefill(id_, part, wanted, [&](std::span<const int32_t>, const TensorView& rows) {
          logits = copy_row(rows);
          return ok_status();
        }));
    tokens_.insert(tokens_.end(), part.begin(), part.end());
    log_debug("prompt tokens {} to {} in {:.1f} ms", tokens_.size() - n, tokens_.size(),
              1e3 * seconds_since(begin));
    if (on_prefill)
      on_prefill(static_cast<int64_t>(tokens_.size() - n_known),
                 static_cast<int64_t>(prompt.size() - n_known));
  }
  return true;
}

Result<Generation> Session::generate(std::span<const int32_t> prompt,
                                     const GenerateOptions& options, const OnText& on_text,
                                     const OnPrefill& on_prefill) {
  EXO_RETURN_IF_ERROR(check(options.sampling));
  EXO_RETURN_IF_ERROR(check_prompt(prompt));
  EXO_ASSIGN_OR_RETURN(text::StopStrings stops, text::StopStrings::create(options.stops));
  Generation result;
  GenerateStats& stats = result.stats;
  const auto begin = Clock::now();

  EXO_RETURN_IF_ERROR(keep_common_prefix(prompt));
  stats.n_prompt_tokens = std::ssize(prompt);
  stats.n_reused_tokens = std::ssize(tokens_);
  log_debug("prompt of {} tokens, {} of them in the cache", prompt.size(), tokens_.size());

  std::vector<float> logits;
  EXO_ASSIGN_OR_RETURN(const bool complete, prefill(prompt, options, on_prefill, logits));
  stats.prefill_s = seconds_since(begin);
  if (!complete) {
    result.reason = FinishReason::cancelled;
    return result;
  }

  const model::Plan& plan = engine_->plan();
  Sampler sampler(options.sampling,
                  tokenizer_->undefined_ids(static_cast<int32_t>(plan.config.vocab_size)));
  sampler.observe_prompt(prompt);
  TextStream stream(*tokenizer_, options.skip_special_tokens, std::move(stops), on_text);
  Clock::time_point first{};
  std::span<const float> row = logits;
  result.reason = FinishReason::max_tokens;
  while (options.max_tokens < 0 || stats.n_generated < options.max_tokens) {
    EXO_ASSIGN_OR_RETURN(const int32_t token, sampler.sample(row));
    if (stats.n_generated++ == 0) {
      first = Clock::now();
      stats.first_token_s = seconds_since(begin);
    }
    stats.decode_s = seconds_since(first);
    result.ids.push_back(token);
    log_trace("token {} of the answer: id {}, after {:.1f} ms", stats.n_generated, token,
              1e3 * seconds_since(begin));
    const bool is_eos =
        std::find(options.eos_ids.begin(), options.eos_ids.end(), token) != options.eos_ids.end();
    if (is_eos || stream.push(token)) {
      result.reason = is_eos ? FinishReason::eos : FinishReason::stop_string;
      break;
    }
    if (stats.n_generated == options.max_tokens) break;
    if (cancelled_by(options)) {
      result.reason = FinishReason::cancelled;
      break;
    }
    if (engine_->n_tokens(id_) >= plan.limits.max_context_tokens) {
      result.reason = FinishReason::context_full;
      break;
    }
    const Engine::Step step{id_, token};
    auto next = engine_->decode({&step, 1});
    if (!next.ok()) {
      stream.finish();
      return next.status();
    }
    tokens_.push_back(token);
    row = {next->row<float>(0), static_cast<size_t>(next->dim(1))};
  }
  if (stream.finish()) result.reason = FinishReason::stop_string;
  return result;
}

}  // namespace exo::engine
