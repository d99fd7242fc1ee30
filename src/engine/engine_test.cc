#include "engine/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <numeric>

#include "base/json.h"
#include "engine/generate.h"
#include "model/convert.h"
#include "text/byte_level.h"

namespace exo::engine {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kVocab = 256;

constexpr const char* kConfig = R"({
  "model_type": "deepseek_v3", "vocab_size": 256, "hidden_size": 64, "intermediate_size": 96,
  "moe_intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "q_lora_rank": 48,
  "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
  "n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 2,
  "topk_group": 1, "first_k_dense_replace": 1, "moe_layer_freq": 1, "scoring_func": "sigmoid",
  "topk_method": "noaux_tc", "norm_topk_prob": true, "routed_scaling_factor": 1.5,
  "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 1024,
  "tie_word_embeddings": false, "bos_token_id": 0, "eos_token_id": 1, "hidden_act": "silu",
  "num_nextn_predict_layers": 0})";

/// Bytes are tokens: byte b is id b.
text::Tokenizer byte_tokenizer() {
  OrderedJson vocab = OrderedJson::object();
  for (int b = 0; b < 256; ++b) vocab[text::byte_level_symbol(static_cast<uint8_t>(b))] = b;
  const OrderedJson level = {
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}};
  const OrderedJson json = {
      {"added_tokens", OrderedJson::array()},
      {"pre_tokenizer", level},
      {"decoder", level},
      {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", OrderedJson::array()}}}};
  auto tokenizer = text::Tokenizer::from_json(json.dump(), "test tokenizer");
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status().message();
  return *std::move(tokenizer);
}

class EngineTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    std::string name = ::testing::TempDir() + "exo_engine_XXXXXX";
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    folder_ = new std::string(name);
    ThreadPool pool(1);
    const auto plan = make_plan(limits());
    ASSERT_TRUE(plan.ok()) << plan.status().message();
    const Status status = model::write_random_cache(*plan, *folder_, 7, pool, [](const auto&) {});
    ASSERT_TRUE(status.ok()) << status.message();
  }
  static void TearDownTestSuite() {
    std::error_code ignored;
    std::filesystem::remove_all(*folder_, ignored);
    delete folder_;
  }

  static Result<model::Plan> make_plan(const model::Limits& limits) {
    EXO_ASSIGN_OR_RETURN(const Json json, parse_json(kConfig, "config"));
    EXO_ASSIGN_OR_RETURN(const model::HfConfig config, model::parse_config(json, "config"));
    EXO_ASSIGN_OR_RETURN(const model::FormatChoice format, model::parse_format("bf16", config));
    return model::make_plan(config, format, model::whole_model(config), limits);
  }

  /// fp32, four sequences of 256 tokens, chunks of 16.
  static model::Limits limits() {
    model::Limits limits;
    limits.max_context_tokens = 256;
    limits.max_batch_tokens = 16;
    limits.max_sequences = 4;
    limits.max_logit_rows = 16;
    limits.n_threads = 2;
    limits.fp32_compute = true;
    return limits;
  }

  static std::unique_ptr<Engine> make_engine(const model::Limits& limits) {
    auto plan = make_plan(limits);
    EXPECT_TRUE(plan.ok()) << plan.status().message();
    auto engine = Engine::create(
        {*folder_, *std::move(plan), kernels::cpu::supported_isas().back(), nullptr});
    EXPECT_TRUE(engine.ok()) << engine.status().message();
    return *std::move(engine);
  }

  static std::vector<int32_t> prompt(int64_t n, int32_t seed = 1) {
    std::vector<int32_t> tokens(static_cast<size_t>(n));
    for (size_t i = 0; i < tokens.size(); ++i)
      tokens[i] = static_cast<int32_t>((i * 37 + static_cast<size_t>(seed) * 101) % kVocab);
    return tokens;
  }

  /// Logits of all rows of `tokens`, appended to the sequence.
  static std::vector<float> prefill_all(Engine& engine, SequenceId id,
                                        std::span<const int32_t> tokens) {
    std::vector<int32_t> wanted(tokens.size());
    std::iota(wanted.begin(), wanted.end(), 0);
    std::vector<float> rows;
    int32_t next = 0;
    const Status status = engine.prefill(
        id, tokens, wanted, [&](std::span<const int32_t> indices, const TensorView& logits) {
          EXPECT_EQ(static_cast<size_t>(logits.dim(0)), indices.size());
          for (int32_t index : indices) EXPECT_EQ(index, next++);
          rows.insert(rows.end(), logits.row<float>(0), logits.row<float>(0) + logits.n_elements());
          return ok_status();
        });
    EXPECT_TRUE(status.ok()) << status.message();
    return rows;
  }

  static std::vector<float> decode_one(Engine& engine, SequenceId id, int32_t token) {
    const Engine::Step step{id, token};
    auto logits = engine.decode({&step, 1});
    EXPECT_TRUE(logits.ok()) << logits.status().message();
    return {logits->row<float>(0), logits->row<float>(0) + logits->dim(1)};
  }

  static float largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
    EXPECT_EQ(a.size(), b.size());
    float d = 0;
    for (size_t i = 0; i < std::min(a.size(), b.size()); ++i)
      d = std::max(d, std::fabs(a[i] - b[i]));
    return d;
  }

  static inline std::string* folder_ = nullptr;
};

