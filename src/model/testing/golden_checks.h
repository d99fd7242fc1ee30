/// Test support: what every op table must show on the golden checkpoints (goldens/README.md has the
/// bounds). One function a promise; tests of this room call them with the reference table, the
/// end-to-end tests with every instruction set of the machine.
#pragma once

#include <cmath>

#include "model/modules/mla.h"
#include "model/modules/mlp.h"
#include "model/testing/golden_runner.h"

namespace exo::model::testing {

inline constexpr double kLogitBound = 1e-3;
inline constexpr double kInnerBound = 5e-4;
inline constexpr double kNativeKlBound = 5e-3;
inline constexpr double kNativeModuleBound = 1e-2;

/// Largest |a - b|; infinite if one isn't a number or the sizes differ.
inline double max_difference(std::span<const float> a, std::span<const float> b) {
  if (a.size() != b.size() || a.empty()) return INFINITY;
  double largest = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double d = std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i]));
    if (!(d <= largest)) largest = std::isnan(d) ? INFINITY : d;
  }
  return largest;
}

/// ||a - b|| / ||b||.
inline double relative_l2(std::span<const float> a, std::span<const float> b) {
  if (a.size() != b.size() || a.empty()) return INFINITY;
  double difference = 0, size = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference += std::pow(static_cast<double>(a[i]) - b[i], 2);
    size += std::pow(static_cast<double>(b[i]), 2);
  }
  return std::isnan(difference) ? INFINITY : std::sqrt(difference / size);
}

/// Mean over rows of KL(softmax(reference) || softmax(logits)).
inline double mean_kl(std::span<const float> logits, std::span<const float> reference,
                      size_t vocab) {
  if (logits.size() != reference.size() || logits.empty()) return INFINITY;
  const auto log_sum = [vocab](std::span<const float> row) {
    const double top = *std::max_element(row.begin(), row.end());
    double sum = 0;
    for (size_t i = 0; i < vocab; ++i) sum += std::exp(row[i] - top);
    return top + std::log(sum);
  };
  double total = 0;
  for (size_t r = 0; r < logits.size(); r += vocab) {
    const auto q = logits.subspan(r, vocab), p = reference.subspan(r, vocab);
    const double log_p = log_sum(p), log_q = log_sum(q);
    for (size_t i = 0; i < vocab; ++i) {
      const double lp = p[i] - log_p;
      total += std::exp(lp) * (lp - (q[i] - log_q));
    }
  }
  const size_t n_rows = logits.size() / vocab;
  const double mean = total / static_cast<double>(n_rows);
  return std::isnan(mean) ? INFINITY : mean;
}

/// Rows `positions` of logits [n, vocab].
inline std::vector<float> rows_at(std::span<const float> logits, std::span<const int32_t> positions,
                                  size_t vocab) {
  std::vector<float> out;
  for (const int32_t p : positions) {
    const auto row = logits.subspan(static_cast<size_t>(p) * vocab, vocab);
    out.insert(out.end(), row.begin(), row.end());
  }
  return out;
}

/// Logits of every prompt in one piece and in chunks of 1, 3 and 7: within the bound of the
/// recorded ones, and, since f32 rows don't depend on their batch, the same bits in every chunking.
inline void check_prompts(const std::string& name, const ops::OpTable& table) {
  const Golden& golden = Golden::of(name);
  const auto vocab = static_cast<size_t>(golden.config().vocab_size);
  for (const std::string& prompt : golden.prompts()) {
    SCOPED_TRACE(prompt);
    const std::vector<int32_t> ids = golden.i32(prompt + ".input_ids");
    const std::vector<float> expected = golden.f32(prompt + ".logits");
    std::vector<float> whole;
    for (const int64_t chunk : {int64_t{256}, int64_t{1}, int64_t{3}, int64_t{7}}) {
      Runner runner(golden, {.table = &table, .shuffle_pages = chunk == 3});
      const std::vector<float> logits = runner.prefill(ids, chunk);
      EXPECT_LE(max_difference(logits, expected), kLogitBound) << "chunks of " << chunk;
      if (whole.empty()) whole = logits;
      EXPECT_EQ(logits, whole) << "chunks of " << chunk;
    }
    EXPECT_EQ(whole.size(), ids.size() * vocab);
  }
}

