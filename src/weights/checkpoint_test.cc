#include "weights/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "weights/test_files.h"

namespace exo::weights {
namespace {

using ::testing::HasSubstr;
using testing::safetensors_bytes;
using testing::TempDir;
using testing::write_bytes;

Status parse(std::string_view header, uint64_t data_bytes) {
  const std::string bytes = safetensors_bytes(header, "");
  return parse_safetensors_header(bytes, bytes.size() + data_bytes, "x.safetensors").status();
}

struct Hostile {
  const char* header;
  uint64_t data_bytes;
  const char* message;
};

TEST(SafetensorsHeader, AcceptsWhatTheFormatAllows) {
  EXPECT_TRUE(parse("{}", 0).ok());
  EXPECT_TRUE(parse(R"({"__metadata__":{"format":"pt"}}    )", 0).ok());
  EXPECT_TRUE(parse(R"({"s":{"dtype":"F32","shape":[],"data_offsets":[0,4]}})", 4).ok());
  EXPECT_TRUE(parse(R"({"e":{"dtype":"F32","shape":[0,7],"data_offsets":[2,2]},
                        "a":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]},
                        "b":{"dtype":"F8_E4M3","shape":[3,1],"data_offsets":[2,5]}})",
                    5)
                  .ok());
  for (const char* dtype : {"F8_E8M0", "I8", "U8"}) {
    const auto header =
        fmt::format(R"({{"a":{{"dtype":"{}","shape":[2],"data_offsets":[0,2]}}}})", dtype);
    EXPECT_TRUE(parse(header, 2).ok()) << dtype;
  }
}

TEST(SafetensorsHeader, TellsWhereATensorLies) {
  const std::string bytes = safetensors_bytes(
      R"({"b":{"dtype":"F16","shape":[2,3],"data_offsets":[4,16]},"a":{"dtype":"I32","shape":[1],"data_offsets":[0,4]}})",
      "");
  auto tensors = parse_safetensors_header(bytes, bytes.size() + 16, "x");
  ASSERT_TRUE(tensors.ok()) << tensors.status().message();
  const TensorInfo& b = tensors->at("b");
  EXPECT_EQ(b.dtype, DType::f16);
  EXPECT_EQ(b.shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(b.offset_bytes, bytes.size() + 4);
  EXPECT_EQ(b.n_bytes, 12u);
}

TEST(SafetensorsHeader, RefusesHostileOnes) {
  const Hostile cases[] = {
      {R"([])", 0, "does not begin with '{'"},
      {R"( {})", 0, "does not begin with '{'"},
      {R"({)", 0, "not valid JSON"},
      {R"({} x)", 0, "not valid JSON"},
      {"{\"\xff\":1}", 0, "not valid JSON"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
       4, "appears twice"},
      {R"({"a":3})", 0, "expected an object"},
      {R"({"__metadata__":{"a":1}})", 0, "__metadata__"},
      {R"({"__metadata__":"a"})", 0, "__metadata__"},
      {R"({"a":{"shape":[1],"data_offsets":[0,4]}})", 4, "'dtype' is missing"},
      {R"({"a":{"dtype":"F64","shape":[1],"data_offsets":[0,8]}})", 8, "dtype 'F64' is not known"},
      {R"({"a":{"dtype":7,"shape":[1],"data_offsets":[0,8]}})", 8, "expected a string"},
      {R"({"a":{"dtype":"F32","shape":4,"data_offsets":[0,4]}})", 4, "expected an array"},
      {R"({"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}})", 4, "shape [-1]"},
      {R"({"a":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}})", 4, "shape [1.0]"},
      {R"({"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}})", 0,
       "fits 62 bits"},
      {R"({"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}})", 0,
       "fits 62 bits"},
      {R"({"a":{"dtype":"F32","shape":[99999999999999999999999],"data_offsets":[0,4]}})", 4,
       "fits 62 bits"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0]}})", 4, "expected two offsets"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[-4,0]}})", 4, "expected two offsets"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}})", 4, "do not hold its 4 bytes"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})", 4, "do not hold its 8 bytes"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 3, "download is incomplete"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 5, "1 bytes lie behind"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})", 8, "a hole is before it"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[18446744073709551612,18446744073709551615]}})",
       8, "do not hold"},
      {R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[18446744073709551611,18446744073709551615]}})",
       8, "a hole is before it"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}})",
       6, "overlaps"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
       4, "overlaps"},
  };
  for (const Hostile& c : cases) {
    const Status status = parse(c.header, c.data_bytes);
    EXPECT_FALSE(status.ok()) << c.header;
    EXPECT_THAT(status.message(), HasSubstr(c.message)) << c.header;
    EXPECT_THAT(status.message(), HasSubstr("x.safetensors"));
  }
  // Nesting must not exhaust the stack.
  EXPECT_FALSE(parse("{\"a\":" + std::string(1 << 20, '['), 0).ok());
}

