#include "model/plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <limits>
#include <map>
#include <set>

#include "model/convert.h"
#include "model/recipe.h"
#include "model/state.h"
#include "model/test_support.h"

namespace exo::model {
namespace {

using testing::fact;
using testing::golden_dir;
using ::testing::HasSubstr;
using testing::read_config;

Result<Plan> plan_of(const HfConfig& config, const std::string& format = "",
                     const Limits& limits = {.max_context_tokens = 256}) {
  EXO_ASSIGN_OR_RETURN(const FormatChoice choice, parse_format(format, config));
  return make_plan(config, choice, whole_model(config), limits);
}
Plan good_plan(const HfConfig& config, const std::string& format = "",
               const Limits& limits = {.max_context_tokens = 256}) {
  Result<Plan> plan = plan_of(config, format, limits);
  EXPECT_TRUE(plan.ok()) << plan.status().message();
  return plan.ok() ? *std::move(plan) : Plan();
}

TEST(Format, TextAndBack) {
  const HfConfig v3 = fact("deepseek-v3"), lite = fact("deepseek-v2-lite");
  const auto canonical = [](const std::string& text, const HfConfig& config) {
    const Result<FormatChoice> choice = parse_format(text, config);
    return choice.ok() ? choice->to_string() : choice.status().message();
  };
  EXPECT_EQ(canonical("", v3), "fp8");
  EXPECT_EQ(canonical("", lite), "bf16");
  EXPECT_EQ(canonical("int4", v3), "int4");
  EXPECT_EQ(canonical("int4,attention=int8,lm_head=bf16", v3), "int4,attention=int8,lm_head=bf16");
  EXPECT_EQ(canonical("attention=int8,experts=int4", lite), "bf16,attention=int8,experts=int4");
  EXPECT_EQ(canonical("fp8,lm_head=int8", v3), "fp8,lm_head=int8");
  for (const char* text : {"fp8", "bf16", "int4,attention=int8", "fp8,lm_head=int8,dense=bf16",
                           "int8,lm_head=bf16", "f32"}) {
    EXPECT_EQ(canonical(canonical(text, v3), v3), canonical(text, v3)) << text;
  }
  EXPECT_THAT(canonical("fp8", lite), HasSubstr("this checkpoint has none"));
  EXPECT_THAT(canonical("int3", v3), HasSubstr("'int3' is unknown"));
  EXPECT_THAT(canonical("head=int8", v3), HasSubstr("before '='"));
  EXPECT_THAT(canonical("embedding=int8", v3), HasSubstr("embedding is always bf16"));
  EXPECT_THAT(canonical("lm_head=fp8", v3), HasSubstr("the head in bf16"));
  EXPECT_THAT(canonical("int4,int8", v3), HasSubstr("only the first part"));
  EXPECT_EQ(canonical("int4,", v3), "int4");
}

TEST(Plan, RealV3FromItsConfigAloneAtOnce) {
  const HfConfig v3 = fact("deepseek-v3");
  const auto begin = std::chrono::steady_clock::now();
  const Plan plan = good_plan(v3, "", {.max_context_tokens = 163840, .n_threads = 2});
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  EXPECT_LT(seconds.count(), 5);  // milliseconds, but under a sanitizer and a busy machine
  EXPECT_EQ(plan.prefill.layers.size(), 61u);
  EXPECT_EQ(plan.prefill.mtp.size(), 1u);
  // One byte a parameter, two for embedding, head and gates, W_UK twice, fp32 scales: 671 GB + 1%.
  EXPECT_GT(plan.weight_bytes, 671'026'419'200);
  EXPECT_LT(plan.weight_bytes, 675'000'000'000);
  EXPECT_GT(plan.mtp_weight_bytes, 11'000'000'000);
  EXPECT_LT(plan.mtp_weight_bytes, 12'000'000'000);
  EXPECT_EQ(plan.cache.front().bytes_per_entry, 576 * 2);
  EXPECT_EQ(plan.kv_bytes_per_token, 61 * 576 * 2);
  EXPECT_EQ(plan.kv_bytes, plan.kv_bytes_per_token * 163840);
  EXPECT_LT(plan.scratch_bytes, int64_t{2} << 30);
  EXPECT_EQ(cache_bytes(plan), static_cast<uint64_t>(plan.weight_bytes + plan.mtp_weight_bytes));
}

TEST(Plan, TheCacheInEightBits) {
  const HfConfig v3 = fact("deepseek-v3");
  for (const char* name : {"int8", "fp8"}) {
    const Result<std::optional<DType>> cache = parse_kv_cache(name);
    ASSERT_TRUE(cache.ok());
    const Plan plan = good_plan(v3, "", {.max_context_tokens = 4096, .cache = *cache});
    // 512 codes, 64 rotated values in bf16, 4 scales.
    EXPECT_EQ(plan.cache.front().bytes_per_entry, 512 + 128 + 16);
    EXPECT_EQ(plan.kv_bytes_per_token, 61 * 656);
    EXPECT_EQ(plan.kv_bytes, plan.kv_bytes_per_token * 4096);
    EXPECT_EQ(plan.prefill.layers[7].attention.cache, **cache);
    const Result<Plan> back = plan_from_json(Json(plan_to_json(plan)), "plan");
    ASSERT_TRUE(back.ok()) << back.status().message();
    EXPECT_EQ(back->limits.cache, *cache);
  }
  EXPECT_THAT(parse_kv_cache("int3").status().message(), HasSubstr("bf16, int8, fp8 or fp32"));
  // A precise cache under native compute, a coarse one under fp32.
  EXPECT_EQ(good_plan(v3, "", {.cache = DType::f32}).kv_bytes_per_token, 61 * 576 * 4);
  EXPECT_EQ(good_plan(v3, "", {.fp32_compute = true, .cache = DType::i8}).kv_bytes_per_token,
            61 * 656);
}

TEST(Plan, PhasesDifferInFormAndW_UK) {
  const Plan plan = good_plan(fact("deepseek-v3"));
  const MlaConfig& prefill = plan.prefill.layers[5].attention;
  const MlaConfig& decode = plan.decode.layers[5].attention;
  EXPECT_EQ(prefill.form, ops::AttentionForm::expanded);
  EXPECT_EQ(decode.form, ops::AttentionForm::absorbed);
  EXPECT_EQ(prefill.w_k.n_out, 128);
  EXPECT_EQ(prefill.w_k.n_in, 512);
  EXPECT_EQ(decode.w_k.n_out, 512);
  EXPECT_EQ(decode.w_k.n_in, 128);
  EXPECT_EQ(prefill.w_k.count, 128);
  EXPECT_NE(prefill.w_k.path, decode.w_k.path);
  EXPECT_EQ(prefill.w_v.path, decode.w_v.path);
  EXPECT_EQ(prefill.w_k.weight, WeightFormat::fp8);
  EXPECT_EQ(decode.w_k.k_block, 128);
  EXPECT_FALSE(plan.prefill.layers[2].moe.has_value());
  EXPECT_FALSE(plan.prefill.layers[3].mlp.has_value());
  EXPECT_EQ(plan.prefill.layers[3].moe->gate.activation, DType::f32);
  EXPECT_EQ(plan.prefill.lm_head->linear.weight, WeightFormat::bf16);
  EXPECT_EQ(plan.prefill.mtp[0].eh_proj.weight, WeightFormat::bf16);
}

TEST(Plan, LiteInBf16AndTheIntegerFormats) {
  const HfConfig lite = fact("deepseek-v2-lite");
  const Plan plan = good_plan(lite);
  // Two bytes a parameter, W_UK twice (27 * 16 * 128 * 512 * 2 B), norms in fp32.
  const int64_t expected = 15706484224 * 2 + 27LL * 16 * 128 * 512 * 2;
  EXPECT_NEAR(static_cast<double>(plan.weight_bytes), static_cast<double>(expected), 4e6);
  EXPECT_EQ(plan.prefill.layers[0].attention.q_b.activation, DType::bf16);
  const Plan int4 = good_plan(lite, "int4");
  EXPECT_EQ(int4.prefill.layers[0].attention.q_b.activation, DType::i8);
  EXPECT_EQ(int4.prefill.layers[0].attention.q_b.accumulate, DType::i32);
  // 4.25 bits a weight, the embedding in bf16.
  EXPECT_LT(int4.weight_bytes, plan.weight_bytes * 30 / 100);
  const Plan fp32 = good_plan(lite, "", {.fp32_compute = true});
  EXPECT_EQ(fp32.prefill.layers[0].attention.q_b.activation, DType::f32);
  EXPECT_EQ(fp32.cache.front().dtype, DType::f32);
  EXPECT_EQ(fp32.weight_bytes, plan.weight_bytes);
}

TEST(Plan, Fp8ScalesThatDoNotFitMakeTheEntryF32) {
  HfConfig config = read_config(golden_dir("v3_fp8") + "/config.json");
  // Blocks of 24 rows cut the heads' 16-row panels.
  config.fp8_block_rows = 24;
  const Plan plan = good_plan(config);
  const MlaConfig& mla = plan.prefill.layers[0].attention;
  EXPECT_EQ(mla.w_k.weight, WeightFormat::f32);
  EXPECT_EQ(mla.w_k.activation, DType::f32);
  EXPECT_EQ(mla.w_v.activation, DType::f32);
  EXPECT_EQ(mla.q_b.weight, WeightFormat::f32);
  // eh_proj, head: an FP8 checkpoint's bf16 tensors stay bf16.
  EXPECT_EQ(plan.prefill.lm_head->linear.weight, WeightFormat::bf16);
}

TEST(Plan, TheLatentsNormsIgnoreRmsNormEps) {
  // 1e-4 in moonlight's logits: too little for the goldens' bound.
  const HfConfig config = read_config(golden_dir("moonlight") + "/config.json");
  const Plan plan = good_plan(config);
  EXPECT_EQ(plan.prefill.layers[0].attention.input_norm.eps, 1e-5f);
  EXPECT_EQ(plan.prefill.layers[0].attention.kv_a_norm.eps, 1e-6f);
  HfConfig lora = config;
  lora.q_lora_rank = 96;
  EXPECT_EQ(good_plan(lora).decode.layers[0].attention.q_a_norm->eps, 1e-6f);
}

TEST(Plan, WhatItCannotBe) {
  const HfConfig lite = fact("deepseek-v2-lite");
  const auto error = [&](const Placement& placement, const Limits& limits) {
    const auto plan = make_plan(lite, *parse_format("", lite), placement, limits);
    return plan.ok() ? "(accepted)" : plan.status().message();
  };
  Placement p = whole_model(lite);
  EXPECT_THAT(error(p, {.max_context_tokens = 163841}), HasSubstr("max_context_tokens is 163841"));
  EXPECT_THAT(error(p, {.max_batch_tokens = 0}), HasSubstr("max_batch_tokens"));
  EXPECT_THAT(error(p, {.max_logit_rows = 513}), HasSubstr("max_logit_rows"));
  EXPECT_THAT(error(p, {.n_threads = 0}), HasSubstr("n_threads"));
  p.layer_end = 28;
  EXPECT_THAT(error(p, {}), HasSubstr("layers [0, 28) of a model that has 27"));
  p = whole_model(lite);
  p.tensor_size = 2;
  EXPECT_THAT(error(p, {}), HasSubstr("split tensors"));
  p = whole_model(lite);
  p.device[0].kind = DeviceKind::cuda;
  EXPECT_THAT(error(p, {}), HasSubstr("on the CPU"));
}

TEST(Plan, StagesShareTheModelsWeights) {
  const HfConfig config = read_config(golden_dir("v3_mtp") + "/config.json");
  const Plan whole = good_plan(config);
  for (int64_t k = 1; k < config.num_hidden_layers; ++k) {
    Placement first = whole_model(config), last = whole_model(config);
    first.layer_end = last.layer_begin = k;
    const FormatChoice format = *parse_format("", config);
    const Limits limits{.max_context_tokens = 256};
    const auto a = make_plan(config, format, first, limits),
               b = make_plan(config, format, last, limits);
    ASSERT_TRUE(a.ok() && b.ok());
    EXPECT_EQ(a->weight_bytes + b->weight_bytes, whole.weight_bytes);
    EXPECT_EQ(a->kv_bytes + b->kv_bytes, whole.kv_bytes);
    EXPECT_TRUE(a->prefill.embedding.has_value() && !b->prefill.embedding.has_value());
    EXPECT_TRUE(!a->prefill.lm_head.has_value() && b->prefill.lm_head.has_value());
    // MTP lives with the head and reads embeddings, which the last stage must bring itself.
    EXPECT_TRUE(a->prefill.mtp.empty());
    ASSERT_EQ(b->prefill.mtp.size(), 1u);
    EXPECT_TRUE(b->prefill.mtp[0].embedding.has_value());
    EXPECT_EQ(b->mtp_weight_bytes,
              whole.mtp_weight_bytes + config.vocab_size * config.hidden_size * 2);
  }
}

TEST(Plan, JsonRoundTripAndTampering) {
  for (const char* name : {"deepseek-v3", "deepseek-v2-lite"}) {
    const Plan plan = good_plan(fact(name), name == std::string("deepseek-v3") ? "" : "int4",
                                {.max_context_tokens = 8192, .max_batch_tokens = 64});
    const OrderedJson json = plan_to_json(plan);
    for (const char* field :
         {"parameters", "parameters_with_mtp", "weight_bytes", "kv_bytes_per_token", "stages"}) {
      EXPECT_TRUE(json.contains(field)) << field;
    }
    // Through text, as a file would bring it.
    const Result<Json> text = parse_json(json.dump(1), "plan.json");
    ASSERT_TRUE(text.ok());
    const Result<Plan> back = plan_from_json(*text, "plan.json");
    ASSERT_TRUE(back.ok()) << back.status().message();
    EXPECT_EQ(plan_to_json(*back), json);

    const auto tampered = [&](const std::string& pointer, const Json& value) {
      Json changed = *text;
      changed[Json::json_pointer(pointer)] = value;
      const Result<Plan> plan_back = plan_from_json(changed, "plan.json");
      return plan_back.ok() ? "(accepted)" : plan_back.status().message();
    };
    EXPECT_THAT(tampered("/stages/0/prefill/layers/4/attention/o/n_in", 5),
                HasSubstr("stages[0].prefill.layers[4].attention.o.n_in: expected "));
    EXPECT_THAT(tampered("/weight_bytes", 5), HasSubstr("weight_bytes: expected "));
    EXPECT_THAT(tampered("/stages/0/decode/colour", "red"), HasSubstr("colour: unknown field"));
    EXPECT_THAT(tampered("/config/hidden_size", -1), HasSubstr("hidden_size"));
    EXPECT_THAT(tampered("/format", 7), HasSubstr("format"));
    EXPECT_THAT(tampered("/limits", nullptr), HasSubstr("limits"));
    EXPECT_THAT(tampered("/stages", Json::array()), HasSubstr("stages: expected"));
  }
}

// Whatever a field is replaced with: an error, or a config that plans and comes back from JSON.
TEST(Plan, AnyFieldOfConfigJsonMayBeAnything) {
  const Json base = testing::read_json(golden_dir("v3_mtp") + "/config.json");
  const std::vector<Json> values = {nullptr,
                                    -1,
                                    0,
                                    1,
                                    3,
                                    7,
                                    1e300,
                                    0.5,
                                    true,
                                    "x",
                                    Json::array(),
                                    Json::array({1, "x"}),
                                    Json::object(),
                                    Json::object({{"type", "yarn"}}),
                                    std::numeric_limits<uint64_t>::max(),
                                    std::numeric_limits<int64_t>::min()};
  int n_accepted = 0, n_refused = 0;
  const auto check = [&](const Json& json) {
    const Result<HfConfig> config = parse_config(json, "config.json");
    if (!config.ok()) {
      ++n_refused;
      EXPECT_THAT(config.status().message(), HasSubstr("config.json"));
      return;
    }
    ++n_accepted;
    const Result<Plan> plan = plan_of(*config, "", {.max_context_tokens = 1});
    ASSERT_TRUE(plan.ok()) << plan.status().message();
    EXPECT_GT(plan->weight_bytes, 0);
    const Result<Plan> back = plan_from_json(Json(plan_to_json(*plan)), "plan.json");
    EXPECT_TRUE(back.ok()) << back.status().message();
  };
  for (const auto& [key, value] : base.items()) {
    for (const Json& other : values) {
      SCOPED_TRACE(key + " = " + other.dump());
      Json json = base;
      json[key] = other;
      check(json);
    }
    Json without = base;
    without.erase(key);
    SCOPED_TRACE("no " + key);
    check(without);
  }
  for (const auto& [key, value] : base["rope_scaling"].items()) {
    for (const Json& other : values) {
      SCOPED_TRACE("rope_scaling." + key + " = " + other.dump());
      Json json = base;
      json["rope_scaling"][key] = other;
      check(json);
    }
  }
  EXPECT_GT(n_accepted, 100);
  EXPECT_GT(n_refused, 100);
}

TEST(Recipe, UsesEveryTensorOfTheCheckpointAndNoOther) {
  for (const std::string& name : testing::golden_cases()) {
    SCOPED_TRACE(name);
    const HfConfig config = read_config(golden_dir(name) + "/config.json");
    std::map<std::string, std::vector<int64_t>> tensors;
    for (const CheckpointTensor& t : checkpoint_tensors(config)) tensors[t.name] = t.shape;
    std::set<std::string> used, paths;
    const Plan plan = good_plan(config);
    for (const RecipeUnit& unit : make_recipe(plan)) {
      for (const RecipeEntry& entry : unit.entries) {
        EXPECT_TRUE(paths.insert(entry.path).second) << entry.path;
        for (const SourceRef& ref : entry.sources) {
          ASSERT_TRUE(tensors.contains(ref.tensor)) << ref.tensor;
          used.insert(ref.tensor);
          const std::vector<int64_t>& shape = tensors[ref.tensor];
          if (!entry.packed) {
            EXPECT_EQ(shape, entry.shape) << ref.tensor;
            continue;
          }
          const int64_t rows = ref.n_rows > 0 ? ref.n_rows : shape[0];
          EXPECT_LE(ref.row_begin + rows, shape[0]);
          EXPECT_EQ(entry.n_in, ref.transposed ? rows : shape[1]) << entry.path;
          const int64_t n_out = ref.transposed ? shape[1] : rows;
          EXPECT_EQ(entry.n_out, entry.gate_up() ? 2 * align_up(n_out, 16) : n_out) << entry.path;
        }
        for (const SourceRef& ref : entry.ups) {
          ASSERT_TRUE(tensors.contains(ref.tensor)) << ref.tensor;
          used.insert(ref.tensor);
        }
      }
    }
    for (const auto& [tensor, shape] : tensors) {
      const bool is_copy = tensor == "model.layers.3.embed_tokens.weight" ||
                           tensor == "model.layers.3.shared_head.head.weight";
      EXPECT_NE(used.contains(tensor), is_copy) << tensor;
    }
  }
}

TEST(Recipe, ParametersAreTheCheckpointsTensors) {
  for (const char* name : {"deepseek-v3", "deepseek-v2.transcribed", "deepseek-v2-lite"}) {
    const HfConfig config = fact(name);
    int64_t n = 0;
    for (const CheckpointTensor& t : checkpoint_tensors(config)) {
      int64_t elements = 1;
      for (const int64_t d : t.shape) elements *= d;
      n += elements;
    }
    EXPECT_EQ(n, config.n_parameters(true)) << name;
  }
}

TEST(State, AllocatesWhatThePlanSays) {
  const HfConfig config = read_config(golden_dir("v3_bf16") + "/config.json");
  const Plan plan = good_plan(config, "", {.max_context_tokens = 300, .max_sequences = 3});
  EXPECT_EQ(plan.limits.n_pages, 15);
  const auto state = create_state(plan);
  ASSERT_TRUE(state.ok()) << state.status().message();
  EXPECT_EQ((*state)->page_memory.size_bytes(), plan.kv_bytes);
  EXPECT_EQ((*state)->arena_memory.size_bytes(), plan.scratch_bytes);
  EXPECT_EQ((*state)->run_memory.size_bytes(), plan.state_bytes);
}

}  // namespace
}  // namespace exo::model