/// The long prompt, past original_max_position_embeddings where there is YaRN, at its recorded
/// positions.
inline void check_long_prompt(const std::string& name, const ops::OpTable& table, int n_threads,
                              std::span<const int64_t> chunks) {
  const Golden& golden = Golden::of(name);
  const std::vector<int32_t> ids = golden.i32("long.input_ids");
  const std::vector<int32_t> positions = golden.i32("long.positions");
  const std::vector<float> expected = golden.f32("long.logits");
  for (const int64_t chunk : chunks) {
    Runner runner(golden, {.table = &table,
                           .n_threads = n_threads,
                           .max_context_tokens = static_cast<int64_t>(ids.size()),
                           .max_batch_tokens = chunk,
                           .shuffle_pages = true});
    const std::vector<float> logits = runner.prefill(ids, chunk);
    EXPECT_LE(
        max_difference(rows_at(logits, positions, static_cast<size_t>(golden.config().vocab_size)),
                       expected),
        kLogitBound)
        << "chunks of " << chunk;
  }
}

/// Every recorded inner tensor of p0, and the chosen experts exactly.
inline void check_inner_tensors(const std::string& name, const ops::OpTable& table) {
  const Golden& golden = Golden::of(name);
  const std::vector<int32_t> ids = golden.i32("p0.input_ids");
  Runner runner(golden, {.table = &table});
  Recorder recorder;
  runner.ctx().capture = &recorder;
  runner.prefill(ids, 256);
  int n_compared = 0;
  for (const auto& [full_name, info] : golden.tensors()) {
    const std::string tensor = full_name.substr(std::min<size_t>(3, full_name.size()));
    if (!full_name.starts_with("p0.") || tensor == "input_ids" || tensor == "logits" ||
        tensor.starts_with("greedy.")) {
      continue;
    }
    ++n_compared;
    ASSERT_TRUE(recorder.tensors.contains(tensor)) << tensor << " was not captured";
    const std::vector<float>& found = recorder.tensors[tensor];
    if (tensor.ends_with("topk_idx")) {
      const std::vector<int32_t> expected = golden.i32(full_name);
      EXPECT_EQ(found, std::vector<float>(expected.begin(), expected.end())) << tensor;
    } else {
      EXPECT_LE(max_difference(found, golden.f32(full_name)), kInnerBound) << tensor;
    }
  }
  EXPECT_GT(n_compared, 40);
}

/// 32 greedy tokens after p0, in the absorbed form.
inline void check_greedy(const std::string& name, const ops::OpTable& table) {
  const Golden& golden = Golden::of(name);
  const auto vocab = static_cast<size_t>(golden.config().vocab_size);
  const std::vector<int32_t> prompt = golden.i32("p0.input_ids");
  const std::vector<int32_t> expected_ids = golden.i32("p0.greedy.ids");
  const std::vector<float> expected = golden.f32("p0.greedy.logits");
  Runner runner(golden, {.table = &table, .shuffle_pages = true});
  std::vector<float> logits = runner.prefill(prompt, 256);
  logits.erase(logits.begin(), logits.end() - static_cast<std::ptrdiff_t>(vocab));
  std::vector<int32_t> ids;
  for (size_t i = 0; i < expected_ids.size(); ++i) {
    EXPECT_LE(max_difference(logits, std::span(expected).subspan(i * vocab, vocab)), kLogitBound)
        << "token " << i;
    ids.push_back(
        static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin()));
    logits = runner.decode(ids.back(), static_cast<int64_t>(prompt.size() + i));
  }
  EXPECT_EQ(ids, expected_ids);
}

/// What a prompt and a few generated tokens give, as bits.
inline std::vector<float> prompt_and_decode(Runner& runner, std::span<const int32_t> prompt,
                                            int64_t chunk) {
  std::vector<float> logits = runner.prefill(prompt, chunk);
  for (int32_t i = 0; i < 4; ++i) {
    const std::vector<float> next = runner.decode(5 + i, static_cast<int64_t>(prompt.size()) + i);
    logits.insert(logits.end(), next.begin(), next.end());
  }
  return logits;
}

