#include "engine/engine.h"

#include <fmt/core.h>

#include <algorithm>
#include <numeric>
#include <random>

#include "base/log.h"
#include "base/numa.h"
#include "engine/page_pool.h"

namespace exo::engine {
namespace {

struct Sequence {
  bool used = false;
  int64_t n_tokens = 0;
  std::vector<int32_t> pages;
};

int64_t pages_of(int64_t n_tokens) { return ceil_div(n_tokens, ops::kPageTokens); }

bool wants_probabilities(ops::Capture& capture, const model::Placement& placement) {
  for (int64_t layer = placement.layer_begin; layer < placement.layer_end; ++layer)
    if (capture.wants(fmt::format("layers.{}.self_attn.probs", layer))) return true;
  return false;
}

}  // namespace

struct Engine::Impl {
  Impl(EngineOptions o, std::unique_ptr<NumaTopology> nodes)
      : options(std::move(o)),
        numa(std::move(nodes)),
        nodes_of_threads(numa == nullptr ? std::vector<int>()
                                         : numa->nodes_of_threads(options.plan.limits.n_threads)),
        pool(options.plan.limits.n_threads, [this](int thread) { bind(thread); }) {
    bind(0);
    sequences.resize(static_cast<size_t>(options.plan.limits.max_sequences));
  }

  EngineOptions options;
  const std::unique_ptr<NumaTopology> numa;  ///< null on machines with one node
  const std::vector<int> nodes_of_threads;
  std::unique_ptr<model::Weights> weights;
  std::unique_ptr<model::State> state;
  ThreadPool pool;
  PagePool pages{0};
  std::vector<Sequence> sequences;
  ops::OpTable table;
  ops::OpTable table_with_probabilities;  ///< the reference attention, which alone gives them
  ops::OpContext context;
  // Scratch of one call, kept so that a decode allocates nothing after the first.
  std::vector<int32_t> tokens, positions, logit_rows;
  std::vector<ops::SequenceRows> rows;

