#include "model/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <set>

#include "model/family.h"
#include "model/test_support.h"
#include "weights/checkpoint.h"

namespace exo::model {
namespace {

using ::testing::ElementsAre;
using testing::fact;
using testing::golden_dir;
using ::testing::HasSubstr;
using testing::read_config;
using testing::read_json;
using testing::shared_dir;

// deepseek-v3's config with some fields replaced (null removes one).
Result<HfConfig> v3_with(const std::string& changes) {
  Json json = read_json(shared_dir() + "/facts/configs/deepseek-v3.json");
  json.merge_patch(Json::parse(changes));
  return parse_config(json, "config.json");
}
std::string error_of(const std::string& changes) {
  const Result<HfConfig> config = v3_with(changes);
  return config.ok() ? "(accepted)" : config.status().message();
}

TEST(Config, EveryPublishedConfigParsesOrIsRefusedInASentence) {
  const std::set<std::string> parse = {"deepseek-v3",
                                       "deepseek-r1",
                                       "deepseek-r1-0528",
                                       "deepseek-v3.1",
                                       "deepseek-v2-lite",
                                       "deepseek-v2.transcribed",
                                       "kimi-k2-instruct",
                                       "deepseek-v2.5.transcribed",
                                       "kimi-k2-thinking.partial",  // what is missing has defaults
                                       "moonlight-16b-a3b-instruct.transcribed",
                                       "deepseek-v3-0324.nvidia-nvfp4"};
  int n_files = 0;
  for (const auto& file : std::filesystem::directory_iterator(shared_dir() + "/facts/configs")) {
    if (file.path().extension() != ".json") continue;
    ++n_files;
    const std::string name = file.path().stem();
    const Result<HfConfig> config = parse_config(read_json(file.path()), name);
    if (parse.contains(name)) {
      EXPECT_TRUE(config.ok()) << config.status().message();
      continue;
    }
    ASSERT_FALSE(config.ok()) << name;
    if (name.starts_with("inference_")) {
      EXPECT_THAT(config.status().message(), HasSubstr("'model_type' is missing")) << name;
    } else {
      EXPECT_EQ(config.status().code(), StatusCode::unimplemented) << config.status().message();
      EXPECT_THAT(config.status().message(), HasSubstr("is recognised but not run")) << name;
    }
  }
  EXPECT_EQ(n_files, 29);
}

TEST(Config, AnUnknownModelTypeListsTheKnownOnes) {
  EXPECT_THAT(error_of(R"({"model_type": "llama"})"),
              ::testing::AllOf(HasSubstr("unknown model_type 'llama'"), HasSubstr("deepseek_v2"),
                               HasSubstr("deepseek_v3"), HasSubstr("kimi_k2")));
  EXPECT_THAT(error_of(R"({"model_type": null})"), HasSubstr("'model_type' is missing"));
  EXPECT_FALSE(parse_config(Json::array(), "config.json").ok());
  EXPECT_FALSE(parse_config(Json(), "config.json").ok());
}

TEST(Config, FieldsOfV3) {
  const HfConfig c = fact("deepseek-v3");
  EXPECT_EQ(c.q_lora_rank, 1536);
  EXPECT_EQ(c.qk_head_dim(), 192);
  EXPECT_EQ(c.router.scoring, ops::RouterConfig::Scoring::sigmoid);
  EXPECT_EQ(c.router.selection, ops::RouterConfig::Selection::noaux_tc);
  EXPECT_EQ(c.router.n_experts, 256);
  EXPECT_EQ(c.router.top_k, 8);
  EXPECT_EQ(c.router.n_group, 8);
  EXPECT_EQ(c.router.topk_group, 4);
  EXPECT_TRUE(c.router.norm_topk_prob);
  EXPECT_EQ(c.router.routed_scaling_factor, 2.5f);
  EXPECT_EQ(c.fp8_block_rows, 128);
  EXPECT_EQ(c.fp8_block_cols, 128);
  EXPECT_EQ(c.bos_token_id, 0);
  EXPECT_THAT(c.eos_token_ids, ElementsAre(1));
  EXPECT_FALSE(c.is_moe_layer(2));
  EXPECT_TRUE(c.is_moe_layer(3));
  EXPECT_TRUE(c.is_moe_layer(61));
}

TEST(Config, FieldsOfV2AndItsLiteForm) {
  const HfConfig v2 = fact("deepseek-v2.transcribed"), lite = fact("deepseek-v2-lite");
  EXPECT_EQ(v2.router.selection, ops::RouterConfig::Selection::group_limited_greedy);
  EXPECT_EQ(v2.router.scoring, ops::RouterConfig::Scoring::softmax);
  EXPECT_EQ(v2.router.routed_scaling_factor, 16.0f);
  EXPECT_FALSE(v2.router.norm_topk_prob);
  EXPECT_EQ(lite.router.selection, ops::RouterConfig::Selection::greedy);
  EXPECT_EQ(lite.q_lora_rank, 0);
  EXPECT_EQ(lite.shared_intermediate_size(), 2816);
  EXPECT_EQ(lite.num_nextn_predict_layers, 0);
}

TEST(Config, ParametersAsPublished) {
  const HfConfig v3 = fact("deepseek-v3");
  EXPECT_EQ(v3.n_parameters(false), 671026419200);
  EXPECT_EQ(v3.n_parameters(true), 684489845504);
  EXPECT_EQ(fact("deepseek-v2.transcribed").n_parameters(false), 235741434880);
  EXPECT_EQ(fact("deepseek-v2-lite").n_parameters(false), 15706484224);
  EXPECT_EQ(fact("moonlight-16b-a3b-instruct.transcribed").n_parameters(false), 15960110208);
  EXPECT_EQ(fact("kimi-k2-instruct").n_parameters(true), 1026408232448);
  // "671B total, 37B activated" (arXiv 2412.19437), "16B, 2.4B activated" (V2-Lite's card).
  EXPECT_NEAR(static_cast<double>(v3.n_active_parameters()), 37e9, 1e9);
  EXPECT_NEAR(static_cast<double>(fact("deepseek-v2-lite").n_active_parameters()), 2.4e9, 0.1e9);
}

TEST(Config, MissingFieldsGetThePublishedDefaults) {
  const Result<HfConfig> c = v3_with(R"({"n_group": null, "topk_group": null, "topk_method": null,
      "scoring_func": null, "norm_topk_prob": null, "rope_theta": null, "rope_scaling": null,
      "rms_norm_eps": null, "tie_word_embeddings": null, "attention_bias": null, "hidden_act": null,
      "q_lora_rank": null, "num_nextn_predict_layers": null, "quantization_config": null,
      "max_position_embeddings": null, "bos_token_id": null, "eos_token_id": null,
      "moe_layer_freq": null})");
  ASSERT_TRUE(c.ok()) << c.status().message();
  EXPECT_EQ(c->router.n_group, 8);
  EXPECT_EQ(c->router.topk_group, 4);
  EXPECT_EQ(c->router.selection, ops::RouterConfig::Selection::noaux_tc);
  EXPECT_TRUE(c->router.norm_topk_prob);
  EXPECT_EQ(c->q_lora_rank, 1536);  // removed, which is not the same as null
  EXPECT_EQ(c->rope_theta, 10000);
  EXPECT_FALSE(c->yarn.has_value());
  EXPECT_EQ(c->num_nextn_predict_layers, 0);
  EXPECT_EQ(c->fp8_block_rows, 0);
  EXPECT_EQ(c->bos_token_id, -1);
  EXPECT_TRUE(c->eos_token_ids.empty());