/// Design section 3: a batch gives the same bits in any pages, on any number of threads and in any
/// split of layers; with activations whose rows don't depend on each other (f32, and the integer
/// formats) also in any chunks.
inline void check_same_bits(const std::string& name, const ops::OpTable& table,
                            const std::string& format, bool fp32, std::optional<DType> cache = {}) {
  const int64_t other_chunk = fp32 || format.starts_with("int") ? 5 : 256;
  const Golden& golden = Golden::of(name);
  const std::vector<int32_t> prompt = golden.i32("p0.input_ids");
  const Setup setup{.table = &table, .fp32 = fp32, .format = format, .cache = cache};
  Runner plain(golden, setup);
  const std::vector<float> expected = prompt_and_decode(plain, prompt, 256);
  ASSERT_FALSE(expected.empty());
  for (const float v : expected) ASSERT_TRUE(std::isfinite(v));
  for (const int n_threads : {2, 5}) {
    Setup other = setup;
    other.n_threads = n_threads;
    Runner threads(golden, other);
    EXPECT_EQ(prompt_and_decode(threads, prompt, 256), expected) << n_threads << " threads";
  }
  {
    Setup other = setup;
    other.shuffle_pages = true;
    Runner shuffled(golden, other);
    EXPECT_EQ(prompt_and_decode(shuffled, prompt, other_chunk), expected)
        << "shuffled pages, chunks of " << other_chunk;
  }
  for (int64_t k = 1; k < golden.config().num_hidden_layers; ++k) {
    Setup first = setup, last = setup;
    first.layer_end = last.layer_begin = k;
    Runner a(golden, first), b(golden, last);
    std::vector<float> logits;
    const auto step = [&](std::span<const int32_t> tokens, int32_t n_past,
                          ops::AttentionForm form) {
      const Rows in_a{tokens, n_past, a.pages(), form}, in_b{tokens, n_past, b.pages(), form};
      a.forward({&in_a, 1});
      const std::vector<float> hidden = a.last_hidden();
      const std::vector<float> part = b.forward({&in_b, 1}, &hidden);
      logits.insert(logits.end(), part.begin(), part.end());
    };
    step(prompt, 0, ops::AttentionForm::expanded);
    for (int32_t i = 0; i < 4; ++i) {
      const int32_t token = 5 + i;
      step({&token, 1}, static_cast<int32_t>(prompt.size()) + i, ops::AttentionForm::absorbed);
    }
    EXPECT_EQ(logits, expected) << "layers [0, " << k << ") and [" << k << ", ...)";
  }
}

/// Two sequences in one batch, in all mixtures of forms, equal each alone.
inline void check_mixed_batch(const std::string& name, const ops::OpTable& table,
                              const std::string& format, bool fp32,
                              std::optional<DType> cache = {}) {
  const Golden& golden = Golden::of(name);
  const std::vector<int32_t> p0 = golden.i32("p0.input_ids"), p1 = golden.i32("p1.input_ids");
  const Setup setup{
      .table = &table, .fp32 = fp32, .format = format, .cache = cache, .shuffle_pages = true};
  constexpr auto kExpanded = ops::AttentionForm::expanded, kAbsorbed = ops::AttentionForm::absorbed;
  const int32_t n0 = static_cast<int32_t>(p0.size()), n1 = static_cast<int32_t>(p1.size());
  const std::vector<int32_t> generated = {9, 4, 11};

  Runner alone(golden, setup), together(golden, setup);
  const auto pages0 = alone.pages(0), pages1 = alone.pages(1);
  const auto one = [&](Rows rows) { return alone.forward({&rows, 1}); };
  const auto join = [](std::vector<float> a, const std::vector<float>& b) {
    a.insert(a.end(), b.begin(), b.end());
    return a;
  };
  // A prompt alone; then its first generated token beside another's prompt; then both generating,
  // one of them several tokens at once (as after a preemption).
  const Rows first{p0, 0, pages0, kExpanded};
  EXPECT_EQ(together.forward({&first, 1}), one(first));
  const Rows second[] = {{std::span(generated).first(1), n0, pages0, kAbsorbed},
                         {p1, 0, pages1, kExpanded}};
  const std::vector<float> a = one(second[0]), b = one(second[1]);
  EXPECT_EQ(together.forward(second), join(a, b));
  const Rows third[] = {{generated, n1, pages1, kAbsorbed},
                        {std::span(generated).last(1), n0 + 1, pages0, kAbsorbed}};
  const std::vector<float> c = one(third[0]), d = one(third[1]);
  EXPECT_EQ(together.forward(third), join(c, d));
}

/// The recorded choice of experts of p0, for every layer of the model.
struct RecordedExperts {
  explicit RecordedExperts(const Golden& golden) {
    const HfConfig& c = golden.config();
    const int64_t n = std::ssize(golden.i32("p0.input_ids"));
    ids.resize(static_cast<size_t>(c.num_hidden_layers));
    weights.resize(ids.size());
    for (size_t i = 0; i < ids.size(); ++i) {
      forced.ids.emplace_back();
      forced.weights.emplace_back();
      if (!c.is_moe_layer(static_cast<int64_t>(i))) continue;
      const std::string gate = fmt::format("p0.layers.{}.mlp.gate.", i);
      ids[i] = golden.i32(gate + "topk_idx");
      weights[i] = golden.f32(gate + "topk_weight");
      forced.ids.back() = make_view(ids[i].data(), {n, c.router.top_k});
      forced.weights.back() = make_view(weights[i].data(), {n, c.router.top_k});
    }
  }
  std::vector<std::vector<int32_t>> ids;
  std::vector<std::vector<float>> weights;
  ForcedExperts forced;
};

