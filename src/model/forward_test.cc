#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "model/modules/mlp.h"
#include "model/testing/golden_checks.h"

namespace exo::model::testing {
namespace {

using ::testing::HasSubstr;

// A small model and a batch of three tokens that runs; each test bends one part of it.
class Forward : public ::testing::Test {
 protected:
  Forward()
      : runner_(
            Golden::of("v3_bf16"),
            {.table = &ops::reference_table(), .max_context_tokens = 130, .max_batch_tokens = 70}) {
    pages_.assign(runner_.pages().begin(), runner_.pages().end());
    sequence_ = {.n_rows = 3, .pages = pages_};
    refresh();
  }
  void refresh() {
    batch_ = {.tokens = tokens_,
              .positions = positions_,
              .sequences = {&sequence_, 1},
              .logit_rows = rows_};
  }
  std::string error() {
    const model::Run run{.plan = &runner_.plan(),
                         .weights = &runner_.weights(),
                         .state = &runner_.state(),
                         .forced_experts = forced_};
    const auto output = forward(run, batch_, runner_.ctx());
    return output.ok() ? "" : output.status().message();
  }

  Runner runner_;
  std::vector<int32_t> tokens_ = {1, 2, 3}, positions_ = {0, 1, 2}, rows_ = {2}, pages_;
  ops::SequenceRows sequence_;
  Batch batch_;
  const ForcedExperts* forced_ = nullptr;
};

TEST_F(Forward, Runs) { EXPECT_EQ(error(), ""); }

TEST_F(Forward, TokensOutsideTheVocabularyAreRefused) {
  for (const int32_t id : {-1, 512, 1 << 30}) {
    tokens_[1] = id;
    EXPECT_THAT(error(), HasSubstr("outside the vocabulary of 512"));
  }
}

TEST_F(Forward, BatchesBeyondThePlanAreRefused) {
  tokens_.assign(71, 1);
  positions_.resize(71);
  std::iota(positions_.begin(), positions_.end(), 0);
  sequence_.n_rows = 71;
  refresh();
  EXPECT_THAT(error(), HasSubstr("71 tokens exceeds the plan's 70"));
  tokens_.resize(65);
  positions_.resize(65);
  sequence_.n_rows = 65;
  sequence_.form = ops::AttentionForm::absorbed;
  refresh();
  EXPECT_THAT(error(), HasSubstr("65 generated tokens exceed the plan's 64"));
  tokens_.clear();
  positions_.clear();
  refresh();
  EXPECT_THAT(error(), HasSubstr("empty"));
}

TEST_F(Forward, LogitRowsAreChecked) {
  rows_ = {3};
  refresh();
  EXPECT_THAT(error(), HasSubstr("logit row 3 of a batch of 3"));
  rows_ = {-1};
  refresh();
  EXPECT_THAT(error(), HasSubstr("logit row -1"));
  rows_.assign(71, 0);
  refresh();
  EXPECT_THAT(error(), HasSubstr("71 rows exceed the plan's 70"));
}

TEST_F(Forward, PositionsAreTheCachesPlaces) {
  positions_[1] = 5;
  EXPECT_THAT(error(), HasSubstr("row 1 has position 5, expected 1"));
  positions_ = {0, 1};
  refresh();
  EXPECT_THAT(error(), HasSubstr("differ in number"));
}

TEST_F(Forward, SequencesMustCoverTheRows) {
  sequence_.n_rows = 2;
  EXPECT_THAT(error(), HasSubstr("don't cover the rows"));
  sequence_.n_rows = 4;
  EXPECT_THAT(error(), HasSubstr("don't cover the rows"));
  sequence_.n_rows = 3;
  sequence_.row_begin = 1;
  EXPECT_THAT(error(), HasSubstr("don't cover the rows"));
  batch_.sequences = {};
  EXPECT_THAT(error(), HasSubstr("don't cover the rows"));
}

TEST_F(Forward, PagesAndContextAreChecked) {
  sequence_.n_past = -1;
  EXPECT_THAT(error(), HasSubstr("negative past"));
  sequence_.n_past = 128;
  EXPECT_THAT(error(), HasSubstr("131 tokens exceeds the plan's 130"));
  sequence_.n_past = 125;
  positions_ = {125, 126, 127};
  sequence_.pages = std::span(pages_).first(1);
  EXPECT_THAT(error(), HasSubstr("128 tokens has 1 pages of 64"));
  sequence_.pages = pages_;
  pages_[1] = 6;  // 2 sequences of 3 pages
  EXPECT_THAT(error(), HasSubstr("page 6 of 6"));
  pages_[1] = -1;
  EXPECT_THAT(error(), HasSubstr("page -1"));
}

TEST_F(Forward, ForcedExpertsMustFitTheModel) {
  const ForcedExperts too_few{.ids = {{}}, .weights = {{}}};
  forced_ = &too_few;
  EXPECT_THAT(error(), HasSubstr("forced experts"));
}

TEST_F(Forward, ALaterStageNeedsHiddenStates) {
  Runner last(Golden::of("v3_bf16"), {.table = &ops::reference_table(), .layer_begin = 2});
  const model::Run run{.plan = &last.plan(), .weights = &last.weights(), .state = &last.state()};
  auto output = forward(run, batch_, last.ctx());
  ASSERT_FALSE(output.ok());
  EXPECT_THAT(output.status().message(), HasSubstr("expected f32 [3, 128], got none"));
  const std::vector<float> hidden(2 * 128);
  batch_.hidden = make_view(hidden.data(), {2, 128});
  output = forward(run, batch_, last.ctx());
  ASSERT_FALSE(output.ok());
  EXPECT_THAT(output.status().message(), HasSubstr("got f32 [2, 128]"));
}

TEST_F(Forward, LogitsComeOnlyForTheRowsAskedFor) {
  rows_ = {0, 1, 2};
  refresh();
  const model::Run run{
      .plan = &runner_.plan(), .weights = &runner_.weights(), .state = &runner_.state()};
  auto output = forward(run, batch_, runner_.ctx());
  ASSERT_TRUE(output.ok());
  const std::vector<float> all = Runner::copy(output->logits);
  rows_ = {0, 2};
  refresh();
  output = forward(run, batch_, runner_.ctx());
  ASSERT_TRUE(output.ok());
  ASSERT_TRUE(output->logits.has_shape({2, 512}));
  const std::vector<int32_t> wanted = {0, 2};
  EXPECT_EQ(Runner::copy(output->logits), rows_at(all, wanted, 512));
  rows_.clear();
  refresh();
  output = forward(run, batch_, runner_.ctx());
  ASSERT_TRUE(output.ok());
  EXPECT_EQ(output->logits.dim(0), 0);
}

// Weights larger than memory: what a layer has chosen comes from the disk before it is needed, and
// nothing else does.
TEST(Load, ChosenExpertsAreReadAhead) {
  constexpr int64_t kExperts = 8, kRows = 512, kCols = 1024, kBytes = kRows * kCols * 2;
  const TempDir folder;
  const std::string path = folder.path() + "/experts";
  ASSERT_TRUE(write_file_atomic(path, std::string(kExperts * 2 * kBytes, 'x')).ok());
  const auto file = MappedFile::open(path);
  ASSERT_TRUE(file.ok());
  file->advise(0, file->size_bytes(), MappedFile::Advice::random);
  MoeWeights weights;
  for (int64_t i = 0; i < kExperts; ++i) {
    PackedMatrix m{.format = WeightFormat::bf16, .n_out = kRows, .n_in = kCols};
    m.tiles = file->data() + 2 * i * kBytes;
    weights.gate_up.push_back(m);
    m.tiles += kBytes;
    weights.down.push_back(m);
  }
  ASSERT_EQ(weights::packed_matrix_bytes(WeightFormat::bf16, kRows, kCols, 0),
            static_cast<uint64_t>(kBytes));
  const auto resident = [&](int64_t expert) {
    return resident_share(file->data() + 2 * expert * kBytes, 2 * kBytes);
  };
  file->evict();
  for (int64_t i = 0; i < kExperts; ++i)
    if (resident(i) > 0) GTEST_SKIP() << "a file system that keeps everything in memory";
  const int32_t ids[] = {1, 5, 3, 5};
  moe::read_ahead(weights, make_view(ids, {2, 2}));
  const auto begin = std::chrono::steady_clock::now();
  while (resident(1) + resident(3) + resident(5) < 3 &&
         std::chrono::steady_clock::now() - begin < std::chrono::seconds(20))
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  for (int64_t i = 0; i < kExperts; ++i)
    EXPECT_EQ(resident(i), i == 1 || i == 3 || i == 5 ? 1.0 : 0.0) << "expert " << i;
}

TEST(Load, AForeignOrDamagedCacheIsNamed) {
  const Golden& golden = Golden::of("v3_bf16");
  const HfConfig& config = golden.config();
  const auto plan_with = [&](const std::string& format, const HfConfig& c) {
    return *make_plan(c, *parse_format(format, c), whole_model(c), {.max_context_tokens = 64});
  };
  const auto error = [](const Plan& plan, const std::string& folder) {
    const auto weights = load_weights(plan, folder);
    return weights.ok() ? "" : weights.status().message();
  };
  const std::string& cache = golden.cache("");
  EXPECT_EQ(error(plan_with("", config), cache), "");
  EXPECT_THAT(error(plan_with("int8", config), cache),
              ::testing::AllOf(HasSubstr("layers.0.self_attn.q_a_proj"),
                               HasSubstr("expected weights in int8, found bf16")));
  HfConfig wider = config;
  wider.hidden_size = 256;
  EXPECT_THAT(error(plan_with("", wider), cache), HasSubstr("embed_tokens"));
  HfConfig deeper = config;
  deeper.num_hidden_layers = 5;
  EXPECT_THAT(error(plan_with("", deeper), cache), HasSubstr("layers.4."));

  const TempDir copy;
  std::filesystem::copy(cache, copy.path(), std::filesystem::copy_options::recursive);
  std::filesystem::resize_file(copy.path() + "/layers.2.exo", 1000);
  EXPECT_THAT(error(plan_with("", config), copy.path()), HasSubstr("layers.2.exo"));
  std::filesystem::remove(copy.path() + "/weights.json");
  EXPECT_THAT(error(plan_with("", config), copy.path()), HasSubstr("weights.json"));
}

}  // namespace
}  // namespace exo::model::testing