  const Result<HfConfig> dense = v3_with(R"({"n_routed_experts": null})");
  ASSERT_TRUE(dense.ok()) << dense.status().message();
  EXPECT_FALSE(dense->is_moe_layer(60));
}

TEST(Config, WhatCannotRunIsRefusedByName) {
  EXPECT_THAT(error_of(R"({"attention_bias": true})"), HasSubstr("attention_bias"));
  EXPECT_THAT(error_of(R"({"hidden_act": "gelu"})"), HasSubstr("hidden_act 'gelu'"));
  EXPECT_THAT(error_of(R"({"scoring_func": "sqrtsoftplus"})"), HasSubstr("'sqrtsoftplus'"));
  EXPECT_THAT(error_of(R"({"topk_method": "best"})"), HasSubstr("topk_method 'best'"));
  EXPECT_THAT(error_of(R"({"rope_scaling": {"type": "linear"}})"), HasSubstr("type 'linear'"));
  EXPECT_THAT(error_of(R"({"rope_scaling": {"rope_type": "dynamic"}})"), HasSubstr("'dynamic'"));
  EXPECT_THAT(error_of(R"({"rope_interleave": false})"), HasSubstr("rope_interleave"));
  EXPECT_THAT(error_of(R"({"quantization_config": {"quant_method": "awq"}})"), HasSubstr("'awq'"));
  EXPECT_THAT(error_of(R"({"quantization_config": {"weight_block_size": null}})"),
              HasSubstr("no weight_block_size"));
  EXPECT_THAT(error_of(R"({"torch_dtype": "float8"})"), HasSubstr("torch_dtype 'float8'"));
}

TEST(Config, WhatCannotBeIsAnErrorWithTheFieldsName) {
  EXPECT_THAT(error_of(R"({"num_experts_per_tok": 257})"), HasSubstr("num_experts_per_tok"));
  EXPECT_THAT(error_of(R"({"num_experts_per_tok": 129})"), HasSubstr("hold only 128"));
  EXPECT_THAT(error_of(R"({"n_group": 7})"), HasSubstr("doesn't divide n_routed_experts"));
  EXPECT_THAT(error_of(R"({"topk_group": 9})"), HasSubstr("topk_group"));
  EXPECT_THAT(error_of(R"({"n_group": 256, "topk_group": 8})"), HasSubstr("two best experts"));
  EXPECT_THAT(error_of(R"({"qk_rope_head_dim": 63})"), HasSubstr("qk_rope_head_dim is 63"));
  EXPECT_THAT(error_of(R"({"num_key_value_heads": 1})"), HasSubstr("num_key_value_heads is 1"));
  EXPECT_THAT(error_of(R"({"hidden_size": 0})"), HasSubstr("hidden_size"));
  EXPECT_THAT(error_of(R"({"hidden_size": "7168"})"), HasSubstr("hidden_size"));
  EXPECT_THAT(error_of(R"({"hidden_size": null})"), HasSubstr("hidden_size"));
  EXPECT_THAT(error_of(R"({"num_attention_heads": 4096})"), HasSubstr("heads"));
  EXPECT_THAT(error_of(R"({"n_shared_experts": 64, "moe_intermediate_size": 131072})"),
              HasSubstr("shared experts"));
  EXPECT_THAT(error_of(R"({"rope_theta": 1})"), HasSubstr("rope_theta"));
  EXPECT_THAT(error_of(R"({"rope_scaling": {"factor": 0.5}})"), HasSubstr("factor"));
  EXPECT_THAT(error_of(R"({"rope_scaling": {"factor": null}})"), HasSubstr("factor"));
  EXPECT_THAT(error_of(R"({"rms_norm_eps": -1})"), HasSubstr("rms_norm_eps"));
  EXPECT_THAT(error_of(R"({"eos_token_id": 129280})"), HasSubstr("eos_token_id"));
  EXPECT_THAT(error_of(R"({"eos_token_id": [1, -1]})"), HasSubstr("eos_token_id"));
  EXPECT_THAT(error_of(R"({"quantization_config": {"weight_block_size": [128]}})"),
              HasSubstr("weight_block_size"));
  EXPECT_THAT(error_of(R"({"quantization_config": {"weight_block_size": [0, 128]}})"),
              HasSubstr("weight_block_size"));
}

TEST(Config, BothSpellingsOfRopeAndAListOfEndTokens) {
  const Result<HfConfig> a = v3_with(R"({"rope_scaling": {"type": null, "rope_type": "yarn"}})");
  ASSERT_TRUE(a.ok()) << a.status().message();
  EXPECT_EQ(a->yarn->factor, 40);
  // transformers 5 moved rope_theta and rope_scaling into one object.
  const Result<HfConfig> b = v3_with(R"({"rope_scaling": null, "rope_theta": null,
      "rope_parameters": {"rope_type": "yarn", "factor": 40, "rope_theta": 50000,
                          "original_max_position_embeddings": 4096, "mscale_all_dim": 1.0}})");
  ASSERT_TRUE(b.ok()) << b.status().message();
  EXPECT_EQ(b->rope_theta, 50000);
  EXPECT_EQ(b->yarn->mscale_all_dim, 1);
  const Result<HfConfig> c = v3_with(R"({"eos_token_id": [1, 7]})");
  ASSERT_TRUE(c.ok()) << c.status().message();
  EXPECT_THAT(c->eos_token_ids, ElementsAre(1, 7));
}