TEST_F(EngineTest, ChunksAgreeAndWantedRowsArePicked) {
  const auto tokens = prompt(75);
  std::vector<std::vector<float>> all;
  for (int64_t chunk : {75, 16, 7, 1}) {
    model::Limits l = limits();
    l.max_batch_tokens = std::max<int64_t>(chunk, l.max_sequences);
    l.max_logit_rows = std::max(std::min<int64_t>(chunk, 9), l.max_sequences);
    auto engine = make_engine(l);
    const SequenceId id = *engine->add_sequence();
    all.push_back(prefill_all(*engine, id, tokens));
    EXPECT_EQ(engine->n_tokens(id), 75);
    EXPECT_LT(largest_difference(all.front(), all.back()), 1e-3f) << "chunk " << chunk;
  }
  auto engine = make_engine(limits());
  const SequenceId id = *engine->add_sequence();
  const std::vector<int32_t> wanted{0, 30, 74};
  std::vector<float> rows;
  ASSERT_TRUE(engine
                  ->prefill(id, tokens, wanted,
                            [&](auto, const TensorView& logits) {
                              rows.insert(rows.end(), logits.row<float>(0),
                                          logits.row<float>(0) + logits.n_elements());
                              return ok_status();
                            })
                  .ok());
  ASSERT_EQ(rows.size(), 3 * static_cast<size_t>(kVocab));
  for (size_t i = 0; i < wanted.size(); ++i) {
    const auto begin = all[0].begin() + wanted[i] * kVocab;
    const auto mine = rows.begin() + static_cast<ptrdiff_t>(i) * kVocab;
    EXPECT_LT(largest_difference({begin, begin + kVocab}, {mine, mine + kVocab}), 1e-3f);
  }
}

TEST_F(EngineTest, TruncateGivesTheSameBitsAgain) {
  auto engine = make_engine(limits());
  const SequenceId id = *engine->add_sequence();
  prefill_all(*engine, id, prompt(70));
  const auto first = decode_one(*engine, id, 5);
  decode_one(*engine, id, 6);
  ASSERT_TRUE(engine->truncate(id, 70).ok());
  EXPECT_EQ(engine->n_tokens(id), 70);
  EXPECT_EQ(decode_one(*engine, id, 5), first);
  EXPECT_FALSE(engine->truncate(id, 72).ok());
  EXPECT_FALSE(engine->truncate(id, -1).ok());
  ASSERT_TRUE(engine->truncate(id, 0).ok());
  prefill_all(*engine, id, prompt(70));
  EXPECT_EQ(decode_one(*engine, id, 5), first);
}

TEST_F(EngineTest, SequencesDecodedTogetherAreTheSameAsAlone) {
  auto together = make_engine(limits());
  auto alone = make_engine(limits());
  std::vector<Engine::Step> steps;
  std::vector<std::vector<float>> expected;
  for (int32_t s = 0; s < 4; ++s) {
    const SequenceId id = *together->add_sequence();
    const auto tokens = prompt(10 + 30 * s, s);
    prefill_all(*together, id, tokens);
    steps.push_back({id, 40 + s});
    const SequenceId own = *alone->add_sequence();
    prefill_all(*alone, own, tokens);
    expected.push_back(decode_one(*alone, own, 40 + s));
    alone->remove_sequence(own);
  }
  EXPECT_EQ(together->add_sequence().status().code(), StatusCode::resource_exhausted);
  auto logits = together->decode(steps);
  ASSERT_TRUE(logits.ok()) << logits.status().message();
  for (size_t i = 0; i < steps.size(); ++i) {
    const float* row = logits->row<float>(static_cast<int64_t>(i));
    EXPECT_LT(largest_difference({row, row + kVocab}, expected[i]), 1e-4f) << i;
  }
}

TEST_F(EngineTest, StreamedExpertsAndAReadCacheGiveTheSameBits) {
  auto plain = make_engine(limits());
  const SequenceId id = *plain->add_sequence();
  const auto expected = prefill_all(*plain, id, prompt(40));
  for (const bool warm : {false, true}) {
    auto engine = Engine::create({.cache_folder = *folder_,
                                  .plan = *make_plan(limits()),
                                  .isa = kernels::cpu::supported_isas().back(),
                                  .warm = warm,
                                  .stream_experts = !warm});
    ASSERT_TRUE(engine.ok()) << engine.status().message();
    const SequenceId other = *(*engine)->add_sequence();
    EXPECT_EQ(prefill_all(**engine, other, prompt(40)), expected);
  }
}

