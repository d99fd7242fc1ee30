// The golden checkpoints on every instruction set of this machine, and what a forward may not do:
// allocate, or take more memory than its plan says.
#include <gtest/gtest.h>

#include <unistd.h>

#include <fstream>

#include "count_allocations.h"
#include "kernels/cpu/testing/isas.h"
#include "model/testing/golden_checks.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define EXO_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define EXO_SANITIZED 1
#endif
#endif

namespace exo::model::testing {
namespace {

using kernels::cpu::Isa;

#ifdef EXO_SANITIZED
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif

struct Case {
  Isa isa;
  std::string golden;
};

// Every instruction set of the machine but the scalar one, whose tests lie in src/model.
std::vector<Case> cases(const std::vector<std::string>& goldens,
                        const std::vector<Isa>& isas = kernels::cpu::isas_to_test()) {
  std::vector<Case> out;
  for (const Isa isa : isas) {
    if (isa == Isa::reference) continue;
    for (const std::string& golden : goldens) out.push_back({isa, golden});
  }
  return out;
}
// Long prompts under a sanitizer, whose steps the other tests run on all of them.
std::vector<Isa> isas_for_long_prompts() {
  return kSanitized ? kernels::cpu::best_isas() : kernels::cpu::isas_to_test();
}
std::string name_of(const ::testing::TestParamInfo<Case>& info) {
  return std::string(kernels::cpu::to_string(info.param.isa)) + "_" + info.param.golden;
}

class IsaGoldens : public ::testing::TestWithParam<Case> {
 protected:
  const std::string& golden() const { return GetParam().golden; }
  const ops::OpTable& table() const { return kernels::cpu::table(GetParam().isa); }
};

TEST_P(IsaGoldens, Prompts) { check_prompts(golden(), table()); }
TEST_P(IsaGoldens, InnerTensors) { check_inner_tensors(golden(), table()); }
TEST_P(IsaGoldens, GreedyContinuation) { check_greedy(golden(), table()); }
TEST_P(IsaGoldens, SameBits) {
  check_same_bits(golden(), table(), "", /*fp32=*/true);
  for (const char* format : {"", "int8", "int4"})
    check_same_bits(golden(), table(), format, /*fp32=*/false);
  check_same_bits(golden(), table(), "int8", /*fp32=*/false, DType::i8);
}
TEST_P(IsaGoldens, MixedBatch) {
  check_mixed_batch(golden(), table(), "", /*fp32=*/true);
  check_mixed_batch(golden(), table(), "int8", /*fp32=*/false);
  check_mixed_batch(golden(), table(), "int8", /*fp32=*/false, DType::f8_e4m3);
}
TEST_P(IsaGoldens, KvCache) {
  // e4m3's error is four times int8's, a divergence goes with its square.
  check_kv_cache(golden(), table(), DType::i8, kNativeKlBound);
  check_kv_cache(golden(), table(), DType::f8_e4m3, 16 * kNativeKlBound);
}
TEST_P(IsaGoldens, NativeModel) { check_native_model(golden(), table()); }
TEST_P(IsaGoldens, NativeModules) { NativeModules(golden(), table()).check(); }

INSTANTIATE_TEST_SUITE_P(Isas, IsaGoldens, ::testing::ValuesIn(cases(golden_cases())), name_of);

class IsaLong : public IsaGoldens {};
TEST_P(IsaLong, LongPrompt) {
  const int64_t chunks[] = {1, 3, 7, 200};
  check_long_prompt(golden(), table(), 2, chunks);
}
INSTANTIATE_TEST_SUITE_P(Isas, IsaLong,
                         ::testing::ValuesIn(cases({"v3_bf16", "v3_fp8", "v2_grouped", "moonlight",
                                                    "v3_mtp"},
                                                   isas_for_long_prompts())),
                         name_of);

// 4,160 tokens, past the 4,096 of original_max_position_embeddings.
class IsaVeryLong : public IsaGoldens {};
TEST_P(IsaVeryLong, LongPrompt) {
  const int64_t chunks[] = {512, 7};
  check_long_prompt(golden(), table(), 2, std::span(chunks).first(kSanitized ? 1 : 2));
}
INSTANTIATE_TEST_SUITE_P(Isas, IsaVeryLong,
                         ::testing::ValuesIn(cases({"v2_lite"}, isas_for_long_prompts())), name_of);

class PerIsa : public ::testing::TestWithParam<Isa> {
 protected:
  const ops::OpTable& table() const { return kernels::cpu::table(GetParam()); }
};

TEST_P(PerIsa, Fp8AsBf16) { check_fp8_as_bf16(table()); }

TEST_P(PerIsa, AForwardAllocatesNothing) {
  for (const char* format : {"", "int8"}) {
    for (const bool fp32 : {true, false}) {
      SCOPED_TRACE(std::string(format) + (fp32 ? " fp32" : " native"));
      const Golden& golden = Golden::of("v3_bf16");
      Runner runner(golden, {.table = &table(), .n_threads = 2, .fp32 = fp32, .format = format});
      const std::vector<int32_t> prompt = golden.i32("p0.input_ids");
      prompt_and_decode(runner, prompt, 24);  // warm: thread-local state of libraries
      // The harness allocates, the forward under it may not: the same rows, prepared beforehand.
      const auto n = static_cast<int32_t>(prompt.size());
      std::vector<int32_t> positions(prompt.size()), wanted = {0, n - 1};
      std::iota(positions.begin(), positions.end(), 0);
      const ops::SequenceRows expanded{.n_rows = n, .pages = runner.pages()};
      const ops::SequenceRows absorbed{
          .n_rows = 1, .n_past = n, .pages = runner.pages(), .form = ops::AttentionForm::absorbed};
      const int32_t token = 7, row = 0;
      const model::Run run{
          .plan = &runner.plan(), .weights = &runner.weights(), .state = &runner.state()};
      for (const Batch& batch : {Batch{.tokens = prompt,
                                .positions = positions,
                                .sequences = {&expanded, 1},
                                .logit_rows = wanted},
                                 Batch{.tokens = {&token, 1},
                                 .positions = {&n, 1},
                                 .sequences = {&absorbed, 1},
                                 .logit_rows = {&row, 1}}}) {
        const int64_t before = allocation_count();
        const bool ok = forward(run, batch, runner.ctx()).ok();
        const int64_t after = allocation_count();
        EXPECT_TRUE(ok);
        EXPECT_EQ(after - before, 0) << batch.tokens.size() << " tokens";
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Isas, PerIsa, ::testing::ValuesIn(kernels::cpu::isas_to_test()),
                         [](const auto& isa) {
                           return std::string(kernels::cpu::to_string(isa.param));
                         });

// A model whose sizes matter beside the fixed part of the scratch, without a checkpoint.
HfConfig medium_config() {
  HfConfig c = Golden::of("v3_bf16").config();
  c.hidden_size = 512;
  c.num_attention_heads = 8;
  c.q_lora_rank = 192;
  c.kv_lora_rank = 256;
  c.qk_nope_head_dim = 64;
  c.qk_rope_head_dim = 32;
  c.v_head_dim = 64;
  c.intermediate_size = 1024;
  c.moe_intermediate_size = 256;
  c.num_hidden_layers = 2;
  c.vocab_size = 2048;
  return c;
}

// The arena suffices for every batch that the limits allow, and isn't much larger than it must be.
TEST(Memory, ScratchIsWhatThePlanSays) {
  const HfConfig config = medium_config();
  for (const bool fp32 : {true, false}) {
    for (const char* format : {"bf16", "int8"}) {
      SCOPED_TRACE(std::string(format) + (fp32 ? " fp32" : " native"));
      const auto plan = make_plan(config, *parse_format(format, config), whole_model(config),
                                  {.max_context_tokens = 512,
                                   .max_batch_tokens = 256,
                                   .max_sequences = 2,
                                   .max_logit_rows = 256,
                                   .n_threads = 2,
                                   .fp32_compute = fp32});
      ASSERT_TRUE(plan.ok()) << plan.status().message();
      const TempDir folder;
      ThreadPool pool(2);
      ASSERT_TRUE(write_random_cache(*plan, folder.path(), 3, pool, nullptr).ok());
      const auto weights = load_weights(*plan, folder.path());
      ASSERT_TRUE(weights.ok()) << weights.status().message();
      const auto state = create_state(*plan);
      ASSERT_TRUE(state.ok());
      ops::OpContext ctx{.table = &kernels::cpu::table(kernels::cpu::supported_isas().back()),
                         .pool = &pool,
                         .arena = &(*state)->arena};
      const model::Run run{.plan = &*plan, .weights = weights->get(), .state = state->get()};
      std::vector<int32_t> tokens(256), positions(256), rows(256), pages(16);
      std::iota(pages.begin(), pages.end(), 0);
      std::iota(rows.begin(), rows.end(), 0);
      for (size_t i = 0; i < 256; ++i) tokens[i] = static_cast<int32_t>(i * 7);
      std::iota(positions.begin(), positions.end(), 0);
      const auto first = std::span(pages).first(8), second = std::span(pages).last(8);
      const ops::SequenceRows prompt{.n_rows = 256, .pages = first};
      // All that the plan allows at once: as many absorbed rows as decode has, prompts beside them.
      const auto n_absorbed = static_cast<int32_t>(plan->decode.max_tokens);
      const ops::SequenceRows mixed[] = {
          {.n_rows = n_absorbed,
           .n_past = 256,
           .pages = first,
           .form = ops::AttentionForm::absorbed},
          {.row_begin = n_absorbed, .n_rows = 256 - n_absorbed, .pages = second}};
      std::vector<int32_t> mixed_positions(256);
      std::iota(mixed_positions.begin(), mixed_positions.begin() + n_absorbed, 256);
      std::iota(mixed_positions.begin() + n_absorbed, mixed_positions.end(), 0);
      for (const Batch& batch : {Batch{.tokens = tokens,
                                .positions = positions,
                                .sequences = {&prompt, 1},
                                .logit_rows = rows},
                                 Batch{.tokens = tokens,
                                 .positions = mixed_positions,
                                 .sequences = mixed,
                                 .logit_rows = rows}}) {
        const auto output = forward(run, batch, ctx);
        ASSERT_TRUE(output.ok()) << output.status().message();
        for (const float v : Runner::copy(output->logits)) ASSERT_TRUE(std::isfinite(v));
      }
      const auto peak = static_cast<double>((*state)->arena.peak_bytes());
      EXPECT_LE((*state)->arena.peak_bytes(), plan->scratch_bytes);
      EXPECT_GE(peak, 0.4 * static_cast<double>(plan->scratch_bytes));
    }
  }
}

// Resident now (not the peak: other tests of this process have theirs).
int64_t resident_bytes() {
  std::ifstream statm("/proc/self/statm");
  int64_t total = 0, resident = 0;
  statm >> total >> resident;
  return resident * ::sysconf(_SC_PAGESIZE);
}

// 163,840 positions: a tiny model whose latents fill the pages. What the process grows by is what
// the plan says.
TEST(Memory, AFullContextTakesWhatThePlanSays) {
  HfConfig config = Golden::of("v2_lite").config();  // max_position_embeddings 163,840
  config.num_hidden_layers = 2;
  const int64_t n_context = kSanitized ? 16384 : config.max_position_embeddings;
  const auto plan = make_plan(config, *parse_format("bf16", config), whole_model(config),
                              {.max_context_tokens = n_context,
                               .max_batch_tokens = 64,
                               .n_threads = 2,
                               .fp32_compute = true});
  ASSERT_TRUE(plan.ok()) << plan.status().message();
  const TempDir folder;
  ThreadPool pool(2);
  ASSERT_TRUE(write_random_cache(*plan, folder.path(), 5, pool, nullptr).ok());
  const auto weights = load_weights(*plan, folder.path());
  ASSERT_TRUE(weights.ok()) << weights.status().message();

  const int64_t before = resident_bytes();
  const auto state = create_state(*plan);
  ASSERT_TRUE(state.ok());
  ops::OpContext ctx{.table = &kernels::cpu::table(kernels::cpu::supported_isas().back()),
                     .pool = &pool,
                     .arena = &(*state)->arena};
  // Latents of the past as if they had been computed: a prefill of the whole would take hours.
  std::mt19937 rng(9);
  std::normal_distribution<float> normal;
  std::vector<float> noise(4096);
  for (float& v : noise) v = normal(rng);
  for (const ops::LatentPages& pages : (*state)->pages) {
    for (int64_t t = 0; t < n_context; ++t) {
      std::byte* entry =
          pages.entry(static_cast<int32_t>(t / ops::kPageTokens), t % ops::kPageTokens);
      std::memcpy(entry, noise.data() + t * 37 % 4000 / 4 * 4,
                  static_cast<size_t>(pages.kv_lora_rank + pages.rope_dim) * sizeof(float));
    }
  }
  std::vector<int32_t> page_list(static_cast<size_t>(plan->limits.n_pages));
  std::iota(page_list.begin(), page_list.end(), 0);
  const model::Run run{.plan = &*plan, .weights = weights->get(), .state = state->get()};
  // The last places of the context: a chunk of a prompt, then a generated token.
  std::vector<int32_t> tokens(63, 3), positions(63);
  std::iota(positions.begin(), positions.end(), static_cast<int32_t>(n_context - 64));
  const int32_t last = static_cast<int32_t>(n_context - 1), row = 62, row0 = 0;
  const ops::SequenceRows chunk{
      .n_rows = 63, .n_past = static_cast<int32_t>(n_context - 64), .pages = page_list};
  const ops::SequenceRows generated{
      .n_rows = 1, .n_past = last, .pages = page_list, .form = ops::AttentionForm::absorbed};
  for (const Batch& batch : {Batch{.tokens = tokens,
                            .positions = positions,
                            .sequences = {&chunk, 1},
                            .logit_rows = {&row, 1}},
                             Batch{.tokens = std::span(tokens).first(1),
                             .positions = {&last, 1},
                             .sequences = {&generated, 1},
                             .logit_rows = {&row0, 1}}}) {
    const auto output = forward(run, batch, ctx);
    ASSERT_TRUE(output.ok()) << output.status().message();
    for (const float v : Runner::copy(output->logits)) ASSERT_TRUE(std::isfinite(v));
  }
  // One token more is an error, not a write beyond the pages.
  const int32_t beyond = last + 1;
  const ops::SequenceRows over{
      .n_rows = 1, .n_past = beyond, .pages = page_list, .form = ops::AttentionForm::absorbed};
  EXPECT_FALSE(forward(run,
                       {.tokens = std::span(tokens).first(1),
                        .positions = {&beyond, 1},
                        .sequences = {&over, 1},
                        .logit_rows = {&row0, 1}},
                       ctx)
                   .ok());
  const State& s = **state;
  EXPECT_EQ(s.page_memory.size_bytes(), plan->kv_bytes);
  EXPECT_LE(s.arena.peak_bytes(), plan->scratch_bytes);
  if (kSanitized) return;  // a sanitizer's shadow is resident too
  const auto grown = static_cast<double>(resident_bytes() - before);
  const auto planned = static_cast<double>(plan->total_bytes());
  EXPECT_LE(grown, planned + 8e6);  // stacks, this test's own lists
  EXPECT_GE(grown, 0.9 * static_cast<double>(plan->kv_bytes));
}

}  // namespace
}  // namespace exo::model::testing