TEST(SafetensorsHeader, ChecksTheLengthBeforeAnythingElse) {
  const auto with_length = [](uint64_t length, uint64_t file_bytes) {
    std::string bytes(8, '\0');
    std::memcpy(bytes.data(), &length, 8);
    return parse_safetensors_header(bytes + "{}", file_bytes, "x").status().message();
  };
  EXPECT_EQ(with_length(2, 10), "");
  EXPECT_THAT(with_length(3, 10), HasSubstr("incomplete"));
  EXPECT_THAT(with_length(100'000'001, uint64_t{1} << 40), HasSubstr("at most 100000000"));
  EXPECT_THAT(with_length(UINT64_MAX, 10), HasSubstr("at most"));
  EXPECT_THAT(parse_safetensors_header("{}", 2, "x").status().message(), HasSubstr("at least 8"));
  EXPECT_THAT(parse_safetensors_header("", 0, "x").status().message(), HasSubstr("at least 8"));
}

TEST(SafetensorsHeader, ControlCharactersOfNamesStayOutOfMessages) {
  const Status status =
      parse(R"({"\u001b[2Jx":{"dtype":"F64","shape":[1],"data_offsets":[0,8]}})", 8);
  EXPECT_THAT(status.message(), HasSubstr("?[2Jx"));
  EXPECT_EQ(status.message().find('\x1b'), std::string::npos);
}

constexpr char kOneTensor[] = R"({"%":{"dtype":"BF16","shape":[2,2],"data_offsets":[0,8]}})";
std::string one_tensor_file(char name, std::string_view data = "\x80\x3f\x00\x40\x40\xc0\0\0") {
  std::string header = kOneTensor;
  header[header.find('%')] = name;
  return safetensors_bytes(header, std::string(data.data(), 8));
}

TEST(Checkpoint, OpensShardsAndReadsRows) {
  TempDir dir;
  write_bytes(dir.file("m1.safetensors"),
              one_tensor_file('a', std::string("\x80\x3f\0\x40\x40\xc0\0\0", 8)));
  write_bytes(dir.file("m2.safetensors"),
              one_tensor_file('b', std::string("\0\0\0\0\0\0\x80\x3f", 8)));
  write_bytes(dir.file("model.safetensors.index.json"),
              R"({"metadata":{},"weight_map":{"a":"m1.safetensors","b":"m2.safetensors"}})");
  auto checkpoint = Checkpoint::open(dir.str());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status().message();
  EXPECT_EQ(checkpoint->tensors().size(), 2u);
  EXPECT_EQ(checkpoint->total_bytes(), 16u);
  EXPECT_EQ(*checkpoint->read_f32("a"), (std::vector<float>{1, 2, -3, 0}));
  std::vector<float> row(2);
  ASSERT_TRUE(checkpoint->read_rows_f32("b", 1, 1, row).ok());
  EXPECT_EQ(row, (std::vector<float>{0, 1}));
  EXPECT_FALSE(checkpoint->read_rows_f32("b", 2, 1, row).ok());
  EXPECT_FALSE(checkpoint->read_rows_f32("b", 0, 2, row).ok());
  EXPECT_EQ(checkpoint->find("c").status().code(), StatusCode::not_found);
  std::vector<std::byte> bytes(4);
  EXPECT_FALSE(checkpoint->read_bytes(*checkpoint->find("a"), 5, bytes).ok());
}

TEST(Checkpoint, HashTellsHeadersAndDataApart) {
  TempDir dir;
  const std::string header = R"({"a":{"dtype":"U8","shape":[4096],"data_offsets":[0,4096]}})";
  const auto hash_of = [&](std::string_view name, char fill) {
    const std::string path = dir.file(std::string(name));
    write_bytes(path, safetensors_bytes(header, std::string(4096, fill)));
    auto checkpoint = Checkpoint::open_file(path);
    EXPECT_TRUE(checkpoint.ok());
    return checkpoint->header_hash();
  };
  EXPECT_EQ(hash_of("x", 1), hash_of("x", 1));
  EXPECT_NE(hash_of("x", 1), hash_of("x", 2));
  EXPECT_NE(hash_of("x", 1), hash_of("y", 1));
}

TEST(Checkpoint, NamesWhatIsWrongWithAFolder) {
  TempDir dir;
  const auto message = [&] { return Checkpoint::open(dir.str()).status().message(); };
  const auto index = [&](const std::string& map) {
    write_bytes(dir.file("model.safetensors.index.json"), R"({"weight_map":)" + map + "}");
  };
  EXPECT_THAT(message(), HasSubstr("not a checkpoint folder"));
  index("{}");
  EXPECT_THAT(message(), HasSubstr("weight_map is empty"));
  index(R"({"a":3})");
  EXPECT_THAT(message(), HasSubstr("expected a file name"));
  for (const char* bad :
       {"../m.safetensors", "/etc/passwd", "x/../../y", "", "a\\\\b", "c:x", "d/"}) {
    index(fmt::format(R"({{"a":"{}"}})", bad));
    EXPECT_THAT(message(), HasSubstr("is not the name of a file inside the folder")) << bad;
  }
  index(R"({"a":"m1.safetensors","b":"m2.safetensors"})");
  EXPECT_THAT(message(), HasSubstr("2 of 2 shards are missing (m1.safetensors, m2.safetensors)"));
  write_bytes(dir.file("m1.safetensors"), one_tensor_file('a'));
  write_bytes(dir.file("m2.safetensors"), one_tensor_file('c'));
  EXPECT_THAT(message(), HasSubstr("m2.safetensors: tensor 'b' is not in this file"));
  write_bytes(dir.file("m2.safetensors"), one_tensor_file('b').substr(0, 70));
  EXPECT_THAT(message(), HasSubstr("m2.safetensors: tensor 'b' ends at data byte 8"));
  std::filesystem::create_directories(dir.file("model.safetensors"));
  EXPECT_THAT(message(), HasSubstr("expected a regular file"));
}

TEST(Checkpoint, OpensTheGoldens) {
  const char* shared = std::getenv("EXO_SHARED");
  if (shared == nullptr) GTEST_FAIL() << "EXO_SHARED is not set";
  const std::string goldens = std::string(shared) + "/goldens/";
  size_t n_fp8 = 0;
  for (const char* name : {"v3_bf16", "v3_fp8", "v2_lite", "v2_grouped", "moonlight", "v3_mtp"}) {
    auto checkpoint = Checkpoint::open(goldens + name);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status().message();
    EXPECT_TRUE(checkpoint->has("model.embed_tokens.weight"));
    for (const auto& [tensor, info] : checkpoint->tensors()) n_fp8 += info.dtype == DType::f8_e4m3;
    auto reference = Checkpoint::open_file(goldens + name + "/goldens.safetensors");
    ASSERT_TRUE(reference.ok()) << reference.status().message();
    auto logits = reference->read_f32("p0.logits");
    ASSERT_TRUE(logits.ok());
    EXPECT_GT(logits->size(), 0u);
    EXPECT_FALSE(reference->read_f32("p0.input_ids").ok());  // I32
  }
  EXPECT_GT(n_fp8, 0u);
}

}  // namespace
}  // namespace exo::weights