TEST_F(EngineTest, ACacheInEightBitsHoldsNoiseAndTokens) {
  for (const DType cache : {DType::i8, DType::f8_e4m3}) {
    model::Limits l = limits();
    l.cache = cache;
    auto engine = make_engine(l);
    const SequenceId id = *engine->add_sequence();
    ASSERT_TRUE(engine->fill_with_noise(id, 100, 3).ok());
    EXPECT_EQ(engine->n_tokens(id), 100);
    const auto first = decode_one(*engine, id, 5);
    for (float v : first) ASSERT_TRUE(std::isfinite(v));
    ASSERT_TRUE(engine->truncate(id, 100).ok());
    EXPECT_EQ(decode_one(*engine, id, 5), first);
    ASSERT_TRUE(engine->truncate(id, 0).ok());
    ASSERT_TRUE(engine->fill_with_noise(id, 100, 4).ok());
    EXPECT_NE(decode_one(*engine, id, 5), first) << "the noise is not looked at";
  }
}

TEST_F(EngineTest, AFailureChangesNothing) {
  model::Limits l = limits();
  l.n_pages = 3;  // of 64 tokens, for contexts of 256
  auto engine = make_engine(l);
  const SequenceId a = *engine->add_sequence(), b = *engine->add_sequence();
  prefill_all(*engine, a, prompt(100));
  const auto next = decode_one(*engine, a, 9);
  ASSERT_TRUE(engine->truncate(a, 100).ok());
  const auto no_rows = [](auto, const TensorView&) { return ok_status(); };

  auto status = engine->prefill(b, prompt(65), {}, no_rows);  // needs 2 pages, 1 is free
  EXPECT_EQ(status.code(), StatusCode::failed_precondition);
  EXPECT_THAT(status.message(), HasSubstr("1 of 3 are free"));
  EXPECT_EQ(engine->n_tokens(b), 0);
  status = engine->prefill(a, prompt(157), {}, no_rows);
  EXPECT_THAT(status.message(), HasSubstr("the context is full"));
  std::vector<int32_t> outside = prompt(40);
  outside[35] = 256;  // found in the third chunk
  EXPECT_FALSE(engine->prefill(b, outside, {}, no_rows).ok());
  EXPECT_EQ(engine->n_tokens(b), 0);
  const int32_t last = 19;
  status = engine->prefill(b, prompt(20), {&last, 1},
                           [](auto, const TensorView&) { return cancelled("by the caller"); });
  EXPECT_EQ(status.code(), StatusCode::cancelled);
  EXPECT_EQ(engine->n_tokens(b), 0);
  ASSERT_TRUE(engine->prefill(b, prompt(64), {}, no_rows).ok());  // no page was lost
  const Engine::Step both[] = {{a, 9}, {b, 9}};                   // b's needs a fourth page
  EXPECT_EQ(engine->decode(both).status().code(), StatusCode::failed_precondition);
  EXPECT_EQ(engine->n_tokens(a), 100);
  const Engine::Step twice[] = {{a, 9}, {a, 9}};
  EXPECT_EQ(engine->decode(twice).status().code(), StatusCode::invalid_argument);
  const Engine::Step unknown[] = {{a, 9}, {3, 9}};
  EXPECT_EQ(engine->decode(unknown).status().code(), StatusCode::not_found);
  const int32_t disorder[] = {3, 3};
  EXPECT_EQ(engine->prefill(a, prompt(5), disorder, no_rows).code(), StatusCode::invalid_argument);
  EXPECT_EQ(engine->n_tokens(a), 100);
  EXPECT_EQ(decode_one(*engine, a, 9), next);
}

/// Everything an answer shows.
struct Shown {
  Generation generation;
  std::string text;
};

class SessionTest : public EngineTest {
 protected:
  SessionTest() : tokenizer_(byte_tokenizer()), engine_(make_engine(limits())) {}

  Shown answer(Session& session, std::span<const int32_t> tokens, const GenerateOptions& options) {
    Shown shown;
    auto generation =
        session.generate(tokens, options, [&](std::string_view text) { shown.text += text; });
    EXPECT_TRUE(generation.ok()) << generation.status().message();
    if (generation.ok()) shown.generation = *generation;
    return shown;
  }

  text::Tokenizer tokenizer_;
  std::unique_ptr<Engine> engine_;
};

