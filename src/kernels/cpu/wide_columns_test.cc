// Outlier columns of i8 activations: what is kept beside the rows, the same bits on every
// instruction set, in any batch and by any number of threads, and the error that is left.
#include "ops/wide_columns.h"

#include <gtest/gtest.h>

#include <cmath>
#include <span>

#include "kernels/cpu/isa.h"
#include "kernels/cpu/matmul.h"
#include "ops/testing/packed.h"

namespace exo::kernels::cpu {
namespace {

using ops::testing::random_floats;
using ops::testing::random_matrix;
using ops::testing::TestContext;
using ops::testing::TestMatrix;

// Rows of Gaussians with columns `factor` times as large: every (n_cols / n_outliers)-th.
std::vector<float> with_outliers(int64_t n_rows, int64_t n_cols, int64_t n_outliers, float factor,
                                 uint32_t seed) {
  auto x = random_floats(n_rows * n_cols, seed);
  for (int64_t i = 0; i < n_rows; ++i) {
    for (int64_t j = 0; j < n_outliers; ++j)
      x[static_cast<size_t>(i * n_cols + (2 * j + 1) * n_cols / (2 * n_outliers))] *= factor;
  }
  return x;
}

std::vector<float> run_linear(const ops::OpTable& table, const TestMatrix& w,
                              const std::vector<float>& x, int64_t n_rows, int n_threads = 1,
                              bool accumulate = false) {
  TestContext t(table, n_threads);
  const PackedRows packed =
      *ops::pack(make_view(x.data(), {n_rows, w.matrix.n_in}), DType::i8, t.ctx);
  std::vector<float> out(static_cast<size_t>(n_rows * w.matrix.n_out), 2.0f);
  const Status s = ops::linear({.x = packed,
                                .w = &w.matrix,
                                .out = make_view(out.data(), {n_rows, w.matrix.n_out}),
                                .accumulate = accumulate},
                               t.ctx);
  EXPECT_TRUE(s.ok()) << s.message();
  return out;
}

// x's row as the packed rows hold it.
std::vector<double> unpacked(const PackedRows& rows, int64_t row) {
  std::vector<double> x;
  for (int64_t k = 0; k < rows.n_cols; ++k)
    x.push_back(static_cast<double>(rows.scales[row]) *
                static_cast<int8_t>(rows.line(row, k / 64)[k % 64]));
  for (int32_t i = 0; i < rows.n_wide[row]; ++i) {
    const auto [column, q] = rows.wide_of(row)[i];
    EXPECT_EQ(x[static_cast<size_t>(column)], 0) << "the int8 place of a wide column";
    x[static_cast<size_t>(column)] = static_cast<double>(rows.scales[row]) * q;
  }
  return x;
}

TEST(WideColumns, AreTheLargestOfThoseTenTimesTheMean) {
  // Mean |x| is a little above 1: 9 stays, 13 and more are candidates, of which 4 fit.
  std::vector<float> x(512, 1.0f);
  for (size_t i = 0; i < x.size(); i += 2) x[i] = -1.0f;
  x[3] = 9.0f;
  x[100] = -13.0f;
  x[101] = 20.0f;
  x[200] = -20.0f;
  x[300] = 14.0f;
  x[400] = 14.0f;  // as large as the one before: the first stays
  x[511] = 30.0f;
  for (Isa isa : supported_isas()) {
    SCOPED_TRACE(to_string(isa));
    TestContext t(table(isa));
    const PackedRows rows = *ops::pack(make_view(x.data(), {1, 512}), DType::i8, t.ctx);
    ASSERT_EQ(max_wide(512), 4);
    ASSERT_EQ(rows.n_wide[0], 4);
    const int32_t columns[] = {101, 200, 300, 511};
    for (int i = 0; i < 4; ++i) EXPECT_EQ(rows.wide_of(0)[i].column, columns[i]);
    EXPECT_EQ(rows.scales[0], 14.0f / 127.0f);  // what is left reaches to column 400's
    const auto back = unpacked(rows, 0);
    for (size_t k = 0; k < x.size(); ++k) EXPECT_NEAR(back[k], x[k], rows.scales[0] * 0.501) << k;
    for (int64_t g = 0; g < 16; ++g) {
      int32_t sum = 0;
      for (int64_t k = 32 * g; k < 32 * g + 32; ++k)
        sum += static_cast<int8_t>(rows.line(0, k / 64)[k % 64]);
      EXPECT_EQ(rows.group_sums[g], sum) << g;
    }
  }
}

// Of rows with long tails, as SwiGLU's are: every way must choose the same ones, and round alike.
TEST(WideColumns, OfRowsThatHaveMoreThanFitAreTheReferences) {
  const int64_t n_rows = 24;
  for (const int64_t n : {300, 512, 1408, 1421}) {
    auto x = random_floats(n_rows * n, 9);
    for (float& v : x) v = v * v * v * v * v;
    std::vector<std::byte> expected;
    for (Isa isa : supported_isas()) {
      SCOPED_TRACE(std::string(to_string(isa)) + " " + std::to_string(n));
      TestContext t(table(isa));
      const PackedRows rows = *ops::pack(make_view(x.data(), {n_rows, n}), DType::i8, t.ctx);
      std::vector<std::byte> got(rows.data, rows.data + rows.data_bytes());
      const auto append = [&](const auto* first, int64_t count) {
        const auto bytes = std::as_bytes(std::span(first, static_cast<size_t>(count)));
        got.insert(got.end(), bytes.begin(), bytes.end());
      };
      append(rows.scales, n_rows);
      append(rows.group_sums, n_rows * rows.n_cols_padded() / kInt4GroupCols);
      int n_full = 0;
      for (int64_t i = 0; i < n_rows; ++i) {
        append(rows.wide_of(i), rows.n_wide[i]);
        n_full += rows.n_wide[i] == max_wide(n);
      }
      EXPECT_GT(n_full, n_rows / 2);
      if (expected.empty()) expected = got;
      EXPECT_EQ(got, expected);
    }
  }
}

TEST(WideColumns, NoneInEvenRowsAndInRowsThatAreNotFinite) {
  TestContext t(table(supported_isas().back()));
  auto x = random_floats(4 * 300, 1);
  x[300] = std::numeric_limits<float>::infinity();
  x[601] = std::numeric_limits<float>::quiet_NaN();
  for (size_t i = 900; i < 1200; ++i) x[i] = 0;
  x[905] = 1e-31f;  // a row of zeros, as far as int8 goes
  const PackedRows rows = *ops::pack(make_view(x.data(), {4, 300}), DType::i8, t.ctx);
  for (int64_t i = 0; i < 4; ++i) EXPECT_EQ(rows.n_wide[i], 0) << i;
}

TEST(WideColumns, AHugeValueGetsSixteenBits) {
  std::vector<float> x(256, 1.0f);
  x[77] = 1e6f;
  TestContext t(table(supported_isas().back()));
  const PackedRows rows = *ops::pack(make_view(x.data(), {1, 256}), DType::i8, t.ctx);
  ASSERT_EQ(rows.n_wide[0], 1);
  EXPECT_EQ(rows.wide_of(0)[0].q, 32767);
  EXPECT_NEAR(rows.scales[0], 1e6f / 32767.0f, 1e-5f);
}

class WideColumnsOf : public ::testing::TestWithParam<WeightFormat> {};

TEST_P(WideColumnsOf, ProductsEqualTheReferenceInAnyBatch) {
  struct Shape {
    int64_t n_rows, n_out, n_in, n_outliers;
  };
  const Shape shapes[] = {{1, 16, 128, 2},
                          {2, 17, 133, 1},
                          {5, 40, 700, 7},
                          {8, 33, 1100, 3},
                          {9, 50, 257, 1},
                          {23, 100, 515, 4},
                          {40, 257, 130, 2},
                          {70, 48, 2200, 9},
                          // Whose lists on AMX take two passes, of fewer rows than its products.
                          {40, 17, 60000, 110}};
  uint32_t seed = 10;
  for (const Shape& s : shapes) {
    const TestMatrix w = random_matrix(GetParam(), s.n_out, s.n_in, ++seed);
    auto x = with_outliers(s.n_rows, s.n_in, s.n_outliers, 60.0f, seed + 50);
    for (int64_t k = 0; k < s.n_in && s.n_rows > 2; ++k)  // an even row among them
      x[static_cast<size_t>(s.n_in + k)] = k % 2 == 0 ? 1.0f : -0.5f;
    const auto expected = run_linear(ops::reference_table(), w, x, s.n_rows);
    const auto added = run_linear(ops::reference_table(), w, x, s.n_rows, 1, true);
    for (Isa isa : supported_isas()) {
      SCOPED_TRACE(std::string(to_string(isa)) + " rows " + std::to_string(s.n_rows) + " out " +
                   std::to_string(s.n_out) + " in " + std::to_string(s.n_in));
      ASSERT_EQ(run_linear(table(isa), w, x, s.n_rows), expected);
      EXPECT_EQ(run_linear(table(isa), w, x, s.n_rows, 3), expected);
      EXPECT_EQ(run_linear(table(isa), w, x, s.n_rows, 1, true), added);
      const int64_t last = s.n_rows - 1;
      const std::vector<float> row(x.begin() + last * s.n_in, x.end());
      const std::vector<float> alone(expected.begin() + last * s.n_out, expected.end());
      EXPECT_EQ(run_linear(table(isa), w, row, 1), alone);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, WideColumnsOf,
                         ::testing::Values(WeightFormat::int8, WeightFormat::int4),
                         [](const auto& p) { return std::string(to_string(p.param)); });

// docs/quantisation.md: 0.1% of the columns 20 or 100 times as large, the worst case being weights
// of zero there, so that nothing hides the other columns' error.
TEST(WideColumns, KeepTheErrorUnderTwoPercentAtRealWidth) {
  for (const int64_t n_in : {2048, 7168}) {
    for (const float factor : {20.0f, 100.0f}) {
      for (const bool quiet : {false, true}) {
        SCOPED_TRACE(std::to_string(n_in) + " x " + std::to_string(factor) +
                     (quiet ? ", zero weights" : ""));
        const int64_t n_rows = 4, n_out = 64, n_outliers = n_in / 1000;
        TestMatrix w = random_matrix(WeightFormat::int8, n_out, n_in, 1);
        const auto x = with_outliers(n_rows, n_in, n_outliers, factor, 2);
        for (int64_t j = 0; quiet && j < n_outliers; ++j) {
          const int64_t k = (2 * j + 1) * n_in / (2 * n_outliers);
          for (int64_t n = 0; n < n_out; ++n) {
            w.weights[static_cast<size_t>(n * n_in + k)] = 0;
            w.tiles.data()[n / 16 * w.matrix.panel_bytes() + k / 64 * 1024 + k % 64 / 4 * 64 +
                           n % 16 * 4 + k % 4] = std::byte{0};
          }
        }
        std::vector<double> exact;
        std::vector<float> plain;  // with one scale for all columns
        for (int64_t i = 0; i < n_rows; ++i) {
          float largest = 0;
          for (int64_t k = 0; k < n_in; ++k)
            largest = std::max(largest, std::fabs(x[static_cast<size_t>(i * n_in + k)]));
          const double step = largest / 127.0;
          for (int64_t n = 0; n < n_out; ++n) {
            double sum = 0, rounded = 0;
            for (int64_t k = 0; k < n_in; ++k) {
              const double v = x[static_cast<size_t>(i * n_in + k)];
              sum += v * w.at(n, k);
              rounded += step * std::nearbyint(v / step) * w.at(n, k);
            }
            exact.push_back(sum);
            plain.push_back(static_cast<float>(rounded));
          }
        }
        EXPECT_GT(ops::testing::relative_error(plain, exact), 0.03);
        for (Isa isa : supported_isas())
          EXPECT_LT(ops::testing::relative_error(run_linear(table(isa), w, x, n_rows), exact), 0.02)
              << to_string(isa);
      }
    }
  }
}

}  // namespace
}  // namespace exo::kernels::cpu
