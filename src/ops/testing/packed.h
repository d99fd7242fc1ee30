/// Test support: packed matrices of random codes and scales, with the f32 weights they stand for,
/// and helpers over tensors. Written from the layouts of tensor/packed.h alone, independently of
/// the packers of weights/ and of the unpacking in ops/reference/.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "ops/ops.h"
#include "tensor/buffer.h"
#include "tensor/packed.h"

namespace exo::ops::testing {

/// A packed matrix that owns its memory, and its values.
struct TestMatrix {
  PackedMatrix matrix;
  std::vector<float> codes;    ///< [n_out, n_in] before scales (int8: q, int4: m * q, fp8: e4m3)
  std::vector<float> weights;  ///< [n_out, n_in]
  std::vector<float> row_scales, block_scales;
  std::vector<int32_t> row_sums;
  Buffer tiles;  ///< 64-byte aligned

  float at(int64_t n, int64_t k) const { return weights[static_cast<size_t>(n * matrix.n_in + k)]; }
};

inline constexpr WeightFormat kAllFormats[] = {WeightFormat::f32, WeightFormat::bf16,
                                               WeightFormat::fp8, WeightFormat::int8,
                                               WeightFormat::int4};

inline bool goes_with(DType activation, WeightFormat format) {
  if (activation == DType::f32) return true;
  const bool integer = format == WeightFormat::int8 || format == WeightFormat::int4;
  if (activation == DType::i8) return integer;
  return !integer && format != WeightFormat::f32;
}

/// Deterministic numbers with about the spread of real activations.
inline std::vector<float> random_floats(int64_t n, uint32_t seed, float spread = 1.0f) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal(0.0f, spread);
  std::vector<float> v(static_cast<size_t>(n));
  for (float& x : v) x = normal(rng);
  return v;
}

namespace detail {

inline void put_code(TestMatrix& m, int64_t n, int64_t k, std::mt19937& rng, int8_t multiplier) {
  const WeightFormat f = m.matrix.format;
  const int64_t cols = tile_cols(f), t = k / cols, c = k % cols, i = n % kPanelRows;
  std::byte* tile = m.tiles.data() + n / kPanelRows * m.matrix.panel_bytes() + t * tile_bytes(f);
  const auto store = [&](int64_t offset, auto value) {
    std::memcpy(tile + offset, &value, sizeof(value));
  };
  std::normal_distribution<float> normal;
  float& code = m.codes[static_cast<size_t>(n * m.matrix.n_in + k)];
  switch (f) {
    case WeightFormat::f32:
      code = normal(rng);
      store(c * 64 + i * 4, code);
      break;
    case WeightFormat::bf16: {
      const bf16 b = to_bf16(normal(rng));
      code = to_f32(b);
      store(c / 2 * 64 + i * 4 + c % 2 * 2, b);
      break;
    }
    case WeightFormat::fp8: {
      const f8_e4m3 b = to_f8_e4m3(normal(rng) * 64.0f);
      code = to_f32(b);
      store(c % 32 / 2 * 64 + i / 4 * 16 + c / 32 * 8 + i % 4 * 2 + c % 2, b);
      break;
    }
    case WeightFormat::int8: {
      const auto q = static_cast<int8_t>(static_cast<int>(rng() % 255) - 127);
      code = q;
      m.row_sums[static_cast<size_t>(n)] += q;
      store(c / 4 * 64 + i * 4 + c % 4, q);
      break;
    }
    case WeightFormat::int4: {
      // |m * q| <= 127 keeps -8 from going with |m| = 16, which no m reaches: 15 * 8 = 120.
      const int q = static_cast<int>(rng() % 16) - 8;
      code = static_cast<float>(multiplier * q);
      const int64_t at = 64 + c % 64 / 4 * 64 + i * 4 + c % 4;
      const int old = static_cast<int>(tile[at]);
      const int stored = q + 8;
      store(at, static_cast<uint8_t>(c < 64 ? (old & 0xF0) | stored : (old & 0x0F) | stored << 4));
      break;
    }
  }
}

inline void fill_row(TestMatrix& m, int64_t n, std::mt19937& rng) {
  const PackedMatrix& w = m.matrix;
  int8_t multiplier = 1;
  for (int64_t k = 0; k < w.n_in; ++k) {
    if (w.format == WeightFormat::int4 && k % kInt4GroupCols == 0) {
      multiplier = static_cast<int8_t>(1 + rng() % 15);
      if (rng() % 2 == 0) multiplier = static_cast<int8_t>(-multiplier);
      m.tiles.data()[n / 16 * w.panel_bytes() + k / 128 * tile_bytes(w.format) + k % 128 / 32 * 16 +
                     n % 16] = static_cast<std::byte>(multiplier);
    }
    put_code(m, n, k, rng, multiplier);
  }
}

}  // namespace detail

