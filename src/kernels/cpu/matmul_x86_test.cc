// What matmul_test.cc's small shapes don't reach in the kernels written by hand: several passes of
// rows, many K blocks and panel pairs, deep K, tasks that are a part of the panels and rows, and
// every fp8 code.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>
#include <numeric>
#include <random>

#include "kernels/cpu/matmul.h"
#include "kernels/cpu/vector.h"
#include "ops/testing/packed.h"

namespace exo::kernels::cpu {
namespace {

using ops::testing::random_floats;
using ops::testing::random_matrix;
using ops::testing::TestContext;
using ops::testing::TestMatrix;

// One task on `isa`, into an output whose other places keep `before`.
std::vector<float> run_task(Isa isa, const TestMatrix& w, const PackedRows& x, int64_t row_begin,
                            int64_t n_rows, int64_t panel_begin, int64_t n_panels,
                            bool accumulate = false) {
  std::vector<float> out(static_cast<size_t>(n_rows * w.matrix.n_out), 3.0f);
  const Buffer scratch = *Buffer::allocate(kMatmulScratchBytes);
  find_matmul(isa, x.dtype, w.matrix.format)({.x = &x,
                                              .row_begin = row_begin,
                                              .n_rows = n_rows,
                                              .w = &w.matrix,
                                              .panel_begin = panel_begin,
                                              .n_panels = n_panels,
                                              .out = out.data() + panel_begin * kPanelRows,
                                              .out_stride = w.matrix.n_out,
                                              .accumulate = accumulate,
                                              .scratch = scratch.data()});
  return out;
}

struct LargeShape {
  int64_t n_rows, n_out, n_in;
};

class MatmulX86 : public ::testing::TestWithParam<WeightFormat> {
 protected:
  WeightFormat format = GetParam();
  DType activation = ops::activation_dtype(format, false);
};

TEST_P(MatmulX86, LargeShapesEqualPlainSums) {
  const LargeShape shapes[] = {
      {70, 136, 1100}, {1100, 40, 200}, {600, 17, 2500}, {33, 50, 16500}, {8, 20, 40000}};
  for (const LargeShape& s : shapes) {
    const TestMatrix w = random_matrix(format, s.n_out, s.n_in, 3, 128);
    TestContext t(ops::reference_table());
    const auto x = random_floats(s.n_rows * s.n_in, 4);
    const PackedRows packed =
        *ops::pack(make_view(x.data(), {s.n_rows, s.n_in}), activation, t.ctx);
    std::vector<std::vector<float>> results;
    for (Isa isa : supported_isas()) {
      if (isa == Isa::reference) continue;
      SCOPED_TRACE(std::string(to_string(isa)) + " rows " + std::to_string(s.n_rows));
      results.push_back(run_task(isa, w, packed, 0, s.n_rows, 0, w.matrix.n_panels()));
      // All instruction sets alike for integers; every row of a sample against a plain sum.
      if (activation == DType::i8) {
        ASSERT_EQ(results.back(), results.front());
      }
      for (int64_t i = 0; i < s.n_rows; i += s.n_rows / 7) {
        for (int64_t n = 0; n < s.n_out; n += 3) {
          double sum = 0, size = 0;
          for (int64_t k = 0; k < s.n_in; ++k) {
            const std::byte* line = packed.line(i, k / (activation == DType::i8 ? 64 : 32));
            const double v = activation == DType::i8
                                 ? static_cast<int8_t>(line[k % 64]) * packed.scales[i]
                                 : to_f32(reinterpret_cast<const bf16*>(line)[k % 32]);
            sum += v * w.at(n, k);
            size += std::fabs(v * w.at(n, k));
          }
          ASSERT_NEAR(results.back()[static_cast<size_t>(i * s.n_out + n)], sum, size * 2e-5)
              << i << "," << n;
        }
      }
    }
  }
}

TEST_P(MatmulX86, APartOfTheRowsAndPanelsGivesThoseValuesAlone) {
  const int64_t n_rows = 90, n_out = 107, n_in = 700;
  const TestMatrix w = random_matrix(format, n_out, n_in, 5, 192);
  TestContext t(ops::reference_table());
  const auto x = random_floats(n_rows * n_in, 6);
  const PackedRows packed = *ops::pack(make_view(x.data(), {n_rows, n_in}), activation, t.ctx);
  for (Isa isa : supported_isas()) {
    if (isa == Isa::reference) continue;
    SCOPED_TRACE(to_string(isa));
    const auto whole = run_task(isa, w, packed, 0, n_rows, 0, w.matrix.n_panels());
    for (const auto& [row, rows] : {std::pair<int64_t, int64_t>{16, 74}, {32, 40}, {48, 20}}) {
      const auto part = run_task(isa, w, packed, row, rows, 3, 4, true);
      for (int64_t i = 0; i < rows; ++i) {
        for (int64_t n = 0; n < n_out; ++n) {
          const float got = part[static_cast<size_t>(i * n_out + n)];
          if (n < 48) {
            ASSERT_EQ(got, 3.0f) << "outside the task";
          } else {
            ASSERT_EQ(got, 3.0f + whole[static_cast<size_t>((row + i) * n_out + n)])
                << i << "," << n;
          }
        }
      }
    }
  }
}

// AMX writes outputs of 16 MiB past the caches, but for the panel that isn't full.
TEST_P(MatmulX86, LargeOutputsAreTheSame) {
  constexpr int64_t kRows = 2100, kOut = 56, kIn = 64, kStride = 2048;
  const TestMatrix w = random_matrix(format, kOut, kIn, 3, 128);
  const auto x = random_floats(kRows * kIn, 4);
  TestContext t(ops::reference_table());
  const PackedRows packed = *ops::pack(make_view(x.data(), {kRows, kIn}), activation, t.ctx);
  const Buffer scratch = *Buffer::allocate(kMatmulScratchBytes);
  const Buffer out = *Buffer::allocate(kRows * kStride * 4);
  auto* floats = reinterpret_cast<float*>(out.data());
  for (Isa isa : supported_isas()) {
    if (isa == Isa::reference) continue;
    SCOPED_TRACE(to_string(isa));
    const auto expected = run_task(isa, w, packed, 0, kRows, 0, w.matrix.n_panels());
    std::fill_n(floats, kRows * kStride, 3.0f);
    find_matmul(isa, activation, format)({.x = &packed,
                                          .row_begin = 0,
                                          .n_rows = kRows,
                                          .w = &w.matrix,
                                          .panel_begin = 0,
                                          .n_panels = w.matrix.n_panels(),
                                          .out = floats,
                                          .out_stride = kStride,
                                          .scratch = scratch.data()});
    for (int64_t r = 0; r < kRows; ++r) {
      const float* row = floats + r * kStride;
      ASSERT_TRUE(std::equal(row, row + kOut, expected.begin() + r * kOut)) << "row " << r;
      ASSERT_EQ(row[kOut], 3.0f) << "row " << r;
    }
  }
}

// Calls f(isa, rows, first row, number of rows) for tasks of few and many rows, some of
// them with wide values.
template <typename F>
void for_tasks(DType activation, int64_t n_in, F f) {
  for (int64_t n_rows : {1, 2, 4, 5, 16, 47, 70, 130}) {
    auto x = random_floats(n_rows * n_in, 4);
    for (int64_t i = 0; i < n_rows; i += 3) x[static_cast<size_t>(i * n_in + 70)] = 90.0f;
    for (Isa isa : supported_isas()) {
      if (isa == Isa::reference) continue;
      SCOPED_TRACE(std::string(to_string(isa)) + " rows " + std::to_string(n_rows));
      TestContext t(ops::reference_table());
      const PackedRows packed = *ops::pack(make_view(x.data(), {n_rows, n_in}), activation, t.ctx);
      const int64_t row = n_rows > 16 ? 16 : 0;
      f(isa, packed, row, n_rows - row);
    }
  }
}

void run_epilogue(Isa isa, const TestMatrix& w, const PackedRows& x, int64_t row, int64_t n_rows,
                  const Epilogue& epilogue) {
  const auto matmul = find_matmul(isa, x.dtype, w.matrix.format);
  const Buffer scratch = *Buffer::allocate(kMatmulScratchBytes);
  const int64_t stride = w.matrix.n_panels() * kPanelRows;
  std::vector<float> buffer(static_cast<size_t>(matmul.needs_buffer(n_rows) ? n_rows * stride : 0));
  matmul({.x = &x,
          .row_begin = row,
          .n_rows = n_rows,
          .w = &w.matrix,
          .panel_begin = 0,
          .n_panels = w.matrix.n_panels(),
          .out = buffer.data(),
          .out_stride = stride,
          .epilogue = epilogue,
          .scratch = scratch.data()});
}

TEST_P(MatmulX86, SiluMulHasTheBitsOfProductsThatWereWritten) {
  constexpr int64_t kPairs = 5, kOut = kPairs * 2 * kPanelRows, kStride = kPairs * 16 + 3;
  const TestMatrix w = random_matrix(format, kOut, 300, 3, 128, true);
  for_tasks(activation, 300, [&](Isa isa, const PackedRows& x, int64_t row, int64_t n) {
    const auto products = run_task(isa, w, x, row, n, 0, w.matrix.n_panels());
    std::vector<float> expected(static_cast<size_t>((row + n) * kStride), 3.0f);
    auto got = expected;
    vector_kernels(isa).silu_mul(products.data(), kOut, n, kPairs, expected.data() + row * kStride,
                                 kStride);
    run_epilogue(isa, w, x, row, n,
                 {.kind = Epilogue::Kind::silu_mul, .to = got.data(), .stride = kStride});
    EXPECT_EQ(got, expected);
    EXPECT_NE(got[static_cast<size_t>(row * kStride)], 3.0f);
  });
}

TEST_P(MatmulX86, ProductsAreAddedToTheirRows) {
  constexpr int64_t kOut = 140, kStride = 157;  // nine panels, the last in part
  const TestMatrix w = random_matrix(format, kOut, 300, 3, 128);
  for_tasks(activation, 300, [&](Isa isa, const PackedRows& x, int64_t row, int64_t n) {
    const auto products = run_task(isa, w, x, row, n, 0, w.matrix.n_panels());
    std::vector<int32_t> rows;
    std::vector<float> scales;
    for (int64_t i = 0; i < row + n; ++i) {
      rows.push_back(static_cast<int32_t>(2 * (row + n - i)));
      scales.push_back(0.3f + 0.01f * static_cast<float>(i));
    }
    std::vector<float> expected(static_cast<size_t>((2 * (row + n) + 1) * kStride), 3.0f);
    auto got = expected;
    vector_kernels(isa).add_scaled_rows(scales.data() + row, products.data(), kOut,
                                        rows.data() + row, n, kOut, expected.data(), kStride);
    run_epilogue(isa, w, x, row, n,
                 {.kind = Epilogue::Kind::add_scaled_rows,
                  .to = got.data(),
                  .stride = kStride,
                  .rows = rows.data(),
                  .scales = scales.data()});
    EXPECT_EQ(got, expected);
    EXPECT_NE(got[static_cast<size_t>(rows.back() * kStride)], 3.0f);
  });
}

INSTANTIATE_TEST_SUITE_P(Formats, MatmulX86,
                         ::testing::Values(WeightFormat::bf16, WeightFormat::fp8,
                                           WeightFormat::int8, WeightFormat::int4),
                         [](const auto& p) { return std::string(to_string(p.param)); });

// Codes at the ends of their ranges and all of one sign, where sums of words would overflow first.
void largest_integers(WeightFormat format) {
  const int64_t n_out = 32, n_in = 256, n_rows = 40;
  TestMatrix w = random_matrix(format, n_out, n_in, 11);
  auto* tiles = reinterpret_cast<uint8_t*>(w.tiles.data());
  const bool is_int4 = format == WeightFormat::int4;
  const int64_t cols = is_int4 ? 128 : 64, tile_bytes = is_int4 ? 1088 : 1024;
  // Outputs have the least code, the largest, or both in turn; multipliers likewise.
  const auto code = [&](int64_t n, int64_t k) {
    const bool largest = n % 3 == 1 || (n % 3 == 2 && k % 2 == 0);
    return is_int4 ? (largest ? 15 : 0) : largest ? 127 : -128;
  };
  const auto multiplier = [](int64_t n, int64_t k) { return (n + k / 32) % 2 == 0 ? 15 : -15; };
  std::memset(tiles, 0, static_cast<size_t>(w.matrix.weight_bytes()));
  for (int64_t n = 0; n < n_out; ++n) {
    for (int64_t k = 0; k < n_in; ++k) {
      uint8_t* tile = tiles + (n / 16 * (n_in / cols) + k / cols) * tile_bytes;
      uint8_t* at = tile + (is_int4 ? 64 : 0) + k % 64 / 4 * 64 + n % 16 * 4 + k % 4;
      if (!is_int4) {
        *at = static_cast<uint8_t>(code(n, k));
        continue;
      }
      *at = static_cast<uint8_t>(*at | code(n, k) << (k % 128 < 64 ? 0 : 4));
      tile[k % 128 / 32 * 16 + n % 16] = static_cast<uint8_t>(multiplier(n, k));
    }
  }
  std::vector<float> x(static_cast<size_t>(n_rows * n_in));
  for (int64_t i = 0; i < n_rows; ++i) {
    for (int64_t k = 0; k < n_in; ++k)
      x[static_cast<size_t>(i * n_in + k)] =
          i % 4 == 0 || (i % 4 == 1 && k % 2 == 0) || (i % 4 == 2 && k % 4 < 2) ? 1.0f : -1.0f;
  }
  TestContext t(ops::reference_table());
  const PackedRows packed = *ops::pack(make_view(x.data(), {n_rows, n_in}), DType::i8, t.ctx);
  for (Isa isa : supported_isas()) {
    if (isa == Isa::reference) continue;
    SCOPED_TRACE(std::string(to_string(isa)) + " " + std::string(to_string(format)));
    const auto many = run_task(isa, w, packed, 0, n_rows, 0, 2);
    const auto few = run_task(isa, w, packed, 32, 8, 0, 2);
    for (int64_t i = 0; i < n_rows; ++i) {
      for (int64_t n = 0; n < n_out; ++n) {
        int32_t sum = 0;
        for (int64_t k = 0; k < n_in; ++k) {
          const int weight = is_int4 ? multiplier(n, k) * (code(n, k) - 8) : code(n, k);
          sum += weight * (x[static_cast<size_t>(i * n_in + k)] > 0 ? 127 : -127);
        }
        const float expected =
            static_cast<float>(sum) * (packed.scales[i] * w.row_scales[static_cast<size_t>(n)]);
        ASSERT_EQ(many[static_cast<size_t>(i * n_out + n)], expected) << i << "," << n;
        if (i >= 32) {
          ASSERT_EQ(few[static_cast<size_t>((i - 32) * n_out + n)], expected) << i << "," << n;
        }
      }
    }
  }
}
TEST(MatmulIntegers, TheLargestDontOverflow) {
  largest_integers(WeightFormat::int8);
  largest_integers(WeightFormat::int4);
}

// A row of x that picks one column gives the weight itself: each code, subnormal ones and zeros
// too.
TEST(MatmulFp8, EveryCodeIsWidenedExactly) {
  TestMatrix w = random_matrix(WeightFormat::fp8, 16, 64, 7);
  for (float& s : w.block_scales) s = 1.0f;
  for (int first = 0; first < 256; first += 64) {
    // Output 0's 64 columns are the codes first .. first + 63.
    for (int k = 0; k < 64; ++k)
      w.tiles.data()[k % 32 / 2 * 64 + k / 32 * 8 + k % 2] = static_cast<std::byte>(first + k);
    for (int64_t n_rows : {64, 2}) {
      std::vector<float> x(static_cast<size_t>(n_rows * 64), 0.0f);
      for (int64_t k = 0; k < 64; ++k) {
        const int code = first + static_cast<int>(k);
        // A NaN weight makes every row's sum NaN: those codes go as 0 here.
        if ((code & 127) == 127)
          w.tiles.data()[k % 32 / 2 * 64 + k / 32 * 8 + k % 2] = std::byte{0};
        if (k < n_rows) x[static_cast<size_t>(k * 64 + k)] = 1.0f;
      }
      TestContext t(ops::reference_table());
      const PackedRows packed = *ops::pack(make_view(x.data(), {n_rows, 64}), DType::bf16, t.ctx);
      for (Isa isa : supported_isas()) {
        if (isa == Isa::reference) continue;
        SCOPED_TRACE(to_string(isa));
        const auto out = run_task(isa, w, packed, 0, n_rows, 0, 1);
        for (int64_t k = 0; k < n_rows; ++k) {
          const auto code = static_cast<uint8_t>(first + k);
          const float expected = (code & 127) == 127 ? 0.0f : to_f32(f8_e4m3{code});
          ASSERT_EQ(out[static_cast<size_t>(k * 16)], expected) << "code " << int{code};
        }
      }
    }
  }
}

// Lines without zeros and subnormal codes may be widened in a quicker way, and where many have
// some, all may go another way: tiles with so large a part of such codes.
TEST(MatmulFp8, FewAndManySmallCodes) {
  constexpr double kSmall[] = {0, 0.001, 0, 0.05, 1, 0};
  constexpr int64_t kOut = 80, kIn = 64 * std::size(kSmall);
  std::mt19937 rng(5);
  std::uniform_real_distribution<double> uniform(0, 1);
  TestMatrix w = random_matrix(WeightFormat::fp8, kOut, kIn, 7);
  for (float& s : w.block_scales) s = 1.0f;
  std::vector<float> weights(kOut * kIn);
  for (int64_t n = 0; n < kOut; ++n) {
    for (int64_t k = 0; k < kIn; ++k) {
      // Below 1 in size, so that every sum is exact.
      const int64_t tile = n / 16 * (kIn / 64) + k / 64, row = n % 16, in_tile = k % 64;
      const int magnitude = uniform(rng) < kSmall[k / 64] ? static_cast<int>(rng() % 8)
                                                          : 8 + static_cast<int>(rng() % 48);
      const auto code = static_cast<uint8_t>(magnitude | (rng() % 2) << 7);
      w.tiles.data()[tile * 1024 + in_tile % 32 / 2 * 64 + row / 4 * 16 + in_tile / 32 * 8 +
                     row % 4 * 2 + k % 2] = static_cast<std::byte>(code);
      weights[static_cast<size_t>(n * kIn + k)] = to_f32(f8_e4m3{code});
    }
  }
  for (int64_t n_rows : {1, 2, 5, 8, 16, 40}) {
    std::vector<float> x(static_cast<size_t>(n_rows * kIn));
    for (float& v : x) v = static_cast<float>(static_cast<int>(rng() % 5) - 2);
    TestContext t(ops::reference_table());
    const PackedRows packed = *ops::pack(make_view(x.data(), {n_rows, kIn}), DType::bf16, t.ctx);
    for (Isa isa : supported_isas()) {
      if (isa == Isa::reference) continue;
      SCOPED_TRACE(to_string(isa));
      const auto out = run_task(isa, w, packed, 0, n_rows, 0, kOut / 16);
      for (int64_t r = 0; r < n_rows; ++r) {
        for (int64_t n = 0; n < kOut; ++n) {
          const float expected = std::inner_product(x.begin() + r * kIn, x.begin() + (r + 1) * kIn,
                                                    weights.begin() + n * kIn, 0.0f);
          ASSERT_EQ(out[static_cast<size_t>(r * kOut + n)], expected) << r << ", " << n;
        }
      }
    }
  }
}

TEST(MatmulFp8, ANanCodeGivesNan) {
  // In each output's place, and in columns of both halves of a tile and of two tiles.
  for (const auto& [output, k] : {std::pair<int64_t, int64_t>{0, 0},
                                  {1, 33},
                                  {2, 70},
                                  {5, 1},
                                  {7, 127},
                                  {8, 64},
                                  {11, 31},
                                  {14, 96},
                                  {15, 63}}) {
    TestMatrix w = random_matrix(WeightFormat::fp8, 16, 128, 8);
    const int64_t in_tile = k % 64;
    w.tiles.data()[k / 64 * 1024 + in_tile % 32 / 2 * 64 + output / 4 * 16 + in_tile / 32 * 8 +
                   output % 4 * 2 + k % 2] = k % 3 == 0 ? std::byte{0x7F} : std::byte{0xFF};
    for (int64_t n_rows : {1, 3, 7, 40}) {
      TestContext t(ops::reference_table());
      const auto x = random_floats(n_rows * 128, 9);
      const PackedRows packed = *ops::pack(make_view(x.data(), {n_rows, 128}), DType::bf16, t.ctx);
      for (Isa isa : supported_isas()) {
        if (isa == Isa::reference) continue;
        SCOPED_TRACE(to_string(isa));
        const auto out = run_task(isa, w, packed, 0, n_rows, 0, 1);
        for (int64_t i = 0; i < n_rows * 16; ++i)
          ASSERT_EQ(std::isnan(out[static_cast<size_t>(i)]), i % 16 == output) << i;
      }
    }
  }
}

}  // namespace
}  // namespace exo::kernels::cpu
