#include "weights/safetensors_writer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "weights/checkpoint.h"
#include "weights/test_files.h"

namespace exo::weights {
namespace {

using ::testing::HasSubstr;
using testing::TempDir;

TEST(SafetensorsWriter, WritesWhatTheReaderReads) {
  TempDir dir;
  const std::vector<float> f = {1, 2, 3, 4, 5, 6};
  const std::vector<int32_t> i = {7, -8};
  const std::vector<bf16> b = {to_bf16(1.5f)};
  const NamedTensor tensors[] = {
      {"logits", DType::f32, {2, 3}, std::as_bytes(std::span(f))},
      {"greedy.ids", DType::i32, {2}, std::as_bytes(std::span(i))},
      {"\"quoted\"\n", DType::bf16, {1, 1}, std::as_bytes(std::span(b))},
      {"none", DType::f32, {0, 5}, {}},
  };
  ASSERT_TRUE(write_safetensors(dir.file("o.safetensors"), tensors, {{"made_by", "exo"}}).ok());
  auto file = Checkpoint::open_file(dir.file("o.safetensors"));
  ASSERT_TRUE(file.ok()) << file.status().message();
  EXPECT_EQ(file->tensors().size(), 4u);
  EXPECT_EQ(*file->read_f32("logits"), f);
  EXPECT_EQ(file->find("logits")->shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(file->find("logits")->offset_bytes % 8, 0u);
  EXPECT_EQ(file->read_f32("\"quoted\"\n")->at(0), 1.5f);
  std::vector<int32_t> ids(2);
  ASSERT_TRUE(
      file->read_bytes(*file->find("greedy.ids"), 0, std::as_writable_bytes(std::span(ids))).ok());
  EXPECT_EQ(ids, i);
  EXPECT_TRUE(file->read_f32("none")->empty());
}

TEST(SafetensorsWriter, LeavesNothingBehindOnAnError) {
  TempDir dir;
  const std::vector<float> f = {1, 2};
  const auto bytes = std::as_bytes(std::span(f));
  const NamedTensor wrong_size[] = {{"a", DType::f32, {3}, bytes}};
  EXPECT_THAT(write_safetensors(dir.file("x"), wrong_size).message(), HasSubstr("needs 12"));
  const NamedTensor twice[] = {{"a", DType::f32, {2}, bytes}, {"a", DType::f32, {2}, bytes}};
  EXPECT_THAT(write_safetensors(dir.file("x"), twice).message(), HasSubstr("two tensors named"));
  const NamedTensor huge[] = {{"a", DType::f32, {int64_t{1} << 40, int64_t{1} << 40}, bytes}};
  EXPECT_FALSE(write_safetensors(dir.file("x"), huge).ok());
  {
    const NamedTensor one[] = {{"a", DType::f32, {2}, {}}};
    auto stream = SafetensorsStream::create(dir.file("x"), one, {});
    ASSERT_TRUE(stream.ok());
    ASSERT_TRUE(stream->append(bytes.first(4)).ok());
    EXPECT_THAT(stream->commit().message(), HasSubstr("promises"));
  }
  EXPECT_TRUE(std::filesystem::is_empty(dir.str()));
}

}  // namespace
}  // namespace exo::weights
