#include "weights/source_matrix.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "weights/test_files.h"

namespace exo::weights {
namespace {

using ::testing::HasSubstr;
using testing::safetensors_bytes;
using testing::TempDir;
using testing::write_bytes;

// w [rows, cols] F8_E4M3 with every byte its own, and its scales.
struct Fp8File {
  TempDir dir;
  std::string bytes;
  std::vector<float> scales;
  int64_t rows, cols, grid_cols;
  Checkpoint checkpoint;

  Fp8File(int64_t n_rows, int64_t n_cols, int64_t grid_r, int64_t grid_c,
          const char* scale_dtype = "F32")
      : rows(n_rows), cols(n_cols), grid_cols(grid_c) {
    for (int64_t i = 0; i < rows * cols; ++i) {
      const auto b = static_cast<uint8_t>((i * 131 + i / 251) & 0xFF);
      bytes.push_back(static_cast<char>((b & 0x7F) == 0x7F ? 0x3C : b));  // no NaN
    }
    std::string data = bytes;
    for (int64_t i = 0; i < grid_r * grid_c; ++i) {
      const auto exponent = static_cast<uint8_t>(120 + i % 16);
      scales.push_back(f8_e8m0_to_f32(exponent));
      if (std::string_view(scale_dtype) == "F8_E8M0") {
        data.push_back(static_cast<char>(exponent));
      } else {
        scales.back() = 0.37f + static_cast<float>(i);
        data.append(reinterpret_cast<const char*>(&scales.back()), 4);
      }
    }
    write_bytes(
        dir.file("x"),
        safetensors_bytes(
            fmt::format(
                R"({{"w":{{"dtype":"F8_E4M3","shape":[{},{}],"data_offsets":[0,{}]}},"w_scale_inv":{{"dtype":"{}","shape":[{},{}],"data_offsets":[{},{}]}}}})",
                rows, cols, rows * cols, scale_dtype, grid_r, grid_c, rows * cols, data.size()),
            data));
    auto opened = Checkpoint::open_file(dir.file("x"));
    if (!opened.ok()) ADD_FAILURE() << opened.status().message();
    checkpoint = *std::move(opened);
  }

