#include "ops/reference/matmul.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "ops/checks.h"
#include "ops/reference/bodies.h"

namespace exo::ops::reference {
namespace {

// Where column k (of the tile) of output n lies among the 1024 bytes of an fp8 tile.
int64_t fp8_offset(int64_t n, int64_t k) {
  const int64_t half = k / 32, line = k % 32 / 2;
  return line * kTileLineBytes + n / 4 * 16 + half * 8 + n % 4 * 2 + k % 2;
}

float int4_code(const std::byte* tile, int64_t n, int64_t k) {
  const auto m = static_cast<int8_t>(tile[16 * (k / kInt4GroupCols) + n]);
  const auto byte = static_cast<int>(tile[kTileLineBytes + k % 64 / 4 * 64 + 4 * n + k % 4]);
  const int q = (k < 64 ? byte & 15 : byte >> 4) - 8;
  return static_cast<float>(m * q);
}

float code_at(WeightFormat format, const std::byte* tile, int64_t n, int64_t k) {
  const auto load = [&]<typename T>(T value, int64_t offset) {
    std::memcpy(&value, tile + offset, sizeof(value));
    return value;
  };
  switch (format) {
    case WeightFormat::f32:
      return load(float{}, k * kTileLineBytes + 4 * n);
    case WeightFormat::bf16:
      return to_f32(load(bf16{}, k / 2 * kTileLineBytes + 4 * n + k % 2 * 2));
    case WeightFormat::fp8:
      return to_f32(load(f8_e4m3{}, fp8_offset(n, k)));
    case WeightFormat::int8:
      return static_cast<float>(load(int8_t{}, k / 4 * kTileLineBytes + 4 * n + k % 4));
    case WeightFormat::int4:
      return int4_code(tile, n, k);
  }
  return 0;
}

// The product of one row with the 16 outputs of a panel before row scales. T is float, or int32_t
// for i8 activations.
template <typename T>
std::array<T, kPanelRows> panel_sums(const PackedRows& x, int64_t row, const PackedMatrix& w,
                                     int64_t panel) {
  const int64_t cols = tile_cols(w.format);
  std::array<float, kPanelRows * 128> codes;
  std::array<T, kPanelRows> sums{}, block_sums{};
  for (int64_t begin = 0; begin < w.n_in; begin += cols) {
    unpack_tile(w, panel, begin / cols, codes);
    for (int64_t k = 0; k < cols && begin + k < w.n_in; ++k) {
      const T v = static_cast<T>(row_element(x, row, begin + k));
      for (int64_t n = 0; n < kPanelRows; ++n)
        block_sums[static_cast<size_t>(n)] +=
            v * static_cast<T>(codes[static_cast<size_t>(n * cols + k)]);
    }
    const int64_t end = begin + cols < w.n_in ? begin + cols : w.n_in;
    if (w.format == WeightFormat::fp8 && (end == w.n_in || end % w.k_block == 0)) {
      const float scale = w.block_scales[panel * w.n_k_blocks() + begin / w.k_block];
      for (size_t n = 0; n < kPanelRows; ++n) {
        sums[n] += static_cast<T>(scale * static_cast<float>(block_sums[n]));
        block_sums[n] = 0;
      }
    }
  }
  return w.format == WeightFormat::fp8 ? sums : block_sums;
}

}  // namespace

void unpack_tile(const PackedMatrix& w, int64_t panel, int64_t tile, std::span<float> codes) {
  const int64_t cols = tile_cols(w.format);
  const std::byte* bytes = w.panel(panel) + tile * tile_bytes(w.format);
  for (int64_t n = 0; n < kPanelRows; ++n) {
    for (int64_t k = 0; k < cols; ++k)
      codes[static_cast<size_t>(n * cols + k)] = code_at(w.format, bytes, n, k);
  }
}

float row_element(const PackedRows& x, int64_t row, int64_t k) {
  if (x.dtype == DType::f32) return reinterpret_cast<const float*>(x.data + row * x.row_bytes())[k];
  if (x.dtype == DType::bf16)
    return to_f32(reinterpret_cast<const bf16*>(x.line(row, k / 32))[k % 32]);
  return static_cast<float>(static_cast<int8_t>(x.line(row, k / 64)[k % 64]));
}

void matmul_row(const PackedRows& x, int64_t row, const PackedMatrix& w, float* out) {
  for (int64_t panel = 0; panel < w.n_panels(); ++panel) {
    std::array<float, kPanelRows> sums;
    if (x.dtype == DType::i8) {
      const auto exact = panel_sums<int32_t>(x, row, w, panel);
      for (size_t n = 0; n < kPanelRows; ++n) sums[n] = static_cast<float>(exact[n]);
    } else {
      sums = panel_sums<float>(x, row, w, panel);
    }
    for (int64_t n = panel * kPanelRows; n < w.n_out && n < (panel + 1) * kPanelRows; ++n) {
      const float x_scale = x.dtype == DType::i8 ? x.scales[row] : 1.0f;
      const float w_scale = w.row_scales != nullptr ? w.row_scales[n] : 1.0f;
      out[n] = sums[static_cast<size_t>(n - panel * kPanelRows)] * (x_scale * w_scale);
    }
  }
}

void pack_row(const float* x, int64_t row, const PackedRows& out) {
  const int64_t n = out.n_cols, padded = out.n_cols_padded();
  if (out.dtype == DType::f32) {
    auto* to = reinterpret_cast<float*>(out.data + row * out.row_bytes());
    for (int64_t k = 0; k < padded; ++k) to[k] = k < n ? x[k] : 0.0f;
    return;
  }
  if (out.dtype == DType::bf16) {
    for (int64_t k = 0; k < padded; ++k)
      reinterpret_cast<bf16*>(out.line(row, k / 32))[k % 32] = to_bf16(k < n ? x[k] : 0.0f);
    return;
  }
  float largest = 0;
  bool finite = true;
  for (int64_t k = 0; k < n; ++k) {
    finite = finite && std::isfinite(x[k]);
    largest = std::fmax(largest, std::fabs(x[k]));
  }
  const bool zero = !finite || largest < 1e-30f;
  const float inverse = zero ? 0.0f : 127.0f / largest;
  out.scales[row] = !finite ? std::numeric_limits<float>::quiet_NaN()
                    : zero  ? 0.0f
                            : largest / 127.0f;
  int32_t* sums = out.group_sums + row * (padded / kInt4GroupCols);
  for (int64_t g = 0; g < padded / kInt4GroupCols; ++g) sums[g] = 0;
  for (int64_t k = 0; k < padded; ++k) {
    const auto q = static_cast<int8_t>(k < n && !zero ? std::nearbyint(x[k] * inverse) : 0.0f);
    out.line(row, k / 64)[k % 64] = static_cast<std::byte>(q);
    sums[k / kInt4GroupCols] += q;
  }
}

Status pack_rows(const PackRowsArgs& args, OpContext&) {
  for (int64_t i = 0; i < args.x.dim(0); ++i) pack_row(args.x.row<float>(i), i, args.out);
  return ok_status();
}

Status linear(const LinearArgs& args, OpContext& ctx) {
  ArenaScope scope(*ctx.arena);
  auto* y = ctx.arena->take<float>(kPanelRows);
  if (y == nullptr) return scratch_exhausted("linear", kPanelRows * 4, *ctx.arena);
  // A panel at a time, through the same matrix cut to one panel, so that `y` is 16 values.
  for (int64_t panel = 0; panel < args.w->n_panels(); ++panel) {
    PackedMatrix w = *args.w;
    w.tiles = args.w->panel(panel);
    w.n_out = std::min(kPanelRows, args.w->n_out - panel * kPanelRows);
    if (w.row_scales != nullptr) w.row_scales += panel * kPanelRows;
    if (w.block_scales != nullptr) w.block_scales += panel * w.n_k_blocks();
    for (int64_t i = 0; i < args.x.n_rows; ++i) {
      matmul_row(args.x, i, w, y);
      float* out = args.out.row<float>(i) + panel * kPanelRows;
      for (int64_t n = 0; n < w.n_out; ++n) out[n] = args.accumulate ? out[n] + y[n] : y[n];
    }
  }
  return ok_status();
}

Status head_linear(const HeadLinearArgs& args, OpContext& ctx) {
  ArenaScope scope(*ctx.arena);
  EXO_ASSIGN_OR_RETURN(PackedRows x,
                       take_packed_rows(args.activation, 1, args.x.dim(2), *ctx.arena));
  for (int64_t i = 0; i < args.x.dim(0); ++i) {
    for (int64_t h = 0; h < args.x.dim(1); ++h) {
      pack_row(args.x.row<float>(i) + h * args.x.stride(1), 0, x);
      matmul_row(x, 0, args.w[static_cast<size_t>(h)],
                 args.out.row<float>(i) + h * args.out.stride(1));
    }
  }
  return ok_status();
}

}  // namespace exo::ops::reference
