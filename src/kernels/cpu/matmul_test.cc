#include "kernels/cpu/matmul.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <tuple>

#include "kernels/cpu/matmul_x86.h"
#include "ops/testing/packed.h"

namespace exo::kernels::cpu {
namespace {

using ops::testing::goes_with;
using ops::testing::kAllFormats;
using ops::testing::random_floats;
using ops::testing::random_matrix;
using ops::testing::strided;
using ops::testing::TestContext;
using ops::testing::TestMatrix;

// What rounding may do to a sum of n products in f32, times a margin: relative to the sum of the
// products' sizes.
double sum_tolerance(int64_t n) { return 4e-7 * std::sqrt(static_cast<double>(n)) + 1e-6; }

std::vector<float> run_linear(const ops::OpTable& table, const TestMatrix& w, DType activation,
                              const std::vector<float>& x, int64_t n_rows, int n_threads = 1,
                              bool accumulate = false, int64_t extra_stride = 0) {
  TestContext t(table, n_threads);
  const int64_t n_out = w.matrix.n_out, stride = n_out + extra_stride;
  auto packed = ops::pack(make_view(x.data(), {n_rows, w.matrix.n_in}), activation, t.ctx);
  EXPECT_TRUE(packed.ok());
  std::vector<float> wide(static_cast<size_t>(n_rows * stride), 2.0f);
  const Status s = ops::linear({.x = *packed,
                                .w = &w.matrix,
                                .out = strided(wide.data(), n_rows, n_out, stride),
                                .accumulate = accumulate},
                               t.ctx);
  EXPECT_TRUE(s.ok()) << s.message();
  std::vector<float> out;
  for (int64_t i = 0; i < n_rows; ++i) {
    const auto begin = wide.begin() + i * stride;
    out.insert(out.end(), begin, begin + n_out);
    for (int64_t j = n_out; j < stride; ++j) EXPECT_EQ(begin[j], 2.0f) << "written past the row";
  }
  return out;
}

struct Shape {
  int64_t n_rows, n_out, n_in;
};

class Matmul : public ::testing::TestWithParam<std::tuple<DType, WeightFormat>> {
 protected:
  DType activation = std::get<0>(GetParam());
  WeightFormat format = std::get<1>(GetParam());
};

TEST_P(Matmul, EqualsReferenceOverRaggedShapes) {
  const Shape shapes[] = {{1, 16, 128},  {1, 1, 1},     {2, 17, 33},   {3, 48, 100},
                          {5, 31, 129},  {7, 80, 64},   {9, 33, 191},  {13, 16, 257},
                          {16, 40, 320}, {17, 96, 130}, {33, 100, 96}, {40, 257, 515}};
  uint32_t seed = 1;
  for (const Shape& s : shapes) {
    ++seed;
    const TestMatrix w = random_matrix(format, s.n_out, s.n_in, seed, 64 + 64 * (seed % 2));
    const auto x = random_floats(s.n_rows * s.n_in, seed + 100);
    const auto expected = run_linear(ops::reference_table(), w, activation, x, s.n_rows);
    for (Isa isa : supported_isas()) {
      SCOPED_TRACE(std::string(to_string(isa)) + " rows " + std::to_string(s.n_rows) + " out " +
                   std::to_string(s.n_out) + " in " + std::to_string(s.n_in));
      const auto got = run_linear(table(isa), w, activation, x, s.n_rows, 1, false, 3);
      if (activation == DType::i8) {
        ASSERT_EQ(got, expected);
        continue;
      }
      for (int64_t i = 0; i < s.n_rows; ++i) {
        for (int64_t n = 0; n < s.n_out; ++n) {
          double size = 0;
          for (int64_t k = 0; k < s.n_in; ++k)
            size += std::fabs(static_cast<double>(x[static_cast<size_t>(i * s.n_in + k)]) *
                              static_cast<double>(w.at(n, k)));
          const auto at = static_cast<size_t>(i * s.n_out + n);
          ASSERT_NEAR(got[at], expected[at], size * sum_tolerance(s.n_in)) << i << "," << n;
        }
      }
    }
  }
}

TEST_P(Matmul, SameBitsForAnyThreadsAndPlace) {
  const int64_t n_rows = 37, n_out = 150, n_in = 300;
  const TestMatrix w = random_matrix(format, n_out, n_in, 5);
  const auto x = random_floats(n_rows * n_in, 6);
  for (Isa isa : supported_isas()) {
    SCOPED_TRACE(to_string(isa));
    const auto one = run_linear(table(isa), w, activation, x, n_rows, 1);
    EXPECT_EQ(run_linear(table(isa), w, activation, x, n_rows, 2), one);
    EXPECT_EQ(run_linear(table(isa), w, activation, x, n_rows, 3), one);
    if (activation == DType::bf16) continue;  // few rows may take another instruction
    for (int64_t i : {0, 1, 15, 16, 36}) {
      const std::vector<float> row(x.begin() + i * n_in, x.begin() + (i + 1) * n_in);
      const std::vector<float> expected(one.begin() + i * n_out, one.begin() + (i + 1) * n_out);
      EXPECT_EQ(run_linear(table(isa), w, activation, row, 1), expected) << "row " << i;
    }
  }
}

TEST_P(Matmul, AccumulateAddsTheSameValue) {
  const TestMatrix w = random_matrix(format, 50, 200, 7);
  const auto x = random_floats(20 * 200, 8);
  for (Isa isa : supported_isas()) {
    SCOPED_TRACE(to_string(isa));
    auto expected = run_linear(table(isa), w, activation, x, 20);
    for (float& v : expected) v = 2.0f + v;
    EXPECT_EQ(run_linear(table(isa), w, activation, x, 20, 1, true), expected);
  }
}

TEST_P(Matmul, NotANumberAndInfinityPropagate) {
  const int64_t n_in = 200, n_out = 40;
  const TestMatrix w = random_matrix(format, n_out, n_in, 9);
  auto x = random_floats(4 * n_in, 10);
  x[static_cast<size_t>(1 * n_in + 77)] = std::nanf("");
  x[static_cast<size_t>(3 * n_in + 199)] = INFINITY;
  for (Isa isa : supported_isas()) {
    SCOPED_TRACE(to_string(isa));
    const auto out = run_linear(table(isa), w, activation, x, 4);
    for (int64_t n = 0; n < n_out; ++n) {
      EXPECT_TRUE(std::isfinite(out[static_cast<size_t>(n)]));
      EXPECT_TRUE(std::isnan(out[static_cast<size_t>(n_out + n)]));
      EXPECT_TRUE(std::isfinite(out[static_cast<size_t>(2 * n_out + n)]));
      EXPECT_FALSE(std::isfinite(out[static_cast<size_t>(3 * n_out + n)]));
    }
  }
}

std::vector<std::tuple<DType, WeightFormat>> pairs() {
  std::vector<std::tuple<DType, WeightFormat>> all;
  for (DType a : {DType::f32, DType::bf16, DType::i8}) {
    for (WeightFormat f : kAllFormats) {
      if (goes_with(a, f)) all.emplace_back(a, f);
    }
  }
  return all;
}

INSTANTIATE_TEST_SUITE_P(Pairs, Matmul, ::testing::ValuesIn(pairs()), [](const auto& p) {
  return std::string(to_string(std::get<0>(p.param))) + "_" +
         std::string(to_string(std::get<1>(p.param)));
});

TEST(Isa, NamesAreParsedAndUnknownOnesListTheKnown) {
  EXPECT_EQ(*parse_isa("auto"), supported_isas().back());
  EXPECT_EQ(*parse_isa("reference"), Isa::reference);
  const auto r = parse_isa("sse9");
  ASSERT_FALSE(r.ok());
  EXPECT_NE(r.status().message().find("reference"), std::string::npos);
  for (Isa isa : supported_isas()) EXPECT_EQ(table(isa).name, to_string(isa));
}

TEST(FindMatmul, AForcedInstructionSetHasItsOwnCode) {
  const auto isas = supported_isas();
  for (size_t i = 1; i < isas.size(); ++i) {
    for (size_t j = 1; j < i; ++j) {
      const auto kernels = [](Isa isa) {
        return std::array{find_matmul(isa, DType::i8, WeightFormat::int8).kernel,
                          find_matmul(isa, DType::bf16, WeightFormat::bf16).kernel};
      };
      EXPECT_NE(kernels(isas[i]), kernels(isas[j]));
      if (has_avx512(isas[i]) == has_avx512(isas[j])) continue;  // one vector width
      EXPECT_NE(find_matmul(isas[i], DType::f32, WeightFormat::bf16).kernel,
                find_matmul(isas[j], DType::f32, WeightFormat::bf16).kernel);
    }
  }
}

// The scales of checkpoints have 24 bits. AMX multiplies by code * scale as bf16 (but one row as
// all other instruction sets do: scaled sums of codes).
TEST(MatmulFp8, ScalesOfManyBits) {
  const int64_t n_out = 70, n_in = 900;
  for (int64_t k_block : {128, 192}) {  // the last one in part
    TestMatrix w = random_matrix(WeightFormat::fp8, n_out, n_in, 7, k_block);
    const auto factors = random_floats(static_cast<int64_t>(w.block_scales.size()), 8);
    for (size_t i = 0; i < factors.size(); ++i) w.block_scales[i] *= 1.0f + std::fabs(factors[i]);
    for (int64_t n_rows : {1, 2, 16, 40, 70, 120}) {
      const auto x = random_floats(n_rows * n_in, 9);
      for (Isa isa : supported_isas()) {
        SCOPED_TRACE(std::string(to_string(isa)) + " rows " + std::to_string(n_rows));
        const bool rounded = isa == Isa::amx && n_rows >= kAmxFp8Rows;
        const auto out = run_linear(table(isa), w, DType::bf16, x, n_rows);
        for (int64_t i = 0; i < n_rows; i += 1 + n_rows / 5) {
          for (int64_t n = 0; n < n_out; ++n) {
            double sum = 0, size = 0;
            for (int64_t k = 0; k < n_in; ++k) {
              const auto block = n / 16 * w.matrix.n_k_blocks() + k / k_block;
              const float exact = w.codes[static_cast<size_t>(n * n_in + k)] *
                                  w.block_scales[static_cast<size_t>(block)];
              const double weight = rounded ? to_f32(to_bf16(exact)) : exact;
              const double v = to_f32(to_bf16(x[static_cast<size_t>(i * n_in + k)]));
              sum += weight * v;
              size += std::fabs(weight * v);
            }
            ASSERT_NEAR(out[static_cast<size_t>(i * n_out + n)], sum, size * 2e-6) << i << "," << n;
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace exo::kernels::cpu
