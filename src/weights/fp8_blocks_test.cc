#include "weights/fp8_blocks.h"

#include <gtest/gtest.h>

namespace exo::weights {
namespace {

// The meaning of the rule, element by element: is there a width, tried from the widest, such that
// every panel x k block has one scale?
int64_t brute_force(const Fp8Region& r) {
  const int64_t n_out = r.transposed ? r.n_cols : r.n_rows;
  const int64_t n_in = r.transposed ? r.n_rows : r.n_cols;
  const auto block_of = [&](int64_t out, int64_t in) {
    const int64_t row = r.row_begin + (r.transposed ? in : out), col = r.transposed ? out : in;
    return row / r.block_rows * 1000 + col / r.block_cols;
  };
  for (int64_t width = align_up(n_in, 64); width > 0; width -= 64) {
    bool ok = true;
    for (int64_t o = 0; o < n_out; ++o)
      for (int64_t i = 0; i < n_in; ++i)
        ok = ok && block_of(o, i) == block_of(o / kPanelRows * kPanelRows, i / width * width);
    if (ok) return width;
  }
  return 0;
}

TEST(Fp8Blocks, AgreesWithTheDefinition) {
  for (int64_t block_rows : {16, 24, 64, 128})
    for (int64_t block_cols : {40, 64, 128, 192})
      for (int64_t row_begin : {0, 16, 32, 40, 64, 128})
        for (int64_t n_rows : {8, 32, 64, 144})
          for (int64_t n_cols : {33, 64, 144, 288})
            for (bool transposed : {false, true}) {
              const Fp8Region r{block_rows, block_cols, row_begin, n_rows, n_cols, transposed};
              EXPECT_EQ(fp8_k_block(r), brute_force(r))
                  << block_rows << 'x' << block_cols << " rows " << row_begin << "+" << n_rows
                  << " cols " << n_cols << (transposed ? " transposed" : "");
            }
}

TEST(Fp8Blocks, DeepSeekV3KeepsEveryScale) {
  EXPECT_EQ(fp8_k_block({128, 128, 0, 24576, 1536, false}), 128);
  for (int64_t head : {0, 1, 127}) {
    EXPECT_EQ(fp8_k_block({128, 128, head * 256, 128, 512, false}), 128);        // W_UK
    EXPECT_EQ(fp8_k_block({128, 128, head * 256, 128, 512, true}), 128);         // its transpose
    EXPECT_EQ(fp8_k_block({128, 128, head * 256 + 128, 128, 512, false}), 128);  // W_UV
  }
}

TEST(Fp8Blocks, MatricesOfOneEntryTakeWhatAllAllow) {
  EXPECT_EQ(common_k_block(128, 128), 128);
  EXPECT_EQ(common_k_block(128, 192), 64);
  EXPECT_EQ(common_k_block(128, 0), 0);
  EXPECT_EQ(common_k_block(0, 64), 0);
}

}  // namespace
}  // namespace exo::weights