TEST(Config, JsonRoundTrip) {
  for (const char* name : {"deepseek-v3", "deepseek-v2-lite", "deepseek-v2.transcribed",
                           "kimi-k2-instruct", "moonlight-16b-a3b-instruct.transcribed"}) {
    const HfConfig c = fact(name);
    const OrderedJson json = config_to_json(c);
    const Result<HfConfig> back = parse_config(Json(json), name);
    ASSERT_TRUE(back.ok()) << back.status().message();
    EXPECT_EQ(config_to_json(*back), json) << name;
    EXPECT_EQ(back->n_parameters(true), c.n_parameters(true));
    EXPECT_EQ(back->router.routed_scaling_factor, c.router.routed_scaling_factor);
  }
}

TEST(Rope, EqualsTheGoldens) {
  for (const std::string& name : testing::golden_cases()) {
    SCOPED_TRACE(name);
    const Rope rope = make_rope(read_config(golden_dir(name) + "/config.json"));
    auto goldens = weights::Checkpoint::open_file(golden_dir(name) + "/goldens.safetensors");
    ASSERT_TRUE(goldens.ok()) << goldens.status().message();
    const auto expected = goldens->read_f32("rope.inv_freq");
    ASSERT_TRUE(expected.ok());
    EXPECT_EQ(rope.inv_freq, *expected);
    EXPECT_EQ(rope.cos_sin_scale, goldens->read_f32("rope.cos_sin_scale").operator*().front());
    EXPECT_EQ(rope.softmax_scale, goldens->read_f32("rope.softmax_scale").operator*().front());
  }
}

