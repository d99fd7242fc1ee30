#include "ops/reference/matmul.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "ops/checks.h"
#include "ops/reference/bodies.h"
#include "ops/wide_columns.h"

namespace exo::ops::reference {
namespace {

// Where column k (of the tile) of output n lies among the 1024 bytes of an fp8 tile.
int64_t fp8_offset(int64_t n, int64_t k) {
  const int64_t half = k / 32, line = k % 32 / 2;
  return line * kTileLineBytes + n / 4 * 16 + half * 8 + n % 4 * 2 + k % 2;
}

int64_t int4_code(const std::byte* tile, int64_t n, int64_t k) {
  const auto m = static_cast<int8_t>(tile[16 * (k / kInt4GroupCols) + n]);
  const auto byte = static_cast<int>(tile[kTileLineBytes + k % 64 / 4 * 64 + 4 * n + k % 4]);
  return m * ((k < 64 ? byte & 15 : byte >> 4) - 8);
}

template <typename T>
T load(const std::byte* p) {
  T value;
  std::memcpy(&value, p, sizeof(value));
  return value;
}

// codes[n * cols + k] = code(n, k)
template <typename F>
void fill(int64_t cols, std::span<float> codes, F code) {
  for (int64_t n = 0; n < kPanelRows; ++n) {
    for (int64_t k = 0; k < cols; ++k)
      codes[static_cast<size_t>(n * cols + k)] = static_cast<float>(code(n, k));
  }
}

constexpr int64_t kRowsAtOnce = 16;  // rows that share an unpacked tile
template <typename T>
using Sums = std::array<std::array<T, kPanelRows>, kRowsAtOnce>;

// The products of up to kRowsAtOnce rows with the 16 outputs of a panel before row scales. T is
// float, or int32_t for i8 activations.
template <typename T>
Sums<T> panel_sums(const PackedRows& x, int64_t row_begin, int64_t n_rows, const PackedMatrix& w,
                   int64_t panel) {
  const int64_t cols = tile_cols(w.format);
  std::array<float, kPanelRows * 128> codes;
  Sums<T> sums{}, block_sums{};
  for (int64_t begin = 0; begin < w.n_in; begin += cols) {
    unpack_tile(w, panel, begin / cols, codes);
    const int64_t end = std::min(begin + cols, w.n_in);
    for (int64_t r = 0; r < n_rows; ++r) {
      for (int64_t k = begin; k < end; ++k) {
        const T v = static_cast<T>(row_element(x, row_begin + r, k));
        for (int64_t n = 0; n < kPanelRows; ++n)
          block_sums[static_cast<size_t>(r)][static_cast<size_t>(n)] +=
              v * static_cast<T>(codes[static_cast<size_t>(n * cols + k - begin)]);
      }
    }
    if (w.format == WeightFormat::fp8 && (end == w.n_in || end % w.k_block == 0)) {
      const float scale = w.block_scales[panel * w.n_k_blocks() + begin / w.k_block];
      for (size_t r = 0; r < kRowsAtOnce; ++r) {
        for (size_t n = 0; n < kPanelRows; ++n)
          sums[r][n] += static_cast<T>(scale * static_cast<float>(block_sums[r][n]));
      }
      block_sums = {};
    }
  }
  return w.format == WeightFormat::fp8 ? sums : block_sums;
}

// Scales a block's sums and writes them where they belong.
template <typename T>
void write_panel(const Sums<T>& sums, const PackedRows& x, int64_t row, int64_t n_rows,
                 const PackedMatrix& w, int64_t panel, float* out, int64_t out_stride,
                 bool accumulate) {
  for (int64_t r = 0; r < n_rows; ++r) {
    for (int64_t n = panel * kPanelRows; n < std::min(w.n_out, (panel + 1) * kPanelRows); ++n) {
      const float x_scale = x.dtype == DType::i8 ? x.scales[row + r] : 1.0f;
      const float w_scale = w.row_scales != nullptr ? w.row_scales[n] : 1.0f;
      const auto sum = static_cast<float>(
          sums[static_cast<size_t>(r)][static_cast<size_t>(n - panel * kPanelRows)]);
      float& to = out[r * out_stride + n];
      to = accumulate ? to + sum * (x_scale * w_scale) : sum * (x_scale * w_scale);
    }
  }
}

// Adds what the rows' wide values contribute, an exact sum for itself.
void add_wide(const PackedRows& x, int64_t row, int64_t n_rows, const PackedMatrix& w,
              int64_t panel, float* out, int64_t out_stride) {
  std::array<float, kPanelRows * 128> codes;
  const int64_t cols = tile_cols(w.format);
  for (int64_t r = row; r < row + n_rows; ++r) {
    if (x.n_wide[r] == 0) continue;
    std::array<int32_t, kPanelRows> sums{};
    for (int32_t i = 0; i < x.n_wide[r]; ++i) {
      const auto [column, q] = x.wide_of(r)[i];
      unpack_tile(w, panel, column / cols, codes);
      for (int64_t n = 0; n < kPanelRows; ++n)
        sums[static_cast<size_t>(n)] +=
            q * static_cast<int32_t>(codes[static_cast<size_t>(n * cols + column % cols)]);
    }
    for (int64_t n = panel * kPanelRows; n < std::min(w.n_out, (panel + 1) * kPanelRows); ++n)
      out[(r - row) * out_stride + n] +=
          static_cast<float>(sums[static_cast<size_t>(n - panel * kPanelRows)]) *
          (x.scales[r] * w.row_scales[n]);
  }
}

}  // namespace

void unpack_tile(const PackedMatrix& w, int64_t panel, int64_t tile, std::span<float> codes) {
  const int64_t cols = tile_cols(w.format);
  const std::byte* b = w.panel(panel) + tile * tile_bytes(w.format);
  switch (w.format) {
    case WeightFormat::f32:
      return fill(cols, codes, [b](int64_t n, int64_t k) {
        return load<float>(b + k * kTileLineBytes + 4 * n);
      });
    case WeightFormat::bf16:
      return fill(cols, codes, [b](int64_t n, int64_t k) {
        return to_f32(load<bf16>(b + k / 2 * kTileLineBytes + 4 * n + k % 2 * 2));
      });
    case WeightFormat::fp8:
      return fill(cols, codes, [b](int64_t n, int64_t k) {
        return to_f32(load<f8_e4m3>(b + fp8_offset(n, k)));
      });
    case WeightFormat::int8:
      return fill(cols, codes, [b](int64_t n, int64_t k) {
        return load<int8_t>(b + k / 4 * kTileLineBytes + 4 * n + k % 4);
      });
    case WeightFormat::int4:
      return fill(cols, codes, [b](int64_t n, int64_t k) { return int4_code(b, n, k); });
  }
}

float row_element(const PackedRows& x, int64_t row, int64_t k) {
  if (x.dtype == DType::f32) return reinterpret_cast<const float*>(x.data + row * x.row_bytes())[k];
  if (x.dtype == DType::bf16)
    return to_f32(reinterpret_cast<const bf16*>(x.line(row, k / 32))[k % 32]);
  return static_cast<float>(static_cast<int8_t>(x.line(row, k / 64)[k % 64]));
}

void matmul_rows(const PackedRows& x, int64_t row_begin, int64_t n_rows, const PackedMatrix& w,
                 float* out, int64_t out_stride, bool accumulate) {
  for (int64_t r = 0; r < n_rows; r += kRowsAtOnce) {
    const int64_t row = row_begin + r, n = std::min(kRowsAtOnce, n_rows - r);
    float* to = out + r * out_stride;
    for (int64_t panel = 0; panel < w.n_panels(); ++panel) {
      if (x.dtype == DType::i8) {
        write_panel(panel_sums<int32_t>(x, row, n, w, panel), x, row, n, w, panel, to, out_stride,
                    accumulate);
        add_wide(x, row, n, w, panel, to, out_stride);
      } else {
        write_panel(panel_sums<float>(x, row, n, w, panel), x, row, n, w, panel, to, out_stride,
                    accumulate);
      }
    }
  }
}

namespace {

// The scale of a finite row, its wide columns listed.
RowScale scale_of(const float* x, float largest, float sum, int64_t row, const PackedRows& out) {
  const float limit = wide_limit(sum, out.n_cols);
  WideChooser chooser(x, row, out);
  float rest = 0;
  for (int64_t k = 0; k < out.n_cols; ++k) {
    if (std::fabs(x[k]) > limit) {
      chooser.offer(k);
    } else {
      rest = std::fmax(rest, std::fabs(x[k]));
    }
  }
  return chooser.finish(rest, largest);
}

}  // namespace

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
  SizeSum sum;
  for (int64_t k = 0; k < n; ++k) {
    finite = finite && std::isfinite(x[k]);
    largest = std::fmax(largest, std::fabs(x[k]));
    sum.parts[k % SizeSum::kParts] += std::fabs(x[k]);
  }
  const bool zero = !finite || largest < 1e-30f;
  RowScale s = {finite ? 0.0f : std::numeric_limits<float>::quiet_NaN(), 0.0f};
  out.n_wide[row] = 0;
  if (!zero) s = scale_of(x, largest, sum.total(), row, out);
  out.scales[row] = s.scale;
  int32_t* sums = out.group_sums + row * (padded / kInt4GroupCols);
  for (int64_t g = 0; g < padded / kInt4GroupCols; ++g) sums[g] = 0;
  for (int64_t k = 0; k < padded; ++k) {
    const auto q = static_cast<int32_t>(k < n && !zero ? std::nearbyint(x[k] * s.inverse) : 0.0f);
    out.line(row, k / 64)[k % 64] = static_cast<std::byte>(q);
    sums[k / kInt4GroupCols] += q;
  }
  move_wide(x, s.inverse, row, out);
}

Status pack_rows(const PackRowsArgs& args, OpContext&) {
  for (int64_t i = 0; i < args.x.dim(0); ++i) pack_row(args.x.row<float>(i), i, args.out);
  return ok_status();
}

Status linear(const LinearArgs& args, OpContext&) {
  matmul_rows(args.x, 0, args.x.n_rows, *args.w, args.out.ptr<float>(), args.out.stride(0),
              args.accumulate);
  return ok_status();
}

Status head_linear(const HeadLinearArgs& args, OpContext& ctx) {
  ArenaScope scope(*ctx.arena);
  EXO_ASSIGN_OR_RETURN(PackedRows x,
                       take_packed_rows(args.activation, 1, args.x.dim(2), *ctx.arena));
  for (int64_t i = 0; i < args.x.dim(0); ++i) {
    for (int64_t h = 0; h < args.x.dim(1); ++h) {
      pack_row(args.x.row<float>(i) + h * args.x.stride(1), 0, x);
      matmul_rows(x, 0, 1, args.w[static_cast<size_t>(h)],
                  args.out.row<float>(i) + h * args.out.stride(1), 0);
    }
  }
  return ok_status();
}

}  // namespace exo::ops::reference
