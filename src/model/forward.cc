/// A token's way through the model: embedding, decoder layers, head. All arithmetic is behind ops.
#include <fmt/core.h>

#include <algorithm>

#include "model/model.h"
#include "model/modules/decoder_layer.h"
#include "model/modules/lm_head.h"

namespace exo::model {
namespace {

Status check_rows(const Plan& plan, const Batch& batch) {
  const auto n = static_cast<int64_t>(batch.tokens.size());
  if (n == 0) return invalid_argument("forward: the batch is empty");
  if (n > plan.limits.max_batch_tokens) {
    return resource_exhausted(fmt::format("forward: a batch of {} tokens exceeds the plan's {}", n,
                                          plan.limits.max_batch_tokens));
  }
  if (static_cast<int64_t>(batch.positions.size()) != n)
    return invalid_argument("forward: tokens and positions differ in number");
  if (static_cast<int64_t>(batch.logit_rows.size()) > plan.limits.max_logit_rows) {
    return resource_exhausted(fmt::format("forward: logits of {} rows exceed the plan's {}",
                                          batch.logit_rows.size(), plan.limits.max_logit_rows));
  }
  for (int32_t row : batch.logit_rows) {
    if (row < 0 || row >= n)
      return invalid_argument(fmt::format("forward: logit row {} of a batch of {}", row, n));
  }
  for (int32_t id : batch.tokens) {
    if (id < 0 || id >= plan.config.vocab_size) {
      return invalid_argument(fmt::format("token id {} is outside the vocabulary of {} entries", id,
                                          plan.config.vocab_size));
    }
  }
  const bool first = plan.placement.layer_begin == 0;
  if (!first && (batch.hidden.empty() || batch.hidden.dtype != DType::f32 ||
                 !batch.hidden.has_shape({n, plan.config.hidden_size}))) {
    return invalid_argument(fmt::format(
        "forward: hidden states of the stage before: expected f32 [{}, {}], got {}", n,
        plan.config.hidden_size, batch.hidden.empty() ? "none" : batch.hidden.describe()));
  }
  return ok_status();
}

Status check_sequence(const Plan& plan, const Batch& batch, const ops::SequenceRows& s) {
  const int64_t end = int64_t{s.n_past} + s.n_rows;  // tokens after this forward
  if (s.n_past < 0) return invalid_argument("forward: a sequence with a negative past");
  if (end > plan.limits.max_context_tokens) {
    return resource_exhausted(fmt::format("forward: a sequence of {} tokens exceeds the plan's {}",
                                          end, plan.limits.max_context_tokens));
  }
  if (std::ssize(s.pages) < ceil_div(end, ops::kPageTokens)) {
    return resource_exhausted(fmt::format("forward: a sequence of {} tokens has {} pages of {}",
                                          end, s.pages.size(), ops::kPageTokens));
  }
  for (int64_t p = 0; p < ceil_div(end, ops::kPageTokens); ++p) {
    const int32_t page = s.pages[static_cast<size_t>(p)];
    if (page < 0 || page >= plan.limits.n_pages)
      return invalid_argument(fmt::format("forward: page {} of {}", page, plan.limits.n_pages));
  }
  // The cache keeps rotated keys: a position is the entry's place.
  for (int32_t i = 0; i < s.n_rows; ++i) {
    const int32_t position =
        batch.positions[static_cast<size_t>(s.row_begin) + static_cast<size_t>(i)];
    if (position != s.n_past + i) {
      return invalid_argument(fmt::format("forward: row {} has position {}, expected {}",
                                          s.row_begin + i, position, s.n_past + i));
    }
  }
  return ok_status();
}

Status check_sequences(const Plan& plan, const Batch& batch) {
  const auto n = static_cast<int64_t>(batch.tokens.size());
  int64_t row = 0, n_absorbed = 0;
  for (const ops::SequenceRows& s : batch.sequences) {
    if (s.row_begin != row || s.n_rows <= 0 || s.n_rows > n - row)
      return invalid_argument("forward: the sequences don't cover the rows in order");
    EXO_RETURN_IF_ERROR(check_sequence(plan, batch, s));
    row += s.n_rows;
    if (s.form == ops::AttentionForm::absorbed) n_absorbed += s.n_rows;
  }
  if (row != n) return invalid_argument("forward: the sequences don't cover the rows in order");
  if (n_absorbed > plan.decode.max_tokens) {
    return resource_exhausted(fmt::format("forward: {} generated tokens exceed the plan's {}",
                                          n_absorbed, plan.decode.max_tokens));
  }
  return ok_status();
}

Status check_forced_experts(const Run& run) {
  if (run.forced_experts == nullptr) return ok_status();
  const size_t n_layers = run.plan->prefill.layers.size();
  if (run.forced_experts->ids.size() == n_layers && run.forced_experts->weights.size() == n_layers)
    return ok_status();
  return invalid_argument(fmt::format("forward: forced experts for {} layers, expected {}",
                                      run.forced_experts->ids.size(), n_layers));
}

// The residual stream's first value: embeddings, or what the stage before has sent.
Status enter(const Run& run, const Batch& batch, const TensorView& hidden, ops::OpContext& ctx) {
  if (run.plan->placement.layer_begin > 0) {
    for (int64_t i = 0; i < hidden.dim(0); ++i) {
      const float* row = batch.hidden.row<float>(i);
      std::copy(row, row + hidden.dim(1), hidden.row<float>(i));
    }
    return ok_status();
  }
  EXO_RETURN_IF_ERROR(ops::embedding({.table = run.weights->embedding,
                                      .ids = make_view(batch.tokens.data(), {hidden.dim(0)}),
                                      .out = hidden},
                                     ctx));
  Tap(ctx.capture, -1)("embed", hidden);
  return ok_status();
}

moe::Forced forced_of(const Run& run, size_t layer) {
  if (run.forced_experts == nullptr) return {};
  return {.ids = run.forced_experts->ids[layer], .weights = run.forced_experts->weights[layer]};
}

}  // namespace

Result<Output> forward(const Run& run, const Batch& batch, ops::OpContext& ctx) {
  const Plan& plan = *run.plan;
  EXO_RETURN_IF_ERROR(check_rows(plan, batch));
  EXO_RETURN_IF_ERROR(check_sequences(plan, batch));
  EXO_RETURN_IF_ERROR(check_forced_experts(run));
  const auto n = static_cast<int64_t>(batch.tokens.size());
  State& state = *run.state;
  const TensorView hidden = state.hidden.rows(0, n);
  const TensorView cos = state.cos.rows(0, n), sin = state.sin.rows(0, n);
  EXO_RETURN_IF_ERROR(
      ops::rope_table({.positions = make_view(batch.positions.data(), {n}),
                       .inv_freq = make_view(state.rope.inv_freq.data(),
                                             {static_cast<int64_t>(state.rope.inv_freq.size())}),
                       .scale = state.rope.cos_sin_scale,
                       .cos = cos,
                       .sin = sin},
                      ctx));
  EXO_RETURN_IF_ERROR(enter(run, batch, hidden, ctx));
  for (size_t i = 0; i < plan.prefill.layers.size(); ++i) {
    EXO_RETURN_IF_ERROR(decoder_layer::forward({.prefill = plan.prefill.layers[i],
                                                .decode = plan.decode.layers[i],
                                                .weights = run.weights->layers[i],
                                                .pages = state.pages[i],
                                                .sequences = batch.sequences,
                                                .cos = cos,
                                                .sin = sin,
                                                .forced = forced_of(run, i),
                                                .hidden = hidden},
                                               ctx));
  }
  Output output{.hidden = hidden};
  if (plan.prefill.lm_head) {
    output.logits = state.logits.rows(0, static_cast<int64_t>(batch.logit_rows.size()));
    EXO_RETURN_IF_ERROR(lm_head::forward(*plan.prefill.lm_head, run.weights->final_norm,
                                         run.weights->lm_head, hidden, batch.logit_rows,
                                         output.logits, ctx));
  }
  return output;
}

}  // namespace exo::model
