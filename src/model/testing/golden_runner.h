/// Test support: a model of a golden checkpoint, converted once per process and format, with one
/// sequence's pages, run by whatever op table the test hands in. All pages are poisoned with NaN,
/// so that any read of an entry that was never written shows in the logits.
#pragma once

#include <fmt/core.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "model/convert.h"
#include "model/model.h"
#include "model/test_support.h"
#include "weights/checkpoint.h"

namespace exo::model::testing {

/// A golden case: its config, its recorded tensors, and caches per format.
class Golden {
 public:
  static const Golden& of(const std::string& name) {
    static std::map<std::string, std::unique_ptr<Golden>> cases;
    std::unique_ptr<Golden>& golden = cases[name];
    if (golden == nullptr) golden.reset(new Golden(name));
    return *golden;
  }

  const HfConfig& config() const { return config_; }
  bool has(const std::string& tensor) const { return recorded_.has(tensor); }
  const std::map<std::string, weights::TensorInfo>& tensors() const { return recorded_.tensors(); }
  std::vector<float> f32(const std::string& tensor) const {
    Result<std::vector<float>> values = recorded_.read_f32(tensor);
    EXPECT_TRUE(values.ok()) << values.status().message();
    return values.ok() ? *values : std::vector<float>();
  }
  std::vector<int32_t> i32(const std::string& tensor) const {
    const Result<weights::TensorInfo> info = recorded_.find(tensor);
    EXPECT_TRUE(info.ok()) << info.status().message();
    if (!info.ok()) return {};
    std::vector<int32_t> values(info->n_bytes / sizeof(int32_t));
    EXPECT_TRUE(recorded_.read_bytes(*info, 0, std::as_writable_bytes(std::span(values))).ok());
    return values;
  }
  /// "p0", "p1", ...
  std::vector<std::string> prompts() const {
    std::vector<std::string> names;
    for (int i = 0; has(fmt::format("p{}.input_ids", i)); ++i)
      names.push_back(fmt::format("p{}", i));
    return names;
  }

  /// The folder of a cache of all layers in `format`.
  const std::string& cache(const std::string& format) const {
    std::unique_ptr<TempDir>& folder = caches_[format];
    if (folder != nullptr) return folder->path();
    folder = std::make_unique<TempDir>();
    ThreadPool pool(2);
    const Result<FormatChoice> choice = parse_format(format, config_);
    const auto plan = make_plan(config_, *choice, whole_model(config_), {.max_context_tokens = 64});
    const auto checkpoint = weights::Checkpoint::open(golden_dir(name_));
    const Status status =
        convert_weights(*plan, *checkpoint, folder->path(), pool, /*on_progress=*/nullptr);
    EXPECT_TRUE(status.ok()) << status.message();
    return folder->path();
  }

 private:
  explicit Golden(const std::string& name)
      : name_(name), config_(read_config(golden_dir(name) + "/config.json")) {
    auto recorded = weights::Checkpoint::open_file(golden_dir(name) + "/goldens.safetensors");
    EXPECT_TRUE(recorded.ok()) << recorded.status().message();
    if (recorded.ok()) recorded_ = *std::move(recorded);
  }

  std::string name_;
  HfConfig config_;
  weights::Checkpoint recorded_;
  mutable std::map<std::string, std::unique_ptr<TempDir>> caches_;
};

struct Setup {
  const ops::OpTable* table = nullptr;
  int n_threads = 1;
  bool fp32 = true;
  std::string format;  ///< "": the checkpoint's
  std::optional<DType> cache = {};
  int64_t max_context_tokens = 256;
  int64_t max_batch_tokens = 256;
  bool shuffle_pages = false;
  int64_t layer_begin = 0;
  int64_t layer_end = 0;  ///< 0: all
};

/// One sequence of tokens of a forward.
struct Rows {
  std::span<const int32_t> tokens;
  int32_t n_past = 0;
  std::span<const int32_t> pages;
  ops::AttentionForm form = ops::AttentionForm::expanded;
};

/// One engine's worth: plan, weights, state, pool. The pages of "its" sequence are the first
/// ceil(max_context / 64) of twice as many (all of them shuffled if asked for).
class Runner {
 public:
  Runner(const Golden& golden, const Setup& setup) : setup_(setup), pool_(setup.n_threads) {
    const HfConfig& config = golden.config();
    Placement placement = whole_model(config);
    placement.layer_begin = setup.layer_begin;
    if (setup.layer_end > 0) placement.layer_end = setup.layer_end;
    Limits limits{.max_context_tokens = setup.max_context_tokens,
                  .max_batch_tokens = setup.max_batch_tokens,
                  .max_sequences = 2,
                  .max_logit_rows = setup.max_batch_tokens,
                  .n_threads = setup.n_threads,
                  .fp32_compute = setup.fp32,
                  .cache = setup.cache};
    auto made = make_plan(config, *parse_format(setup.format, config), placement, limits);
    EXPECT_TRUE(made.ok()) << made.status().message();
    plan_ = *std::move(made);
    auto loaded = load_weights(plan_, golden.cache(setup.format));
    EXPECT_TRUE(loaded.ok()) << loaded.status().message();
    weights_ = *std::move(loaded);
    auto created = create_state(plan_);
    EXPECT_TRUE(created.ok()) << created.status().message();
    state_ = *std::move(created);
    // 0xFFFF... is a NaN in f32, bf16 and f8_e4m3, and so are the scales of i8.
    std::memset(state_->page_memory.data(), 0xff,
                static_cast<size_t>(state_->page_memory.size_bytes()));
    pages_.resize(static_cast<size_t>(plan_.limits.n_pages));
    std::iota(pages_.begin(), pages_.end(), 0);
    if (setup.shuffle_pages) {
      std::mt19937 rng(3);
      std::shuffle(pages_.begin(), pages_.end(), rng);
    }
    ctx_ = {.table = setup.table, .pool = &pool_, .arena = &state_->arena};
  }

