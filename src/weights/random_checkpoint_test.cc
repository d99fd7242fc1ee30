#include "weights/random_checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "weights/source_matrix.h"
#include "weights/test_files.h"

namespace exo::weights {
namespace {

using ::testing::HasSubstr;
using testing::TempDir;

constexpr char kConfig[] = R"({"quantization_config":{"weight_block_size":[64,32]}})";

const std::vector<RandomTensor> kTensors = {
    {"embed", {300, 129}, DType::bf16, 0.5f, 0},
    {"norm", {4001}, DType::f32, 0.1f, 1},
    {"w", {200, 333}, DType::f8_e4m3, 0.02f, 0},
};

void mean_and_stddev(const std::vector<float>& x, double& mean, double& stddev) {
  mean = 0;
  for (float v : x) mean += v;
  mean /= static_cast<double>(x.size());
  double sum = 0;
  for (float v : x) sum += (v - mean) * (v - mean);
  stddev = std::sqrt(sum / static_cast<double>(x.size()));
}

TEST(RandomCheckpoint, HasTheOfficialLayout) {
  TempDir dir;
  ASSERT_TRUE(write_random_checkpoint(dir.str(), kConfig, kTensors, 90000, 7).ok());
  EXPECT_TRUE(std::filesystem::exists(dir.file("model-00001-of-00002.safetensors")));
  EXPECT_TRUE(std::filesystem::exists(dir.file("config.json")));
  auto checkpoint = Checkpoint::open(dir.str());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status().message();
  EXPECT_EQ(checkpoint->tensors().size(), 4u);
  double mean = 0, stddev = 0;
  mean_and_stddev(*checkpoint->read_f32("embed"), mean, stddev);
  EXPECT_NEAR(mean, 0, 0.01);
  EXPECT_NEAR(stddev, 0.5, 0.01);
  mean_and_stddev(*checkpoint->read_f32("norm"), mean, stddev);
  EXPECT_NEAR(mean, 1, 0.01);
  EXPECT_NEAR(stddev, 0.1, 0.01);

  auto w = SourceMatrix::open(*checkpoint, "w", 64, 32);
  ASSERT_TRUE(w.ok()) << w.status().message();
  std::vector<float> values(200 * 333);
  ASSERT_TRUE(w->read_f32(0, 200, values).ok());
  mean_and_stddev(values, mean, stddev);
  EXPECT_NEAR(mean, 0, 0.001);
  EXPECT_NEAR(stddev, 0.022, 0.004);
  const auto scales = *checkpoint->read_f32("w_scale_inv");
  EXPECT_EQ(scales.size(), 4u * 11u);
  const auto [low, high] = std::minmax_element(scales.begin(), scales.end());
  EXPECT_GT(*high / *low, 2.5f);
  EXPECT_LT(*high / *low, 4.0f);
}

TEST(RandomCheckpoint, ValuesDependOnSeedAndNameAlone) {
  TempDir one, two;
  ASSERT_TRUE(write_random_checkpoint(one.str(), "{}", kTensors, 1 << 30, 7).ok());
  const std::vector<RandomTensor> others = {kTensors[1], {"x", {3}, DType::f32, 1, 0}, kTensors[0]};
  ASSERT_TRUE(write_random_checkpoint(two.str(), "{}", others, 1, 7).ok());
  const auto a = *Checkpoint::open(one.str()), b = *Checkpoint::open(two.str());
  EXPECT_EQ(*a.read_f32("embed"), *b.read_f32("embed"));
  EXPECT_EQ(*a.read_f32("norm"), *b.read_f32("norm"));
  EXPECT_EQ(a.find("w_scale_inv")->shape, (std::vector<int64_t>{2, 3}));  // 128 x 128
  ASSERT_TRUE(write_random_checkpoint(two.str(), "{}", others, 1, 8).ok());
  EXPECT_NE(*a.read_f32("norm"), *Checkpoint::open(two.str())->read_f32("norm"));
}

TEST(RandomCheckpoint, RefusesWhatItCannotWrite) {
  TempDir dir;
  const auto message = [&](std::vector<RandomTensor> tensors, const char* config = "{}") {
    return write_random_checkpoint(dir.str(), config, tensors, 1 << 20, 1).message();
  };
  EXPECT_THAT(message({}), HasSubstr("no tensors"));
  EXPECT_THAT(message({{"a", {0, 3}, DType::bf16}}), HasSubstr("0 is not a size"));
  EXPECT_THAT(message({{"a", {3}, DType::f8_e4m3}}), HasSubstr("expected f32, bf16 or a matrix"));
  EXPECT_THAT(message({{"a", {3}, DType::i32}}), HasSubstr("expected f32"));
  EXPECT_THAT(message({{"a", {3}}, {"a", {3}}}), HasSubstr("two tensors named 'a'"));
  EXPECT_THAT(message({{"a", {3}}}, "{"), HasSubstr("not valid JSON"));
  EXPECT_THAT(message({{"a", {3}}}, R"({"quantization_config":{"weight_block_size":[1]}})"),
              HasSubstr("not two sizes"));
  EXPECT_FALSE(std::filesystem::exists(dir.file("model.safetensors.index.json")));
}

}  // namespace
}  // namespace exo::weights
