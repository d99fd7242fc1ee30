// What int8 activations cost a layer whose input has outlier columns, and what cures it:
//   activation_outliers > table.md
// One matrix of real width, weights N(0, 1); activations N(0, 1) with a few columns 20 or 100 times
// as large, or SwiGLU products. Activations are int8 with one scale a token, as in kernels/cpu;
// weights are exact, or int4 to show the weights' own share. "Wide integers" are rows as the engine
// packs them (ops/wide_columns.h). The error is |y' - y| / |y| over all
// tokens and outputs. docs/quantisation.md draws the conclusion.
#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "ops/testing/packed.h"
#include "weights/pack.h"

namespace {

using Matrix = std::vector<float>;  // row-major

constexpr int64_t kTokens = 64, kOutputs = 256;

struct Case {
  int64_t n_in;
  float factor;     // of 0.1% of the columns; 1: no outliers
  bool quiet_rows;  // the outlier columns' weights are zero: nothing hides the others' error
  bool swiglu;      // activations silu(2 a) * b, what down_proj is fed with
};

// In-place Walsh-Hadamard transform of each run of `block` values, orthonormal.
void rotate(std::span<float> row, int64_t block) {
  const float scale = 1 / std::sqrt(static_cast<float>(block));
  for (size_t begin = 0; begin < row.size(); begin += static_cast<size_t>(block)) {
    float* x = row.data() + begin;
    for (int64_t half = 1; half < block; half *= 2) {
      for (int64_t i = 0; i < block; i += 2 * half) {
        for (int64_t j = i; j < i + half; ++j) {
          const float a = x[j], b = x[j + half];
          x[j] = a + b;
          x[j + half] = a - b;
        }
      }
    }
    for (int64_t i = 0; i < block; ++i) x[i] *= scale;
  }
}

Matrix rotated(Matrix m, int64_t n_in, int64_t block) {
  for (size_t row = 0; row < m.size(); row += static_cast<size_t>(n_in))
    rotate(std::span(m).subspan(row, static_cast<size_t>(n_in)), block);
  return m;
}

// Each row through int8 with one scale; columns for which keep(column) holds are left out of it,
// exact (a choice of columns kept in bf16 is near that).
template <typename Keep>
Matrix through_int8(Matrix x, int64_t n_in, Keep keep) {
  const auto n = static_cast<size_t>(n_in);
  for (size_t row = 0; row < x.size(); row += n) {
    float largest = 0;
    for (size_t i = 0; i < n; ++i)
      if (!keep(i)) largest = std::max(largest, std::fabs(x[row + i]));
    const float scale = largest / 127;
    for (size_t i = 0; i < n; ++i)
      if (!keep(i)) x[row + i] = scale * std::nearbyint(x[row + i] / scale);
  }
  return x;
}

// Each row as the engine packs it. n_wide: wide values a row, on average.
Matrix as_packed(Matrix x, int64_t n_in, double& n_wide) {
  using namespace exo;
  const auto n_rows = static_cast<int64_t>(x.size()) / n_in;
  ops::testing::TestContext t(ops::reference_table());
  const PackedRows rows = *ops::pack(make_view(x.data(), {n_rows, n_in}), DType::i8, t.ctx);
  n_wide = 0;
  for (int64_t r = 0; r < n_rows; ++r) {
    float* to = x.data() + r * n_in;
    for (int64_t k = 0; k < n_in; ++k)
      to[k] =
          rows.scales[r] * static_cast<float>(static_cast<int8_t>(rows.line(r, k / 64)[k % 64]));
    for (int32_t i = 0; i < rows.n_wide[r]; ++i)
      to[rows.wide_of(r)[i].column] = rows.scales[r] * static_cast<float>(rows.wide_of(r)[i].q);
    n_wide += rows.n_wide[r];
  }
  n_wide /= static_cast<double>(n_rows);
  return x;
}

Matrix through_int4(const Matrix& w, int64_t n_in) {
  using namespace exo;
  weights::PackedPart part;
  weights::pack_rows_f32(WeightFormat::int4, w, kOutputs, n_in, part);
  PackedMatrix packed;
  packed.format = WeightFormat::int4;
  packed.n_out = kOutputs;
  packed.n_in = n_in;
  packed.tiles = part.tiles.data();
  packed.row_scales = part.row_scales.data();
  return weights::unpack_f32(packed);
}

// x [kTokens, n_in] times w [kOutputs, n_in] transposed, in double.
std::vector<double> product(const Matrix& x, const Matrix& w, int64_t n_in) {
  std::vector<double> y;
  for (int64_t t = 0; t < kTokens; ++t) {
    for (int64_t o = 0; o < kOutputs; ++o) {
      double sum = 0;
      for (int64_t k = 0; k < n_in; ++k)
        sum += static_cast<double>(x[static_cast<size_t>(t * n_in + k)]) *
               w[static_cast<size_t>(o * n_in + k)];
      y.push_back(sum);
    }
  }
  return y;
}

double relative_error(const std::vector<double>& exact, const std::vector<double>& got) {
  double signal = 0, noise = 0;
  for (size_t i = 0; i < exact.size(); ++i) {
    signal += exact[i] * exact[i];
    noise += (got[i] - exact[i]) * (got[i] - exact[i]);
  }
  return std::sqrt(noise / signal);
}

// The largest power of two that divides n, at most `most`.
int64_t widest_block(int64_t n, int64_t most) {
  int64_t block = 1;
  while (block < most && n % (2 * block) == 0) block *= 2;
  return block;
}

float silu(float v) { return v / (1 + std::exp(-v)); }

std::string measure(const Case& c) {
  std::mt19937_64 random(1);
  std::normal_distribution<float> normal;
  Matrix x(static_cast<size_t>(kTokens * c.n_in)), w(static_cast<size_t>(kOutputs * c.n_in));
  for (float& v : x) v = c.swiglu ? silu(2 * normal(random)) * normal(random) : normal(random);
  for (float& v : w) v = normal(random);
  const int64_t n_outliers = c.factor == 1 ? 0 : std::max<int64_t>(1, c.n_in / 1000);
  std::vector<bool> is_outlier(static_cast<size_t>(c.n_in));
  for (int64_t i = 0; i < n_outliers; ++i) {
    const int64_t col = (2 * i + 1) * c.n_in / (2 * n_outliers);
    is_outlier[static_cast<size_t>(col)] = true;
    for (int64_t t = 0; t < kTokens; ++t) x[static_cast<size_t>(t * c.n_in + col)] *= c.factor;
    for (int64_t o = 0; c.quiet_rows && o < kOutputs; ++o)
      w[static_cast<size_t>(o * c.n_in + col)] = 0;
  }
  const std::vector<double> exact = product(x, w, c.n_in);
  const auto error = [&](const Matrix& got_x, const Matrix& got_w) {
    return 100 * relative_error(exact, product(got_x, got_w, c.n_in));
  };
  const auto nothing = [](size_t) { return false; };
  double n_wide = 0;
  const double plain = error(through_int8(x, c.n_in, nothing), w);
  const double kept = error(through_int8(x, c.n_in, [&](size_t i) { return is_outlier[i]; }), w);
  const double wide = error(as_packed(x, c.n_in, n_wide), w);
  const auto turned = [&](int64_t block) {
    return error(through_int8(rotated(x, c.n_in, block), c.n_in, nothing),
                 rotated(w, c.n_in, block));
  };
  const int64_t widest = widest_block(c.n_in, c.n_in);
  const double int4 = error(x, through_int4(w, c.n_in));
  const double turned_int4 =
      error(rotated(x, c.n_in, widest), through_int4(rotated(w, c.n_in, widest), c.n_in));
  const std::string input = c.swiglu          ? "SwiGLU"
                            : n_outliers == 0 ? "Gaussian"
                                              : fmt::format("{} x {}{}", n_outliers, c.factor,
                                                            c.quiet_rows ? ", zero weights" : "");
  return fmt::format(
      "| {} | {} | {:.2f} | {:.2f} | {:.2f} ({:.1f}) | {:.2f} | {:.2f} ({}) | {:.1f} | {:.1f} |",
      c.n_in, input, plain, kept, wide, n_wide, turned(128), turned(widest), widest, int4,
      turned_int4);
}

}  // namespace

int main() {
  fmt::print(
      "| columns | input | int8, % | outlier columns exact | wide integers (a token) | rotation "
      "128 "
      "| widest rotation | int4 weights, exact input | the same rotated |\n"
      "| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n");
  for (const int64_t n_in : {1408, 2048, 7168}) {
    fmt::print("{}\n", measure({n_in, 1, false, false}));
    fmt::print("{}\n", measure({n_in, 1, false, true}));
    for (const float factor : {20.0f, 100.0f}) {
      for (const bool quiet : {false, true})
        fmt::print("{}\n", measure({n_in, factor, quiet, false}));
    }
  }
}