  const Plan& plan() const { return plan_; }
  const Weights& weights() const { return *weights_; }
  State& state() { return *state_; }
  ops::OpContext& ctx() { return ctx_; }
  /// Pages of sequence 0 or 1.
  std::span<const int32_t> pages(int sequence = 0) const {
    return std::span(pages_).subspan(static_cast<size_t>(sequence) * pages_.size() / 2,
                                     pages_.size() / 2);
  }

  /// One forward; logits of all its rows [n, vocab] (empty without the head). `hidden`: what the
  /// stage before gave out.
  std::vector<float> forward(std::span<const Rows> sequences,
                             const std::vector<float>* hidden = nullptr,
                             const ForcedExperts* forced = nullptr) {
    std::vector<int32_t> tokens, positions, wanted;
    std::vector<ops::SequenceRows> rows;
    for (const Rows& s : sequences) {
      const auto n = static_cast<int32_t>(s.tokens.size());
      rows.push_back({.row_begin = static_cast<int32_t>(tokens.size()),
                      .n_rows = n,
                      .n_past = s.n_past,
                      .pages = s.pages,
                      .form = s.form});
      for (int32_t i = 0; i < n; ++i) {
        wanted.push_back(static_cast<int32_t>(tokens.size()));
        tokens.push_back(s.tokens[static_cast<size_t>(i)]);
        positions.push_back(s.n_past + i);
      }
    }
    Batch batch{.tokens = tokens, .positions = positions, .sequences = rows};
    if (plan_.prefill.lm_head) batch.logit_rows = wanted;
    if (hidden != nullptr)
      batch.hidden = make_view(hidden->data(),
                               {static_cast<int64_t>(tokens.size()), plan_.config.hidden_size});
    const Run run{
        .plan = &plan_, .weights = weights_.get(), .state = state_.get(), .forced_experts = forced};
    const Result<Output> output = model::forward(run, batch, ctx_);
    EXPECT_TRUE(output.ok()) << output.status().message();
    if (!output.ok()) return {};
    last_hidden_ = copy(output->hidden);
    return output->logits.empty() ? std::vector<float>() : copy(output->logits);
  }

  /// A prompt from position 0 in chunks; logits of all its tokens.
  std::vector<float> prefill(std::span<const int32_t> tokens, int64_t chunk) {
    std::vector<float> logits;
    for (size_t begin = 0; begin < tokens.size(); begin += static_cast<size_t>(chunk)) {
      const Rows rows{.tokens = tokens.subspan(
                          begin, std::min(static_cast<size_t>(chunk), tokens.size() - begin)),
                      .n_past = static_cast<int32_t>(begin),
                      .pages = pages()};
      const std::vector<float> part = forward({&rows, 1});
      logits.insert(logits.end(), part.begin(), part.end());
    }
    return logits;
  }

  /// One generated token.
  std::vector<float> decode(int32_t token, int64_t n_past) {
    const Rows rows{.tokens = {&token, 1},
                    .n_past = static_cast<int32_t>(n_past),
                    .pages = pages(),
                    .form = ops::AttentionForm::absorbed};
    return forward({&rows, 1});
  }

  const std::vector<float>& last_hidden() const { return last_hidden_; }

  static std::vector<float> copy(const TensorView& view) {
    std::vector<float> out;
    copy_into(view, 0, view.data, out);
    return out;
  }

 private:
  // Any strides, as captures have them; i32 becomes f32.
  static void copy_into(const TensorView& v, int dim, const std::byte* at,
                        std::vector<float>& out) {
    for (int64_t i = 0; i < v.dim(dim); ++i) {
      const std::byte* here = at + i * v.stride(dim) * size_bytes(v.dtype);
      if (dim + 1 < v.rank) {
        copy_into(v, dim + 1, here, out);
      } else if (v.dtype == DType::i32) {
        int32_t value;
        std::memcpy(&value, here, sizeof(value));
        out.push_back(static_cast<float>(value));
      } else {
        float value;
        std::memcpy(&value, here, sizeof(value));
        out.push_back(value);
      }
    }
  }

  Setup setup_;
  ThreadPool pool_;
  Plan plan_;
  std::unique_ptr<Weights> weights_;
  std::unique_ptr<State> state_;
  std::vector<int32_t> pages_;
  ops::OpContext ctx_;
  std::vector<float> last_hidden_;
};

/// Keeps every tensor of a forward under its name.
class Recorder : public ops::Capture {
 public:
  bool wants(std::string_view) override { return true; }
  void on_tensor(std::string_view name, const TensorView& value) override {
    tensors[std::string(name)] = Runner::copy(value);
  }
  std::map<std::string, std::vector<float>> tensors;
};

}  // namespace exo::model::testing