/// A random [n_out, n_in] matrix whose rows have length about 1 (so that products stay near the
/// inputs' size). k_block: fp8 only.
inline TestMatrix random_matrix(WeightFormat format, int64_t n_out, int64_t n_in, uint32_t seed,
                                int64_t k_block = 128, bool gate_up = false) {
  std::mt19937 rng(seed);
  TestMatrix m;
  PackedMatrix& w = m.matrix;
  w = {.format = format, .gate_up = gate_up, .n_out = n_out, .n_in = n_in, .k_block = k_block};
  m.tiles = *Buffer::allocate(w.weight_bytes());
  // Rows beyond n_out are zero; int4 stores zero as 8, in both nibbles.
  std::fill_n(m.tiles.data(), w.weight_bytes(),
              static_cast<std::byte>(format == WeightFormat::int4 ? 0x88 : 0));
  if (format == WeightFormat::int4) {
    for (int64_t t = 0; t < w.weight_bytes(); t += tile_bytes(format))
      std::fill_n(m.tiles.data() + t, 64, std::byte{1});
  }
  const auto n_rows = static_cast<size_t>(w.n_panels() * kPanelRows);
  m.codes.resize(static_cast<size_t>(n_out * n_in));
  m.row_sums.resize(n_rows);
  for (int64_t n = 0; n < n_out; ++n) detail::fill_row(m, n, rng);

  const float unit = 1.0f / std::sqrt(static_cast<float>(n_in));
  std::uniform_real_distribution<float> around(0.5f, 2.0f);
  const float code_size = format == WeightFormat::fp8                                    ? 64.0f
                          : format == WeightFormat::int8 || format == WeightFormat::int4 ? 50.0f
                                                                                         : 1.0f;
  m.weights.resize(m.codes.size());
  if (format == WeightFormat::int8 || format == WeightFormat::int4) {
    m.row_scales.resize(n_rows);
    for (float& s : m.row_scales) s = around(rng) * unit / code_size;
    w.row_scales = m.row_scales.data();
  }
  if (format == WeightFormat::int8) w.row_sums = m.row_sums.data();
  if (format == WeightFormat::fp8) {
    m.block_scales.resize(static_cast<size_t>(w.n_panels() * w.n_k_blocks()));
    // Of four bits, as codes are: code * scale is a bf16 number, and every way of applying scales
    // is exact (MatmulFp8.ScalesOfManyBits tests others).
    for (float& s : m.block_scales) {
      int exponent = 0;
      const float mantissa = std::frexp(around(rng) * unit / code_size, &exponent);
      s = std::ldexp(std::round(mantissa * 16.0f) / 16.0f, exponent);
    }
    w.block_scales = m.block_scales.data();
  }
  for (int64_t n = 0; n < n_out; ++n) {
    for (int64_t k = 0; k < n_in; ++k) {
      float scale = 1.0f;
      if (w.row_scales != nullptr) scale = w.row_scales[n];
      if (w.block_scales != nullptr) scale = w.block_scales[n / 16 * w.n_k_blocks() + k / k_block];
      const auto at = static_cast<size_t>(n * n_in + k);
      m.weights[at] = m.codes[at] * scale;
    }
  }
  w.tiles = m.tiles.data();
  return m;
}

/// Plain gate and up rows of a random gate_up matrix: row j of the MLP's hidden size.
inline int64_t gate_row(int64_t j) { return j / 16 * 32 + j % 16; }
inline int64_t up_row(int64_t j) { return gate_row(j) + 16; }

/// A context with its own pool and arena.
struct TestContext {
  explicit TestContext(const OpTable& table, int n_threads = 1, int64_t arena_bytes = 64 << 20)
      : pool(n_threads),
        memory(*Buffer::allocate(arena_bytes)),
        arena(memory.data(), memory.size_bytes()) {
    ctx.table = &table;
    ctx.pool = &pool;
    ctx.arena = &arena;
  }
  ThreadPool pool;
  Buffer memory;
  Arena arena;
  OpContext ctx;
};

/// A view of rows with a stride of its own: [n_rows, n_cols] f32 inside [n_rows, stride].
inline TensorView strided(float* data, int64_t n_rows, int64_t n_cols, int64_t stride) {
  TensorView v = make_view(data, {n_rows, n_cols});
  v.strides[0] = stride;
  return v;
}

/// ||a - b|| / ||b||.
template <typename T>
double relative_error(const std::vector<float>& a, const std::vector<T>& b) {
  double difference = 0, size = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double expected = b[i];
    difference += (a[i] - expected) * (a[i] - expected);
    size += expected * expected;
  }
  return size == 0 ? std::sqrt(difference) : std::sqrt(difference / size);
}

}  // namespace exo::ops::testing