/// The fast path of the checkpoint's own format over the whole model, with the recorded experts: a
/// near-tie in the router would compare two different models.
inline void check_native_model(const std::string& name, const ops::OpTable& table) {
  const Golden& golden = Golden::of(name);
  const RecordedExperts experts(golden);
  const std::vector<int32_t> prompt = golden.i32("p0.input_ids");
  Runner runner(golden, {.table = &table, .fp32 = false});
  const Rows rows{.tokens = prompt, .pages = runner.pages()};
  const std::vector<float> logits = runner.forward({&rows, 1}, nullptr, &experts.forced);
  const double kl =
      mean_kl(logits, golden.f32("p0.logits"), static_cast<size_t>(golden.config().vocab_size));
  EXPECT_LE(kl, kNativeKlBound);
  ::testing::Test::RecordProperty("kl_" + name + "_" + table.name, std::to_string(kl));
}

/// An 8-bit cache under fp32 arithmetic, with the recorded experts as in check_native_model: what
/// the cache alone costs, as a mean KL divergence from the recorded logits.
inline void check_kv_cache(const std::string& name, const ops::OpTable& table, DType cache,
                           double bound) {
  const Golden& golden = Golden::of(name);
  const RecordedExperts experts(golden);
  const std::vector<int32_t> prompt = golden.i32("p0.input_ids");
  Runner runner(golden, {.table = &table, .cache = cache, .shuffle_pages = true});
  const Rows rows{.tokens = prompt, .pages = runner.pages()};
  const std::vector<float> logits = runner.forward({&rows, 1}, nullptr, &experts.forced);
  const double kl =
      mean_kl(logits, golden.f32("p0.logits"), static_cast<size_t>(golden.config().vocab_size));
  EXPECT_LE(kl, bound);
  EXPECT_GT(kl, 1e-9) << "the cache isn't in 8 bits";
  ::testing::Test::RecordProperty(std::string("kl_") + std::string(to_string(cache)),
                                  fmt::format("{:.2e}", kl));
}

/// FP8 weights rounded to bf16 after scaling (goldens/README.md gives the bounds).
inline void check_fp8_as_bf16(const ops::OpTable& table) {
  const Golden& golden = Golden::of("v3_fp8");
  Runner runner(golden, {.table = &table, .format = "bf16"});
  const std::vector<float> logits = runner.prefill(golden.i32("p0.input_ids"), 256);
  const std::vector<float> expected = golden.f32("p0.logits");
  EXPECT_LE(max_difference(logits, expected), 0.4);
  EXPECT_LE(mean_kl(logits, expected, static_cast<size_t>(golden.config().vocab_size)), 3e-3);
}

/// The fast path, sublayer by sublayer: each fed with the recorded input, each recorded tensor on
/// its way compared.
class NativeModules {
 public:
  NativeModules(const std::string& name, const ops::OpTable& table)
      : golden_(Golden::of(name)),
        experts_(golden_),
        runner_(golden_, {.table = &table, .fp32 = false}),
        ids_(golden_.i32("p0.input_ids")) {
    runner_.ctx().capture = &recorder_;
  }

  void check() {
    const auto n_layers = golden_.config().num_hidden_layers;
    for (int64_t layer = 0; layer < n_layers; ++layer) {
      const std::string prefix = fmt::format("p0.layers.{}.", layer);
      if (!golden_.has(prefix + "self_attn.q")) continue;
      attention(layer, prefix, ops::AttentionForm::expanded);
      attention(layer, prefix, ops::AttentionForm::absorbed);
      feed_forward(layer, prefix);
      ++n_checked_;
    }
    EXPECT_GE(n_checked_, 2);
  }

 private:
  std::string block_input(int64_t layer) const {
    return layer == 0 ? "p0.embed" : fmt::format("p0.layers.{}.out", layer - 1);
  }
  void compare(const std::string& tensor) const {
    const auto found = recorder_.tensors.find(tensor);
    if (!golden_.has("p0." + tensor)) return;
    ASSERT_NE(found, recorder_.tensors.end()) << tensor;
    EXPECT_LE(relative_l2(found->second, golden_.f32("p0." + tensor)), kNativeModuleBound)
        << tensor;
  }