  const model::Limits& limits() const { return options.plan.limits; }
  void bind(int thread) const {
    if (numa == nullptr) return;
    const Status status = numa->bind_thread(nodes_of_threads[static_cast<size_t>(thread)]);
    if (!status.ok()) log_warn("engine: thread {}: {}", thread, status.message());
  }
  // Every thread reads all of the cache and of the activations.
  void spread_state() const {
    if (numa == nullptr) return;
    for (const Buffer* buffer : {&state->page_memory, &state->arena_memory, &state->run_memory}) {
      const Status status =
          numa->interleave(buffer->data(), static_cast<uint64_t>(buffer->size_bytes()));
      if (!status.ok()) log_warn("engine: {}", status.message());
    }
  }
  Sequence* find(SequenceId id) {
    const bool known = id >= 0 && static_cast<size_t>(id) < sequences.size() &&
                       sequences[static_cast<size_t>(id)].used;
    return known ? &sequences[static_cast<size_t>(id)] : nullptr;
  }
  Status reserve(Sequence& sequence, int64_t n_new);
  void truncate(Sequence& sequence, int64_t n) {
    sequence.n_tokens = n;
    pages.give_back(sequence.pages, pages_of(n));
  }
  Status prefill_chunks(Sequence& sequence, std::span<const int32_t> prompt,
                        std::span<const int32_t> wanted, const OnLogits& on_logits);
  Result<model::Output> forward(ops::Capture* capture);
};

namespace {

// Null on a machine with one node, and where nothing can be found out.
std::unique_ptr<NumaTopology> several_nodes() {
  auto numa = NumaTopology::of_machine();
  if (!numa.ok()) {
    log_warn("engine: threads and memory stay where the system puts them: {}",
             numa.status().message());
    return nullptr;
  }
  if (numa->n_nodes() == 1) return nullptr;
  log_info("engine: {} NUMA nodes: each thread on one, pages on all", numa->n_nodes());
  return std::make_unique<NumaTopology>(*std::move(numa));
}

Status unknown_sequence(SequenceId id) {
  return not_found(fmt::format("engine: there is no sequence {}", id));
}

}  // namespace

Status Engine::Impl::reserve(Sequence& sequence, int64_t n_new) {
  const int64_t n = sequence.n_tokens + n_new;
  if (n > limits().max_context_tokens)
    return failed_precondition(
        fmt::format("the context is full: {} tokens and {} more exceed its {}; make it larger "
                    "(--context, at most {} for this model) or the text shorter",
                    sequence.n_tokens, n_new, limits().max_context_tokens,
                    options.plan.config.max_position_embeddings));
  const int64_t missing = pages_of(n) - static_cast<int64_t>(sequence.pages.size());
  if (missing > 0 && !pages.take(missing, sequence.pages))
    return failed_precondition(
        fmt::format("the cache is full: {} tokens more need {} pages of {}, {} of {} are free; end "
                    "another sequence or run with a larger cache",
                    n_new, missing, ops::kPageTokens, pages.n_free(), pages.n_pages()));
  return ok_status();
}

Result<model::Output> Engine::Impl::forward(ops::Capture* capture) {
  context.capture = capture;
  model::Batch batch;
  batch.tokens = tokens;
  batch.positions = positions;
  batch.sequences = rows;
  batch.logit_rows = logit_rows;
  const model::Run run{&options.plan, weights.get(), state.get(), nullptr};
  return model::forward(run, batch, context);
}

Status Engine::Impl::prefill_chunks(Sequence& sequence, std::span<const int32_t> prompt,
                                    std::span<const int32_t> wanted, const OnLogits& on_logits) {
  size_t next_wanted = 0;
  for (size_t begin = 0; begin < prompt.size();) {
    size_t end = std::min(prompt.size(), begin + static_cast<size_t>(limits().max_batch_tokens));
    size_t wanted_end = next_wanted;
    logit_rows.clear();
    while (wanted_end < wanted.size() && static_cast<size_t>(wanted[wanted_end]) < end) {
      if (static_cast<int64_t>(logit_rows.size()) == limits().max_logit_rows) {
        end = static_cast<size_t>(wanted[wanted_end]);
        break;
      }
      logit_rows.push_back(wanted[wanted_end++] - static_cast<int32_t>(begin));
    }
    tokens.assign(prompt.begin() + static_cast<ptrdiff_t>(begin),
                  prompt.begin() + static_cast<ptrdiff_t>(end));
    positions.resize(tokens.size());
    std::iota(positions.begin(), positions.end(), static_cast<int32_t>(sequence.n_tokens));
    const auto n_rows = static_cast<int32_t>(tokens.size());
    const auto n_past = static_cast<int32_t>(sequence.n_tokens);
    rows.assign(1, {0, n_rows, n_past, sequence.pages, ops::AttentionForm::expanded});
    EXO_ASSIGN_OR_RETURN(const model::Output output, forward(options.capture));
    if (wanted_end > next_wanted)
      EXO_RETURN_IF_ERROR(
          on_logits(wanted.subspan(next_wanted, wanted_end - next_wanted), output.logits));
    sequence.n_tokens += n_rows;
    next_wanted = wanted_end;
    begin = end;
  }
  return ok_status();
}

Engine::Engine(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Engine::~Engine() = default;

Result<std::unique_ptr<Engine>> Engine::create(EngineOptions options) {
  const model::Placement& placement = options.plan.placement;
  if (placement.layer_begin != 0 || placement.layer_end != options.plan.config.num_hidden_layers)
    return invalid_argument(fmt::format(
        "engine: expected a plan of all {} layers, got one of layers {} to {}: parts "
        "of a model are run by a ring",
        options.plan.config.num_hidden_layers, placement.layer_begin, placement.layer_end));
  EXO_ASSIGN_OR_RETURN(auto weights, model::load_weights(options.plan, options.cache_folder));
  if (options.stream_experts) weights->stream_experts();
  auto impl = std::make_unique<Impl>(std::move(options), several_nodes());
  if (impl->options.warm) {
    weights->cache.read_all(impl->pool);
  } else {
    weights->cache.map_resident(impl->pool);
  }
  EXO_ASSIGN_OR_RETURN(impl->state, model::create_state(impl->options.plan));
  impl->spread_state();
  const auto& layers = impl->state->pages;
  const int64_t n_pages = layers.empty() ? 0 : layers.front().n_pages;
  impl->pages = PagePool(n_pages);
  impl->weights = std::move(weights);
  impl->table = kernels::cpu::table(impl->options.isa);
  impl->table_with_probabilities = impl->table;
  impl->table_with_probabilities.mla_expanded = ops::reference_table().mla_expanded;
  impl->context.table = &impl->table;
  impl->context.pool = &impl->pool;
  impl->context.arena = &impl->state->arena;
  log_info("engine: {} on {} threads, {} pages of {} tokens",
           kernels::cpu::to_string(impl->options.isa), impl->pool.n_threads(), n_pages,
           ops::kPageTokens);
  return std::unique_ptr<Engine>(new Engine(std::move(impl)));
}

const model::Plan& Engine::plan() const { return impl_->options.plan; }

Result<SequenceId> Engine::add_sequence() {
  for (size_t i = 0; i < impl_->sequences.size(); ++i) {
    if (impl_->sequences[i].used) continue;
    impl_->sequences[i].used = true;
    return static_cast<SequenceId>(i);
  }
  return resource_exhausted(
      fmt::format("engine: all {} sequences of this plan are in use", impl_->sequences.size()));
}

void Engine::remove_sequence(SequenceId id) {
  if (Sequence* sequence = impl_->find(id)) {
    impl_->truncate(*sequence, 0);
    sequence->used = false;
  }
}

int64_t Engine::n_tokens(SequenceId id) const {
  const Sequence* sequence = impl_->find(id);
  return sequence == nullptr ? 0 : sequence->n_tokens;
}

Status Engine::truncate(SequenceId id, int64_t n) {
  Sequence* sequence = impl_->find(id);
  if (sequence == nullptr) return unknown_sequence(id);
  if (n < 0 || n > sequence->n_tokens)
    return invalid_argument(
        fmt::format("engine: truncate of sequence {} to {} tokens: expected 0 to {}", id, n,
                    sequence->n_tokens));
  impl_->truncate(*sequence, n);
  return ok_status();
}

Status Engine::prefill(SequenceId id, std::span<const int32_t> tokens,
                       std::span<const int32_t> wanted, const OnLogits& on_logits) {
  Sequence* sequence = impl_->find(id);
  if (sequence == nullptr) return unknown_sequence(id);
  for (size_t i = 0; i < wanted.size(); ++i)
    if (wanted[i] < (i == 0 ? 0 : wanted[i - 1] + 1) ||
        static_cast<size_t>(wanted[i]) >= tokens.size())
      return invalid_argument(
          fmt::format("engine: wanted positions: expected ascending ones of {} tokens, got {}",
                      tokens.size(), wanted[i]));
  const int64_t n_before = sequence->n_tokens;
  EXO_RETURN_IF_ERROR(impl_->reserve(*sequence, static_cast<int64_t>(tokens.size())));
  ops::Capture* capture = impl_->options.capture;
  if (capture != nullptr && wants_probabilities(*capture, impl_->options.plan.placement))
    impl_->context.table = &impl_->table_with_probabilities;
  Status status = impl_->prefill_chunks(*sequence, tokens, wanted, on_logits);
  impl_->context.table = &impl_->table;
  if (!status.ok()) impl_->truncate(*sequence, n_before);
  return status;
}

Status Engine::fill_with_noise(SequenceId id, int64_t n, uint64_t seed) {
  Sequence* sequence = impl_->find(id);
  if (sequence == nullptr) return unknown_sequence(id);
  const int64_t begin = sequence->n_tokens;
  EXO_RETURN_IF_ERROR(impl_->reserve(*sequence, n));
  const int64_t rank = impl_->options.plan.config.kv_lora_rank;
  const int64_t rope = impl_->options.plan.config.qk_rope_head_dim;
  std::mt19937_64 random(seed);
  std::vector<float> values(static_cast<size_t>(ops::kPageTokens * (rank + rope)));
  for (const ops::LatentPages& pages : impl_->state->pages) {
    for (int64_t t = begin; t < begin + n; t += ops::kPageTokens) {
      // Uniform in [-2, 2): a normed latent's size.
      for (float& v : values)
        v = static_cast<float>(static_cast<int64_t>(random()) >> 40) * 0x1p-22f;
      const int64_t n_rows = std::min(ops::kPageTokens, begin + n - t);
      const ops::SequenceRows rows{.n_rows = static_cast<int32_t>(n_rows),
                                   .n_past = static_cast<int32_t>(t),
                                   .pages = sequence->pages};
      EXO_RETURN_IF_ERROR(ops::store_latent(
          {.latent = make_view(values.data(), {n_rows, rank}),
           .k_rope = make_view(values.data() + ops::kPageTokens * rank, {n_rows, rope}),
           .sequences = {&rows, 1},
           .pages = pages},
          impl_->context));
    }
  }
  sequence->n_tokens += n;
  return ok_status();
}

void Engine::set_profile(ops::Profile* profile) { impl_->context.profile = profile; }

Result<TensorView> Engine::decode(std::span<const Step> steps, ops::Capture* capture) {
  Impl& m = *impl_;
  m.tokens.clear();
  m.positions.clear();
  m.rows.clear();
  m.logit_rows.clear();
  Status status = ok_status();
  size_t n_reserved = 0;
  for (const Step& step : steps) {
    Sequence* sequence = m.find(step.id);
    if (sequence == nullptr) {
      status = unknown_sequence(step.id);
    } else if (std::any_of(steps.begin(), steps.begin() + static_cast<ptrdiff_t>(n_reserved),
                           [&](const Step& other) { return other.id == step.id; })) {
      status = invalid_argument(fmt::format("engine: sequence {} twice in one decode", step.id));
    } else {
      status = m.reserve(*sequence, 1);
    }
    if (!status.ok()) break;
    const auto row = static_cast<int32_t>(n_reserved++);
    const auto n_past = static_cast<int32_t>(sequence->n_tokens);
    m.tokens.push_back(step.token);
    m.positions.push_back(n_past);
    m.logit_rows.push_back(row);
    m.rows.push_back({row, 1, n_past, sequence->pages, ops::AttentionForm::absorbed});
  }
  TensorView logits;
  if (status.ok()) {
    auto output = m.forward(capture);
    status = output.status();
    if (status.ok()) logits = output->logits;
  }
  for (size_t i = 0; i < n_reserved; ++i) {
    Sequence& sequence = *m.find(steps[i].id);
    m.truncate(sequence, sequence.n_tokens + (status.ok() ? 1 : 0));
  }
  if (!status.ok()) return status;
  return logits;
}

}  // namespace exo::engine
