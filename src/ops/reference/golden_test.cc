// The scalar bodies against values recorded from the published implementation
// (../shared/goldens/README.md says what each tensor is).
#include <gtest/gtest.h>

#include <cstdlib>
#include <map>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/os.h"
#include "ops/testing/packed.h"

namespace exo::ops {
namespace {

// Just enough of the safetensors format for files that we trust: u64 header size, JSON, data.
class Tensors {
 public:
  explicit Tensors(const std::string& file) {
    const char* shared = std::getenv("EXO_SHARED");
    auto mapped = MappedFile::open((shared == nullptr ? "../shared" : std::string(shared)) +
                                   "/goldens/" + file);
    EXPECT_TRUE(mapped.ok()) << mapped.status().message();
    if (!mapped.ok()) return;
    file_ = *std::move(mapped);
    uint64_t n = 0;
    std::memcpy(&n, file_.data(), 8);
    header_ = Json::parse(reinterpret_cast<const char*>(file_.data()) + 8,
                          reinterpret_cast<const char*>(file_.data()) + 8 + n);
    data_ = file_.data() + 8 + n;
  }
  bool has(const std::string& name) const { return header_.contains(name); }
  std::vector<int64_t> shape(const std::string& name) const {
    return header_.at(name).at("shape").get<std::vector<int64_t>>();
  }
  template <typename T>
  std::vector<T> get(const std::string& name) const {
    const auto offsets = header_.at(name).at("data_offsets").get<std::vector<size_t>>();
    std::vector<T> v((offsets[1] - offsets[0]) / sizeof(T));
    std::memcpy(v.data(), data_ + offsets[0], v.size() * sizeof(T));
    return v;
  }

