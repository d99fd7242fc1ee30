#include <gtest/gtest.h>

#include "tensor/buffer.h"
#include "tensor/packed.h"
#include "tensor/tensor_view.h"

namespace exo {
namespace {

TEST(DType, Bf16RoundsToNearestEven) {
  EXPECT_EQ(to_bf16(1.0f).bits, 0x3F80);
  EXPECT_EQ(to_bf16(1.00390625f).bits, 0x3F80);  // tie: to even
  EXPECT_EQ(to_bf16(1.01171875f).bits, 0x3F82);  // tie: to even
  EXPECT_EQ(to_bf16(-3.4e38f).bits, 0xFF80);     // beyond the largest bf16: infinity
  EXPECT_TRUE(std::isnan(to_f32(to_bf16(std::nanf("")))));
  for (uint32_t b = 0; b < 0x7F80; ++b)
    EXPECT_EQ(to_bf16(to_f32(bf16{static_cast<uint16_t>(b)})).bits, b);
}

TEST(DType, E4m3RoundTripsAndRoundsToNearest) {
  for (int b = 0; b < 256; ++b) {
    const f8_e4m3 v{static_cast<uint8_t>(b)};
    if ((b & 0x7F) == 0x7F) {
      EXPECT_TRUE(std::isnan(to_f32(v)));
      continue;
    }
    EXPECT_EQ(to_f8_e4m3(to_f32(v)).bits, b);
    if ((b & 0x7F) < 0x7E) {  // every midpoint goes to the even neighbour
      const float mid = (to_f32(v) + to_f32(f8_e4m3{static_cast<uint8_t>(b + 1)})) / 2;
      EXPECT_EQ(to_f8_e4m3(mid).bits, (b & 1) != 0 ? b + 1 : b);
    }
  }
  EXPECT_EQ(to_f32(f8_e4m3{1}), 0x1p-9f);
  EXPECT_EQ(to_f32(f8_e4m3{0x7E}), 448.0f);
  EXPECT_EQ(f8_e8m0_to_f32(127), 1.0f);
  EXPECT_EQ(f16_to_f32(0x3C00), 1.0f);
  EXPECT_EQ(f16_to_f32(0x0001), 0x1p-24f);
}

TEST(TensorView, SlicesAndDescribes) {
  float x[12];
  for (int i = 0; i < 12; ++i) x[i] = static_cast<float>(i);
  const TensorView v = make_view(x, {3, 4});
  EXPECT_TRUE(v.is_contiguous());
  EXPECT_EQ(v.describe(), "f32 [3, 4]");
  const TensorView c = v.rows(1, 2).columns(1, 2);
  EXPECT_FALSE(c.is_contiguous());
  EXPECT_TRUE(c.has_shape({2, 2}));
  EXPECT_EQ(c.row<float>(1)[1], 10.0f);
}

TEST(Arena, GivesBackAndTellsItsPeak) {
  auto buffer = Buffer::allocate(1024);
  ASSERT_TRUE(buffer.ok());
  Arena arena(buffer->data(), buffer->size_bytes());
  {
    ArenaScope scope(arena);
    EXPECT_NE(arena.take<float>(100), nullptr);
    EXPECT_EQ(arena.used_bytes(), 448);
    EXPECT_EQ(arena.take<float>(1000), nullptr);
  }
  EXPECT_EQ(arena.used_bytes(), 0);
  EXPECT_EQ(arena.peak_bytes(), 448 + 4032);
  EXPECT_NE(arena.take<float>(256), nullptr);
}

TEST(Packed, LinesOfRowTilesAreDistinctAndDense) {
  PackedRows rows{.dtype = DType::i8, .n_rows = 35, .n_cols = 130};
  std::vector<std::byte> memory(static_cast<size_t>(rows.data_bytes()));
  rows.data = memory.data();
  std::vector<int> seen(memory.size() / 64, 0);
  for (int64_t r = 0; r < 35; ++r) {
    for (int64_t t = 0; t < 4; ++t) ++seen[static_cast<size_t>((rows.line(r, t) - rows.data) / 64)];
  }
  for (int n : seen) EXPECT_EQ(n, 1);
  EXPECT_EQ(panel_bytes(WeightFormat::int4, 130), 2 * 1088);
}

}  // namespace
}  // namespace exo
