/// Messages in, a streamed answer out: what `exo run` and its chat speak to. Behind it a model, or
/// (--inference-engine dummy) none.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "cli/model_setup.h"
#include "cli/text_model.h"
#include "engine/generate.h"
#include "text/chat_format.h"
#include "text/reasoning.h"

namespace exo::cli {

struct Answer {
  std::string text;       ///< as generated, tags included
  std::string reasoning;  ///< what stood between the tags
  std::string content;
  bool in_reasoning = false;  ///< it ended before the reasoning did
  engine::FinishReason reason = engine::FinishReason::eos;
  engine::GenerateStats stats;
};

class Answerer {
 public:
  using OnPiece = std::function<void(const text::ReasoningSplitter::Piece&)>;

  virtual ~Answerer() = default;
  /// The answer to a conversation.
  virtual Result<Answer> chat(const text::ChatRequest& request,
                              const engine::GenerateOptions& options, const OnPiece& on_piece) = 0;
  /// What follows a text, without a chat format.
  virtual Result<Answer> complete(const std::string& prompt, const engine::GenerateOptions& options,
                                  const OnPiece& on_piece) = 0;

  virtual bool has_thinking_switch() const = 0;
  virtual const GenerationDefaults& defaults() const = 0;
  /// Tokens in the cache and how many it holds; (0, 0) without one.
  struct ContextUse {
    int64_t n_tokens = 0, max_tokens = 0;
  };
  virtual ContextUse context_use() const = 0;
  virtual std::string name() const = 0;
};

/// Finds, plans, converts and loads options.model; with the dummy engine nothing of it.
Result<std::unique_ptr<Answerer>> make_answerer(const Context& context, const RunOptions& options);

/// Sampling and lengths: the user's flags over exo's flags over the model's own defaults. Without
/// --seed a new one is drawn.
Result<engine::GenerateOptions> generate_options(const ExoFlags& exo, const RunOptions& options,
                                                 const GenerationDefaults& defaults);

/// "12 prompt tokens (8 kept) 151.2 tok/s | 24 tokens 18.3 tok/s | first after 0.1 s | token limit"
std::string describe_stats(const Answer& answer);

}  // namespace exo::cli