 private:
  MappedFile file_;
  Json header_;
  const std::byte* data_ = nullptr;
};

Json config_of(const std::string& folder) {
  const char* shared = std::getenv("EXO_SHARED");
  auto json = read_json_file((shared == nullptr ? "../shared" : std::string(shared)) + "/goldens/" +
                             folder + "/config.json");
  EXPECT_TRUE(json.ok()) << json.status().message();
  return json.ok() ? *json : Json::object();
}

RouterConfig router_of(const Json& c) {
  RouterConfig r;
  r.scoring = c.at("scoring_func") == "softmax" ? RouterConfig::Scoring::softmax
                                                : RouterConfig::Scoring::sigmoid;
  const auto method = c.at("topk_method").get<std::string>();
  r.selection = method == "greedy"                 ? RouterConfig::Selection::greedy
                : method == "group_limited_greedy" ? RouterConfig::Selection::group_limited_greedy
                                                   : RouterConfig::Selection::noaux_tc;
  r.n_experts = c.at("n_routed_experts");
  r.n_group = c.at("n_group");
  r.topk_group = c.at("topk_group");
  r.top_k = c.at("num_experts_per_tok");
  r.norm_topk_prob = c.at("norm_topk_prob");
  r.routed_scaling_factor = c.at("routed_scaling_factor");
  return r;
}

struct Case {
  const char* folder;
  std::vector<std::string> checkpoint;  // the files that have e_score_correction_bias
};

class Golden : public ::testing::TestWithParam<Case> {};

TEST_P(Golden, ChosenExpertsAndTheirWeights) {
  const std::string folder = GetParam().folder;
  const Tensors goldens(folder + "/goldens.safetensors");
  const RouterConfig config = router_of(config_of(folder));
  testing::TestContext t(reference_table());
  int n_layers = 0;
  for (int layer = 0; layer < 8; ++layer) {
    const std::string at = "p0.layers." + std::to_string(layer) + ".mlp.gate.";
    if (!goldens.has(at + "logits")) continue;
    ++n_layers;
    const auto logits = goldens.get<float>(at + "logits");
    const int64_t n_tokens = goldens.shape(at + "logits")[0];
    std::vector<float> bias;
    for (const std::string& file : GetParam().checkpoint) {
      const Tensors checkpoint(folder + "/" + file);
      const std::string name =
          "model.layers." + std::to_string(layer) + ".mlp.gate.e_score_correction_bias";
      if (checkpoint.has(name)) bias = checkpoint.get<float>(name);
    }
    EXPECT_EQ(bias.empty(), config.selection != RouterConfig::Selection::noaux_tc);
    std::vector<int32_t> ids(static_cast<size_t>(n_tokens * config.top_k));
    std::vector<float> weights(ids.size());
    SelectExpertsArgs args{.config = config,
                           .logits = make_view(logits.data(), {n_tokens, config.n_experts}),
                           .bias = {},
                           .ids = make_view(ids.data(), {n_tokens, config.top_k}),
                           .weights = make_view(weights.data(), {n_tokens, config.top_k})};
    if (!bias.empty()) args.bias = make_view(bias.data(), {config.n_experts});
    const Status s = select_experts(args, t.ctx);
    ASSERT_TRUE(s.ok()) << s.message();
    EXPECT_EQ(ids, goldens.get<int32_t>(at + "topk_idx"));
    const auto expected = goldens.get<float>(at + "topk_weight");
    for (size_t i = 0; i < weights.size(); ++i)
      EXPECT_NEAR(weights[i], expected[i], 1e-5f * config.routed_scaling_factor);
  }
  EXPECT_GE(n_layers, 2);
}

TEST_P(Golden, RotatedKeysAndQueries) {
  const std::string folder = GetParam().folder;
  const Tensors goldens(folder + "/goldens.safetensors");
  testing::TestContext t(reference_table());
  const auto inv_freq = goldens.get<float>("rope.inv_freq");
  const auto half = static_cast<int64_t>(inv_freq.size()), rope = 2 * half;
  const std::string at = "p0.layers.0.self_attn.";
  const int64_t n_rows = goldens.shape(at + "compressed_kv")[0];
  const int64_t width = goldens.shape(at + "compressed_kv")[1];
  const int64_t n_heads = goldens.shape(at + "q")[1], q_width = goldens.shape(at + "q")[2];
  std::vector<int32_t> positions(static_cast<size_t>(n_rows));
  for (size_t i = 0; i < positions.size(); ++i) positions[i] = static_cast<int32_t>(i);
  std::vector<float> cos(static_cast<size_t>(n_rows * half)), sin(cos.size());
  const TensorView cos_view = make_view(cos.data(), {n_rows, half});
  const TensorView sin_view = make_view(sin.data(), {n_rows, half});
  ASSERT_TRUE(rope_table({.positions = make_view(positions.data(), {n_rows}),
                          .inv_freq = make_view(inv_freq.data(), {half}),
                          .scale = goldens.get<float>("rope.cos_sin_scale")[0],
                          .cos = cos_view,
                          .sin = sin_view},
                         t.ctx)
                  .ok());
  auto kv = goldens.get<float>(at + "compressed_kv");
  TensorView k = make_view(kv.data() + width - rope, {n_rows, 1, rope});
  k.strides[0] = width;
  ASSERT_TRUE(ops::rope({.x = k, .cos = cos_view, .sin = sin_view}, t.ctx).ok());
  const auto k_expected = goldens.get<float>(at + "k_pe_rope.pairs");
  for (int64_t i = 0; i < n_rows * rope; ++i)
    EXPECT_NEAR(k.row<float>(i / rope)[i % rope], k_expected[static_cast<size_t>(i)], 2e-5);
  auto q = goldens.get<float>(at + "q");
  const TensorView q_rope =
      make_view(q.data(), {n_rows, n_heads, q_width}).columns(q_width - rope, rope);
  ASSERT_TRUE(ops::rope({.x = q_rope, .cos = cos_view, .sin = sin_view}, t.ctx).ok());
  const auto q_expected = goldens.get<float>(at + "q_pe_rope.pairs");
  for (int64_t i = 0; i < n_rows * n_heads * rope; ++i) {
    const float* head = q_rope.row<float>(i / rope / n_heads) + i / rope % n_heads * q_width;
    EXPECT_NEAR(head[i % rope], q_expected[static_cast<size_t>(i)], 2e-5);
  }
}

TEST_P(Golden, ResidualSums) {
  const Tensors goldens(std::string(GetParam().folder) + "/goldens.safetensors");
  const std::string at = "p0.layers.0.";
  const auto x = goldens.get<float>(at + "attn_residual");
  const int64_t n_rows = goldens.shape(at + "attn_residual")[0];
  const int64_t n = goldens.shape(at + "attn_residual")[1];
  auto y = goldens.get<float>(at + "mlp.out");
  testing::TestContext t(reference_table());
  ASSERT_TRUE(
      add({.x = make_view(x.data(), {n_rows, n}), .y = make_view(y.data(), {n_rows, n})}, t.ctx)
          .ok());
  const auto expected = goldens.get<float>(at + "out");
  for (size_t i = 0; i < y.size(); ++i) EXPECT_NEAR(y[i], expected[i], 1e-5);
}

INSTANTIATE_TEST_SUITE_P(
    Checkpoints, Golden,
    ::testing::Values(
        Case{"v3_bf16",
             {"model-00001-of-000003.safetensors", "model-00002-of-000003.safetensors",
              "model-00003-of-000003.safetensors"}},
        Case{"v3_fp8", {"model-00001-of-000002.safetensors", "model-00002-of-000002.safetensors"}},
        Case{"moonlight", {"model.safetensors"}}, Case{"v2_lite", {}}, Case{"v2_grouped", {}}),
    [](const auto& p) { return std::string(p.param.folder); });

}  // namespace
}  // namespace exo::ops
