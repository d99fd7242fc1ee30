// The three stages for a whole model, without the engine: a checkpoint folder and token ids in,
// greedy tokens out.
//
//   model CHECKPOINT CACHE N ID...       N tokens after the prompt's ids; CACHE is made if need be
//
// What the engine adds to this are many sequences, pages that are shared out among them, sampling
// and text: engine/engine.h and engine/generate.h.
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <numeric>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/os.h"
#include "base/thread_pool.h"
#include "kernels/cpu/isa.h"
#include "model/convert.h"
#include "model/model.h"
#include "model/plan.h"
#include "weights/checkpoint.h"

namespace {

using exo::Result;
using exo::Status;
namespace model = exo::model;

// Stage 1. What an earlier run has converted is kept.
Status convert(const model::Plan& plan, const std::string& folder, const std::string& cache,
               exo::ThreadPool& pool) {
  EXO_ASSIGN_OR_RETURN(const auto checkpoint, exo::weights::Checkpoint::open(folder));
  return model::convert_weights(plan, checkpoint, cache, pool, [](const auto&) {});
}

// Stage 2. The whole model on this machine, one sequence, fp32 activations; every weight in the
// format it has.
Result<model::Plan> make_plan(const std::string& folder, int64_t n_tokens, int n_threads) {
  EXO_ASSIGN_OR_RETURN(const exo::Json json, exo::read_json_file(folder + "/config.json"));
  EXO_ASSIGN_OR_RETURN(const model::HfConfig config, model::parse_config(json, folder));
  EXO_ASSIGN_OR_RETURN(const model::FormatChoice format, model::parse_format("", config));
  model::Limits limits;
  limits.max_context_tokens = n_tokens;
  limits.max_batch_tokens = n_tokens;
  limits.n_threads = n_threads;
  limits.fp32_compute = true;
  return model::make_plan(config, format, model::whole_model(config), limits);
}

// Stage 3: one forward. The ids in `tokens` come after `n_past` earlier ones; the best next id.
Result<int32_t> next_token(const model::Run& run, std::span<const int32_t> tokens, int32_t n_past,
                           std::span<const int32_t> pages, exo::ops::OpContext& context) {
  const auto n = static_cast<int32_t>(tokens.size());
  std::vector<int32_t> positions(tokens.size());
  std::iota(positions.begin(), positions.end(), n_past);
  exo::ops::SequenceRows rows;
  rows.n_rows = n;
  rows.n_past = n_past;
  rows.pages = pages;
  // A prompt's attention runs over keys and values made from the latent, a generated token's over
  // the latent itself.
  rows.form = n_past == 0 ? exo::ops::AttentionForm::expanded : exo::ops::AttentionForm::absorbed;
  const int32_t last = n - 1;
  model::Batch batch;
  batch.tokens = tokens;
  batch.positions = positions;
  batch.sequences = {&rows, 1};
  batch.logit_rows = {&last, 1};
  EXO_ASSIGN_OR_RETURN(const model::Output output, model::forward(run, batch, context));
  const float* logits = output.logits.ptr<float>();
  return static_cast<int32_t>(std::max_element(logits, logits + output.logits.dim(1)) - logits);
}

Result<std::vector<int32_t>> generate(const std::string& folder, const std::string& cache,
                                      int64_t n_new, const std::vector<int32_t>& prompt) {
  exo::ThreadPool pool(exo::usable_cpus());
  const int64_t n_tokens = static_cast<int64_t>(prompt.size()) + n_new;
  EXO_ASSIGN_OR_RETURN(const model::Plan plan, make_plan(folder, n_tokens, pool.n_threads()));
  EXO_RETURN_IF_ERROR(convert(plan, folder, cache, pool));
  EXO_ASSIGN_OR_RETURN(const auto weights, model::load_weights(plan, cache));
  EXO_ASSIGN_OR_RETURN(const auto state, model::create_state(plan));

  const model::Run run{.plan = &plan, .weights = weights.get(), .state = state.get()};
  exo::ops::OpContext context;
  context.table = &exo::kernels::cpu::table(exo::kernels::cpu::supported_isas().back());
  context.pool = &pool;
  context.arena = &state->arena;
  // One sequence owns all pages, in order.
  std::vector<int32_t> pages(static_cast<size_t>(exo::ceil_div(n_tokens, exo::ops::kPageTokens)));
  std::iota(pages.begin(), pages.end(), 0);

  std::vector<int32_t> answer;
  std::vector<int32_t> tokens = prompt;
  int32_t n_past = 0;
  while (static_cast<int64_t>(answer.size()) < n_new) {
    EXO_ASSIGN_OR_RETURN(const int32_t token, next_token(run, tokens, n_past, pages, context));
    n_past += static_cast<int32_t>(tokens.size());
    tokens = {token};
    answer.push_back(token);
  }
  return answer;
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<int32_t> ids;
  for (int i = 3; i < argc; ++i) {
    const std::string_view text = argv[i];
    int32_t id = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), id);
    if (error != std::errc() || end != text.data() + text.size() || id < 0) {
      fmt::print(stderr, "model: '{}' is no token id\n", text);
      return 2;
    }
    ids.push_back(id);
  }
  if (ids.size() < 2) {
    fmt::print(stderr, "usage: model CHECKPOINT CACHE N ID...\n");
    return 2;
  }
  const Result<std::vector<int32_t>> answer =
      generate(argv[1], argv[2], ids.front(), {ids.begin() + 1, ids.end()});
  if (!answer.ok()) {
    fmt::print(stderr, "model: {}\n", answer.status().message());
    return 1;
  }
  fmt::print("{}\n", fmt::join(*answer, " "));
  return 0;
}
