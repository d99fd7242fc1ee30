/// One answer: prompt ids in, streamed text and a finish reason out. What cli and server share
/// above the engine.
///
/// A Session is one sequence of the engine and the tokens in it. generate() takes the whole prompt
/// of a turn: what it has in common with the tokens at hand is kept, the rest of the sequence is
/// taken back (an edited chat, reasoning that a template drops), and only what is new is computed.
///
/// Errors: an empty prompt, ids outside the vocabulary, sampling options out of range, a prompt
/// that doesn't fit the context (failed_precondition, before anything is computed). A context that
/// fills while answering is no error: the answer ends there with FinishReason::context_full.
#pragma once

#include <atomic>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/engine.h"
#include "engine/sampler.h"
#include "text/tokenizer.h"

namespace exo::engine {

struct GenerateOptions {
  SamplingOptions sampling;
  int64_t max_tokens = -1;  ///< of the answer; -1: until the context is full
  std::vector<std::string> stops;
  std::vector<int32_t> eos_ids;  ///< end the answer and are not part of its text
  bool skip_special_tokens = true;
  /// Set by somebody else (Ctrl-C): the answer ends after the token, or the prompt's chunk, being
  /// computed.
  const std::atomic<bool>* cancel = nullptr;
};

enum class FinishReason { eos, stop_string, max_tokens, context_full, cancelled };
/// "end of answer", "stop string", ...: for people.
std::string_view describe(FinishReason reason);

struct GenerateStats {
  int64_t n_prompt_tokens = 0;
  int64_t n_reused_tokens = 0;  ///< of the prompt: their latents were in the cache already
  double prefill_s = 0;
  double first_token_s = 0;  ///< from the call to the first token
  int64_t n_generated = 0;   ///< eos included
  double decode_s = 0;       ///< of all tokens but the first, which the prefill gives
};

struct Generation {
  std::vector<int32_t> ids;  ///< as sampled, eos included
  FinishReason reason = FinishReason::eos;
  GenerateStats stats;
};

class Session {
 public:
  static Result<Session> create(Engine& engine, const text::Tokenizer& tokenizer);
  Session(Session&& other) noexcept;
  Session& operator=(Session&&) = delete;
  ~Session();

  /// Tokens whose latents are in the cache.
  const std::vector<int32_t>& tokens() const { return tokens_; }

  /// `on_text` gets the answer in whole characters as they come; never a part of a stop string.
  /// `on_prefill`, if given, gets (tokens done, tokens to do) after each chunk of the prompt.
  using OnText = std::function<void(std::string_view)>;
  using OnPrefill = std::function<void(int64_t done, int64_t total)>;
  Result<Generation> generate(std::span<const int32_t> prompt, const GenerateOptions& options,
                              const OnText& on_text, const OnPrefill& on_prefill = {});

 private:
  Session(Engine& engine, const text::Tokenizer& tokenizer, SequenceId id)
      : engine_(&engine), tokenizer_(&tokenizer), id_(id) {}
  Status check_prompt(std::span<const int32_t> prompt) const;
  /// Takes back what isn't the beginning of `prompt`.
  Status keep_common_prefix(std::span<const int32_t> prompt);
  /// False if it was cancelled.
  Result<bool> prefill(std::span<const int32_t> prompt, const GenerateOptions& options,
                       const OnPrefill& on_prefill, std::vector<float>& logits);

  Engine* engine_;
  const text::Tokenizer* tokenizer_;
  SequenceId id_;
  std::vector<int32_t> tokens_;
};

}  // namespace exo::engine