  uint8_t byte(int64_t r, int64_t c) const {
    return static_cast<uint8_t>(bytes[static_cast<size_t>(r * cols + c)]);
  }
  float weight(int64_t r, int64_t c, int64_t block_r, int64_t block_c) const {
    return to_f32(f8_e4m3{byte(r, c)}) *
           scales[static_cast<size_t>(r / block_r * grid_cols + c / block_c)];
  }
};

TEST(SourceMatrix, Fp8WithRaggedBlocksSlicedAndTransposed) {
  for (const char* scale_dtype : {"F32", "F8_E8M0"}) {
    const Fp8File file(37, 45, 5, 4, scale_dtype);
    auto whole = SourceMatrix::open(file.checkpoint, "w", 8, 12);
    ASSERT_TRUE(whole.ok()) << whole.status().message();
    auto slice = whole->slice_rows(5, 30);
    ASSERT_TRUE(slice.ok());
    auto inner = slice->slice_rows(6, 20);  // stored rows 11 .. 30
    ASSERT_TRUE(inner.ok());
    std::vector<float> out(3 * 45);
    ASSERT_TRUE(inner->read_f32(2, 3, out).ok());
    for (int64_t r = 0; r < 3; ++r) {
      for (int64_t c = 0; c < 45; ++c)
        ASSERT_EQ(out[static_cast<size_t>(r * 45 + c)], file.weight(13 + r, c, 8, 12));
    }
    auto transposed = inner->transposed();
    ASSERT_TRUE(transposed.ok());
    EXPECT_EQ(transposed->n_rows(), 45);
    EXPECT_EQ(transposed->n_cols(), 20);
    auto part = transposed->slice_rows(7, 31);
    ASSERT_TRUE(part.ok());
    std::vector<float> t(4 * 20);
    std::vector<f8_e4m3> raw(4 * 20);
    ASSERT_TRUE(part->read_f32(9, 4, t).ok());
    ASSERT_TRUE(part->read_fp8(9, 4, raw).ok());
    for (int64_t r = 0; r < 4; ++r) {
      for (int64_t c = 0; c < 20; ++c) {
        ASSERT_EQ(t[static_cast<size_t>(r * 20 + c)], file.weight(11 + c, 16 + r, 8, 12));
        ASSERT_EQ(raw[static_cast<size_t>(r * 20 + c)].bits, file.byte(11 + c, 16 + r));
      }
    }
    EXPECT_FALSE(transposed->transposed().ok());
  }
}

TEST(SourceMatrix, TellsWhetherPanelsKeepTheScales) {
  const Fp8File file(256, 320, 2, 3);
  auto whole = SourceMatrix::open(file.checkpoint, "w", 128, 128);
  ASSERT_TRUE(whole.ok());
  const auto k_block = [&](int64_t begin, int64_t n, bool transposed) {
    auto slice = whole->slice_rows(begin, n);
    return transposed ? slice->transposed()->fp8_k_block() : slice->fp8_k_block();
  };
  EXPECT_EQ(whole->fp8_k_block(), 128);
  EXPECT_EQ(k_block(16, 240, false), 128);  // panels stay inside blocks of rows
  EXPECT_EQ(k_block(8, 128, false), 0);     // rows 120..135 share a panel
  EXPECT_EQ(k_block(8, 120, false), 128);   // ... but not if the slice ends before
  EXPECT_EQ(k_block(128, 128, true), 128);
  EXPECT_EQ(k_block(64, 192, true), 64);  // the first block holds 64 columns only
  EXPECT_EQ(k_block(96, 96, true), 0);
  EXPECT_EQ(k_block(96, 32, true), 64);  // one scale a row

  const Fp8File small(64, 96, 8, 8);
  EXPECT_EQ(SourceMatrix::open(small.checkpoint, "w", 8, 12)->fp8_k_block(), 0);
}

TEST(SourceMatrix, RefusesScalesThatDoNotFit) {
  const Fp8File file(37, 45, 5, 4);
  const auto message = [](const Checkpoint& c, int64_t rows, int64_t cols) {
    return SourceMatrix::open(c, "w", rows, cols).status().message();
  };
  EXPECT_THAT(message(file.checkpoint, 8, 8), HasSubstr("are [5, 4], expected [5, 6]"));
  EXPECT_THAT(message(file.checkpoint, 0, 0), HasSubstr("weight_block_size"));
  const Fp8File bad_dtype(8, 8, 2, 2, "I32");
  EXPECT_THAT(message(bad_dtype.checkpoint, 4, 4), HasSubstr("expected F32 or F8_E8M0"));
  EXPECT_FALSE(SourceMatrix::open(file.checkpoint, "none", 8, 12).ok());
  EXPECT_FALSE(SourceMatrix::open(file.checkpoint, "w", 8, 12)->slice_rows(30, 8).ok());

  TempDir dir;
  const auto open = [&](std::string_view header, size_t n_bytes, std::string_view data = {}) {
    write_bytes(dir.file("y"),
                safetensors_bytes(header, data.empty() ? std::string(n_bytes, '\0') : data));
    auto checkpoint = Checkpoint::open_file(dir.file("y"));
    return SourceMatrix::open(*checkpoint, "w", 4, 4).status().message();
  };
  EXPECT_THAT(open(R"({"w":{"dtype":"F8_E4M3","shape":[2,2],"data_offsets":[0,4]}})", 4),
              HasSubstr("'w_scale_inv' is missing"));
  EXPECT_THAT(open(R"({"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 8),
              HasSubstr("has 1 dimensions, expected a matrix"));
  EXPECT_THAT(open(R"({"w":{"dtype":"I32","shape":[2,1],"data_offsets":[0,8]}})", 8),
              HasSubstr("is i32, expected"));
  EXPECT_THAT(
      open(
          R"({"w":{"dtype":"F8_E4M3","shape":[2,2],"data_offsets":[0,4]},"w_scale_inv":{"dtype":"F32","shape":[1,1],"data_offsets":[4,8]}})",
          8, std::string_view("\0\0\0\0\0\0\xc0\x7f", 8)),
      HasSubstr("not finite"));
}

TEST(SourceMatrix, WidensTheOtherTypes) {
  TempDir dir;
  const float f = 1.5f;
  std::string data(reinterpret_cast<const char*>(&f), 4);
  data += std::string("\x00\x3c\x00\xc0", 4);  // f16 1, -2
  data += std::string("\x80\x3f\x00\xc0", 4);  // bf16 1, -2
  write_bytes(
      dir.file("x"),
      safetensors_bytes(
          R"({"a":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]},"b":{"dtype":"F16","shape":[1,2],"data_offsets":[4,8]},"c":{"dtype":"BF16","shape":[1,2],"data_offsets":[8,12]}})",
          data));
  auto checkpoint = Checkpoint::open_file(dir.file("x"));
  ASSERT_TRUE(checkpoint.ok());
  std::vector<float> one(1), two(2);
  auto a = SourceMatrix::open(*checkpoint, "a", 0, 0);
  ASSERT_TRUE(a->read_f32(0, 1, one).ok());
  EXPECT_EQ(one[0], 1.5f);
  EXPECT_FALSE(a->read_f32(0, 2, two).ok());
  std::vector<f8_e4m3> raw(1);
  EXPECT_FALSE(a->read_fp8(0, 1, raw).ok());
  EXPECT_EQ(a->fp8_k_block(), 0);
  for (const char* name : {"b", "c"}) {
    auto m = SourceMatrix::open(*checkpoint, name, 0, 0);
    ASSERT_TRUE(m->read_f32(0, 1, two).ok());
    EXPECT_EQ(two, (std::vector<float>{1, -2}));
  }
}

}  // namespace
}  // namespace exo::weights