TEST(Rope, RealModels) {
  EXPECT_NEAR(make_rope(fact("deepseek-v3")).softmax_scale, 0.13523378, 1e-8);
  EXPECT_NEAR(make_rope(fact("deepseek-v2-lite")).softmax_scale, 0.11472139, 1e-8);
  EXPECT_NEAR(make_rope(fact("kimi-k2-instruct")).softmax_scale, 0.1308608, 1e-7);
  // V3 interpolates from pair 10 to pair 23: below, plain frequencies; from there on, a 40th.
  const Rope rope = make_rope(fact("deepseek-v3"));
  const auto plain = [](int i) { return std::pow(10000.0, -i / 32.0); };
  EXPECT_FLOAT_EQ(rope.inv_freq[10], static_cast<float>(plain(10)));
  EXPECT_LT(rope.inv_freq[11], 0.99 * plain(11));
  EXPECT_GT(rope.inv_freq[22], 1.01 * plain(22) / 40);
  EXPECT_FLOAT_EQ(rope.inv_freq[23], static_cast<float>(plain(23) / 40));
}

TEST(Rope, EqualCorrectionBoundsDoNotDivideByZero) {
  // K2 sets beta_fast = beta_slow; with theta and length chosen so that floor and ceil meet at 0.
  const Result<HfConfig> c = v3_with(R"({"rope_scaling": {"beta_fast": 1e6, "beta_slow": 1e6}})");
  ASSERT_TRUE(c.ok()) << c.status().message();
  for (const float f : make_rope(*c).inv_freq) EXPECT_TRUE(std::isfinite(f) && f > 0) << f;
}

TEST(Family, EveryLineOfTheTableIsReachable) {
  for (const KnownModel& known : known_models()) {
    const auto family = find_family(known.model_type, "config.json");
    EXPECT_EQ(family.ok(), known.family != nullptr) << known.model_type;
    if (family.ok()) continue;
    EXPECT_THAT(family.status().message(), HasSubstr(std::string(known.why_not)));
  }
}

}  // namespace
}  // namespace exo::model
