#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>

#include "base/json.h"
#include "base/os.h"
#include "cli/commands.h"
#include "cli/console.h"
#include "cli/model_setup.h"
#include "cli/text_model.h"
#include "engine/sampler.h"

namespace exo::cli {
namespace {

constexpr uint64_t kMaxTextBytes = uint64_t{1} << 30;
constexpr int64_t kDefaultWindow = 2048;

/// log(sum exp(logits)), in double.
double log_sum_exp(std::span<const float> logits) {
  const double best = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (float logit : logits) sum += std::exp(static_cast<double>(logit) - best);
  return best + std::log(sum);
}

struct Totals {
  int64_t n_tokens = 0;
  double nll = 0;
  double kl = 0;  ///< of the second model's distribution from ours
  int64_t n_same_best = 0;
};

/// KL(reference || ours) of one position, in nats.
double kl_divergence(std::span<const float> reference, double reference_lse,
                     std::span<const float> ours, double ours_lse) {
  double kl = 0;
  for (size_t i = 0; i < ours.size(); ++i) {
    const double log_p = static_cast<double>(reference[i]) - reference_lse;
    const double log_q = static_cast<double>(ours[i]) - ours_lse;
    kl += std::exp(log_p) * (log_p - log_q);
  }
  return kl;
}

class Scorer {
 public:
  Scorer(engine::Engine& ours, engine::Engine* reference) : ours_(ours), reference_(reference) {}

  /// One window: BOS and the text's tokens; every token but BOS is scored.
  Status score(std::span<const int32_t> window, const std::function<void(int64_t)>& on_scored) {
    EXO_ASSIGN_OR_RETURN(const engine::SequenceId id, ours_.add_sequence());
    engine::SequenceId reference_id = 0;
    if (reference_ != nullptr) {
      EXO_ASSIGN_OR_RETURN(reference_id, reference_->add_sequence());
    }
    const auto chunk = static_cast<size_t>(ours_.plan().limits.max_batch_tokens);
    for (size_t begin = 0; begin < window.size(); begin += chunk) {
      const size_t n = std::min(chunk, window.size() - begin);
      // The row of the last token predicts nothing that is scored.
      std::vector<int32_t> wanted(begin + n < window.size() ? n : n - 1);
      std::iota(wanted.begin(), wanted.end(), 0);
      const auto part = window.subspan(begin, n);
      std::vector<float> reference_rows;
      if (reference_ != nullptr)
        EXO_RETURN_IF_ERROR(reference_->prefill(
            reference_id, part, wanted, [&](std::span<const int32_t>, const TensorView& logits) {
              reference_rows.insert(reference_rows.end(), logits.row<float>(0),
                                    logits.row<float>(0) + logits.n_elements());
              return ok_status();
            }));
      EXO_RETURN_IF_ERROR(ours_.prefill(
          id, part, wanted, [&](std::span<const int32_t> indices, const TensorView& logits) {
            for (size_t i = 0; i < indices.size(); ++i)
              add(logits, static_cast<int64_t>(i), static_cast<size_t>(indices[i]),
                  window[begin + static_cast<size_t>(indices[i]) + 1], reference_rows);
            on_scored(totals_.n_tokens);
            return ok_status();
          }));
      if (InterruptScope::interrupted()) return cancelled("");
    }
    ours_.remove_sequence(id);
    if (reference_ != nullptr) reference_->remove_sequence(reference_id);
    return ok_status();
  }
  const Totals& totals() const { return totals_; }

 private:
  void add(const TensorView& logits, int64_t row, size_t index, int32_t target,
           const std::vector<float>& reference_rows) {
    const auto vocab_size = static_cast<size_t>(logits.dim(1));
    const std::span<const float> ours(logits.row<float>(row), vocab_size);
    const double lse = log_sum_exp(ours);
    totals_.nll += lse - static_cast<double>(ours[static_cast<size_t>(target)]);
    ++totals_.n_tokens;
    if (reference_ == nullptr) return;
    const auto reference = std::span(reference_rows).subspan(index * vocab_size, vocab_size);
    totals_.kl += kl_divergence(reference, log_sum_exp(reference), ours, lse);
    totals_.n_same_best += engine::argmax(reference) == engine::argmax(ours) ? 1 : 0;
  }