  void attention(int64_t layer, const std::string& prefix, ops::AttentionForm form) {
    SCOPED_TRACE(form == ops::AttentionForm::expanded ? "expanded" : "absorbed");
    const auto i = static_cast<size_t>(layer);
    const auto n = static_cast<int64_t>(ids_.size());
    std::vector<int32_t> positions(ids_.size());
    std::iota(positions.begin(), positions.end(), 0);
    State& state = runner_.state();
    const TensorView cos = state.cos.rows(0, n), sin = state.sin.rows(0, n);
    ASSERT_TRUE(ops::rope_table({.positions = make_view(positions.data(), {n}),
                                 .inv_freq = make_view(state.rope.inv_freq.data(),
                                                       {std::ssize(state.rope.inv_freq)}),
                                 .scale = state.rope.cos_sin_scale,
                                 .cos = cos,
                                 .sin = sin},
                                runner_.ctx())
                    .ok());
    std::vector<float> hidden = golden_.f32(block_input(layer));
    const ops::SequenceRows sequence{
        .n_rows = static_cast<int32_t>(n), .pages = runner_.pages(), .form = form};
    recorder_.tensors.clear();
    const Tap tap(&recorder_, layer);
    const Status status =
        mla::forward({.prefill = runner_.plan().prefill.layers[i].attention,
                      .decode = runner_.plan().decode.layers[i].attention,
                      .weights = runner_.weights().layers[i].attention,
                      .pages = state.pages[i],
                      .sequences = {&sequence, 1},
                      .cos = cos,
                      .sin = sin,
                      .hidden = make_view(hidden.data(), {n, golden_.config().hidden_size})},
                     tap, runner_.ctx());
    ASSERT_TRUE(status.ok()) << status.message();
    for (const char* tensor :
         {"input_layernorm", "self_attn.q_a", "self_attn.q_a_norm", "self_attn.q",
          "self_attn.q_pe_rope.pairs", "self_attn.compressed_kv", "self_attn.latent",
          "self_attn.k_pe_rope.pairs", "self_attn.context", "self_attn.out", "attn_residual"}) {
      compare(prefix.substr(3) + tensor);
    }
  }

  void feed_forward(int64_t layer, const std::string& prefix) {
    const auto i = static_cast<size_t>(layer);
    const auto n = static_cast<int64_t>(ids_.size());
    const int64_t hidden_size = golden_.config().hidden_size;
    const std::vector<float> x = golden_.f32(prefix + "post_attention_layernorm");
    std::vector<float> out(x.size());
    const TensorView in = make_view(x.data(), {n, hidden_size});
    const TensorView result = make_view(out.data(), {n, hidden_size});
    const DecoderLayerConfig& config = runner_.plan().prefill.layers[i];
    recorder_.tensors.clear();
    if (config.mlp) {
      ASSERT_TRUE(
          mlp::forward(*config.mlp, runner_.weights().layers[i].mlp, in, result, runner_.ctx())
              .ok());
    } else {
      const Tap tap(&recorder_, layer);
      ASSERT_TRUE(
          moe::forward(*config.moe, runner_.weights().layers[i].moe, in,
                       {.ids = experts_.forced.ids[i], .weights = experts_.forced.weights[i]},
                       result, tap, runner_.ctx())
              .ok());
      for (const char* tensor : {"mlp.gate.logits", "mlp.routed_out", "mlp.shared_out"})
        compare(prefix.substr(3) + tensor);
      // Unforced: the gate is f32 in every mode, so the choice is the reference's exactly.
      ASSERT_TRUE(moe::forward(*config.moe, runner_.weights().layers[i].moe, in, {}, result, tap,
                               runner_.ctx())
                      .ok());
      const std::vector<int32_t> chosen = golden_.i32(prefix + "mlp.gate.topk_idx");
      EXPECT_EQ(recorder_.tensors.at(prefix.substr(3) + "mlp.gate.topk_idx"),
                std::vector<float>(chosen.begin(), chosen.end()));
    }
    EXPECT_LE(relative_l2(out, golden_.f32(prefix + "mlp.out")), kNativeModuleBound)
        << prefix << "mlp.out";
  }

  const Golden& golden_;
  RecordedExperts experts_;
  Runner runner_;
  Recorder recorder_;
  std::vector<int32_t> ids_;
  int n_checked_ = 0;
};

}  // namespace exo::model::testing