TEST_F(SessionTest, KeepsTheCommonPrefixAndGivesTheSameAnswer) {
  Session session = *Session::create(*engine_, tokenizer_);
  GenerateOptions options;
  options.max_tokens = 8;
  std::vector<int32_t> tokens = prompt(40);
  const Shown first = answer(session, tokens, options);
  EXPECT_EQ(first.generation.reason, FinishReason::max_tokens);
  EXPECT_EQ(first.generation.ids.size(), 8u);
  EXPECT_EQ(first.generation.stats.n_reused_tokens, 0);
  EXPECT_EQ(session.tokens().size(), 47u);  // the last token was never fed back

  // The same prompt: all but its last token is at hand.
  const Shown again = answer(session, tokens, options);
  EXPECT_EQ(again.generation.stats.n_reused_tokens, 39);
  EXPECT_EQ(again.generation.ids, first.generation.ids);

  // The next turn reuses the answer's latents; an edited one goes back to where it parts.
  tokens.insert(tokens.end(), again.generation.ids.begin(), again.generation.ids.end());
  tokens.push_back(33);
  EXPECT_EQ(answer(session, tokens, options).generation.stats.n_reused_tokens, 47);
  tokens.resize(20);
  tokens[10] ^= 1;
  const Shown edited = answer(session, tokens, options);
  EXPECT_EQ(edited.generation.stats.n_reused_tokens, 10);
  Session fresh = *Session::create(*engine_, tokenizer_);
  EXPECT_EQ(answer(fresh, tokens, options).generation.ids, edited.generation.ids);
}

TEST_F(SessionTest, EndsForEachReason) {
  Session session = *Session::create(*engine_, tokenizer_);
  GenerateOptions options;
  options.max_tokens = 10;
  const auto tokens = prompt(12);
  const Shown whole = answer(session, tokens, options);
  const auto& ids = whole.generation.ids;

  const int32_t fourth = ids[3];
  options.eos_ids = {fourth};
  const Shown ended = answer(session, tokens, options);
  EXPECT_EQ(ended.generation.reason, FinishReason::eos);
  EXPECT_EQ(ended.generation.ids.back(), fourth);
  EXPECT_LE(ended.generation.ids.size(), 4u);
  EXPECT_TRUE(whole.text.starts_with(ended.text.substr(0, ended.text.size() / 2)));

  options.eos_ids = {};
  options.sampling.logit_bias = {{'a', 100.0f}};
  options.stops = {"aaaa"};
  const Shown stopped = answer(session, tokens, options);
  EXPECT_EQ(stopped.generation.reason, FinishReason::stop_string);
  EXPECT_EQ(stopped.text, "");
  options.stops = {"aaab"};
  EXPECT_EQ(answer(session, tokens, options).text, "aaaaaaaaaa");  // held back, then shown

  std::atomic<bool> cancel{true};
  options.cancel = &cancel;
  const Shown cancelled = answer(session, tokens, options);
  EXPECT_EQ(cancelled.generation.reason, FinishReason::cancelled);
  options.cancel = nullptr;

  options.max_tokens = -1;
  const Shown full = answer(session, tokens, options);
  EXPECT_EQ(full.generation.reason, FinishReason::context_full);
  EXPECT_EQ(full.generation.ids.size(), 256u - 12 + 1);  // the last one needs no place
  options.max_tokens = 0;
  EXPECT_TRUE(answer(session, tokens, options).generation.ids.empty());
}

TEST_F(SessionTest, RefusesInWords) {
  Session session = *Session::create(*engine_, tokenizer_);
  const auto message = [&](const std::vector<int32_t>& tokens, const GenerateOptions& options) {
    return session.generate(tokens, options, [](std::string_view) {}).status().message();
  };
  EXPECT_THAT(message({}, {}), HasSubstr("the prompt is empty"));
  EXPECT_THAT(message({1, 256}, {}), HasSubstr("token 1 is id 256"));
  EXPECT_THAT(message({-1}, {}), HasSubstr("id -1"));
  EXPECT_THAT(message(prompt(257), {}), HasSubstr("257 tokens and the context holds 256"));
  GenerateOptions options;
  options.sampling.top_p = 0;
  EXPECT_THAT(message({1}, options), HasSubstr("top_p"));
  options.sampling.top_p = 1;
  options.stops = {""};
  EXPECT_THAT(message({1}, options), HasSubstr("stop string"));
}

TEST_F(SessionTest, ThreadsDontChangeTheText) {
  GenerateOptions options;
  options.max_tokens = 20;
  options.sampling.temperature = 1;
  options.sampling.seed = 3;
  Session two = *Session::create(*engine_, tokenizer_);
  model::Limits l = limits();
  l.n_threads = 1;
  auto engine = make_engine(l);
  Session one = *Session::create(*engine, tokenizer_);
  const auto tokens = prompt(33);
  EXPECT_EQ(answer(two, tokens, options).generation.ids,
            answer(one, tokens, options).generation.ids);
}

}  // namespace
}  // namespace exo::engine