  engine::Engine& ours_;
  engine::Engine* reference_;
  Totals totals_;
};

Status report(const Totals& totals, bool against, bool json) {
  if (totals.n_tokens == 0) return invalid_argument("perplexity: the text has no tokens to score");
  const auto n = static_cast<double>(totals.n_tokens);
  const double mean_nll = totals.nll / n, perplexity = std::exp(mean_nll);
  if (json) {
    OrderedJson out = {
        {"perplexity", perplexity}, {"n_tokens", totals.n_tokens}, {"mean_nll", mean_nll}};
    if (against) {
      out["mean_kl"] = totals.kl / n;
      out["top1_agreement"] = static_cast<double>(totals.n_same_best) / n;
    }
    return write_out(out.dump() + "\n");
  }
  std::string text = fmt::format("perplexity {:.4f} over {} tokens (mean loss {:.6f})\n",
                                 perplexity, format_count(totals.n_tokens), mean_nll);
  if (against)
    text += fmt::format("mean KL divergence {:.6f} nats, the best token agrees at {:.2f}%\n",
                        totals.kl / n, 100 * static_cast<double>(totals.n_same_best) / n);
  return write_out(text);
}

}  // namespace

Status perplexity_command(const Context& context, const PerplexityOptions& options) {
  EXO_ASSIGN_OR_RETURN(const std::string text, read_input(options.text_file, kMaxTextBytes));
  const int64_t window = options.model.context > 0 ? options.model.context : kDefaultWindow;
  if (window < 2) return invalid_argument("--context: expected at least 2 tokens (BOS and one)");
  constexpr int64_t kChunk = 512;
  RunNeeds needs;
  needs.one_shot_rows = window;
  needs.max_logit_rows = std::min(window, kChunk);
  ModelOptions model_options = options.model;
  model_options.context = 0;
  EXO_ASSIGN_OR_RETURN(const PlannedModel probe, plan_model(context, model_options, {}));
  const int64_t longest = std::max<int64_t>(probe.plan.config.max_position_embeddings, 2);
  if (options.model.context > longest)
    return invalid_argument(fmt::format("--context {}: this model's positions end at {}",
                                        options.model.context, longest));
  needs.context_tokens = std::min(window, longest);
  EXO_ASSIGN_OR_RETURN(const LoadedModel ours, load_model(context, model_options, needs));
  std::optional<LoadedModel> reference;
  if (!options.against.empty() || !options.against_format.empty() ||
      !options.against_kv_cache.empty()) {
    ModelOptions other = model_options;
    if (!options.against.empty()) other.model = options.against;
    if (!options.against.empty() || !options.against_format.empty())
      other.format = options.against_format;
    if (!options.against_kv_cache.empty()) other.kv_cache = options.against_kv_cache;
    EXO_ASSIGN_OR_RETURN(reference, load_model(context, other, needs));
    if (reference->engine->plan().config.vocab_size != ours.engine->plan().config.vocab_size)
      return invalid_argument(fmt::format(
          "--against {}: its vocabulary has {} entries, {}'s has {}: only models of one "
          "vocabulary compare",
          options.against, reference->engine->plan().config.vocab_size, ours.planned.location.name,
          ours.engine->plan().config.vocab_size));
  }
  EXO_ASSIGN_OR_RETURN(const TextModel text_model,
                       load_text_model(ours.planned.location, ours.planned.files_folder,
                                       ours.planned.plan.config, {options.tokenizer, "", true}));
  if (!text_model.bos)
    return failed_precondition(
        "perplexity: this model has no BOS token, and each window begins with it");
  EXO_ASSIGN_OR_RETURN(std::vector<int32_t> ids, text_model.tokenizer.encode(text));
  if (options.max_tokens > 0 && static_cast<int64_t>(ids.size()) > options.max_tokens)
    ids.resize(static_cast<size_t>(options.max_tokens));

  const InterruptScope interrupt;
  ProgressBar bar("scoring", ProgressBar::Unit::tokens, context.exo.disable_tui);
  bar.update(0, ids.size());
  Scorer scorer(*ours.engine, reference ? reference->engine.get() : nullptr);
  const auto step = static_cast<size_t>(needs.context_tokens - 1);
  for (size_t begin = 0; begin < ids.size(); begin += step) {
    const size_t n = std::min(step, ids.size() - begin);
    std::vector<int32_t> tokens{*text_model.bos};
    tokens.insert(tokens.end(), ids.begin() + static_cast<ptrdiff_t>(begin),
                  ids.begin() + static_cast<ptrdiff_t>(begin + n));
    EXO_RETURN_IF_ERROR(scorer.score(
        tokens, [&](int64_t done) { bar.update(static_cast<uint64_t>(done), ids.size()); }));
  }
  bar.finish();
  return report(scorer.totals(), reference.has_value(), options.json);
}

}  // namespace exo::cli
