#include "weights/pack.h"

#include <fmt/core.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <memory>

#include "weights/fp8_blocks.h"
#include "weights/quantise.h"

namespace exo::weights {
namespace {

constexpr auto kRows = static_cast<size_t>(kPanelRows);
constexpr auto kLine = static_cast<size_t>(kTileLineBytes);
constexpr auto kGroup = static_cast<size_t>(kInt4GroupCols);

size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

template <typename T>
void store(std::byte* at, T value) {
  std::memcpy(at, &value, sizeof value);
}
template <typename T>
T load(const std::byte* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

// Where one panel goes; only what its format has.
struct PanelOut {
  std::byte* tiles = nullptr;
  float* row_scales = nullptr;    // [16]
  int32_t* row_sums = nullptr;    // [16]
  float* block_scales = nullptr;  // [n_k_blocks]
};

// A thread's memory for a panel of the integer formats.
struct Scratch {
  struct Free {
    void operator()(float* p) const { std::free(p); }
  };
  std::unique_ptr<float, Free> columns;  // [n_k, 16], 64-byte aligned
  size_t n_columns = 0;
  std::vector<int8_t> q, m;

  void reserve(size_t n_k) {
    if (n_k <= n_columns) return;
    columns.reset(static_cast<float*>(std::aligned_alloc(kLine, n_k * kLine)));
    n_columns = n_k;
    q.resize(n_k * kRows);
    m.resize(n_k / kGroup * kRows);
  }
};

// Byte offsets of the formats with two-byte and one-byte lines (tensor/packed.h).
size_t fp8_offset(size_t k, size_t n) {
  return k / 64 * 1024 + k % 32 / 2 * kLine + n / 4 * 16 + k % 64 / 32 * 8 + n % 4 * 2 + k % 2;
}

void pack_panel_f32(const float* rows, size_t n_rows, size_t n_in, const PanelOut& out) {
  std::memset(out.tiles, 0,
              static_cast<size_t>(panel_bytes(WeightFormat::f32, static_cast<int64_t>(n_in))));
  for (size_t n = 0; n < n_rows; ++n) {
    for (size_t k = 0; k < n_in; ++k) store(out.tiles + k * kLine + n * 4, rows[n * n_in + k]);
  }
}

void pack_panel_bf16(const float* rows, size_t n_rows, size_t n_in, const PanelOut& out) {
  std::memset(out.tiles, 0,
              static_cast<size_t>(panel_bytes(WeightFormat::bf16, static_cast<int64_t>(n_in))));
  for (size_t begin = 0; begin < n_in; begin += 32) {  // tile by tile, so that stores stay in L1
    const size_t end = std::min(begin + 32, n_in);
    for (size_t n = 0; n < n_rows; ++n) {
      for (size_t k = begin; k < end; ++k)
        store(out.tiles + k / 2 * kLine + n * 4 + k % 2 * 2, to_bf16(rows[n * n_in + k]));
    }
  }
}

void pack_panel_fp8(const f8_e4m3* rows, size_t n_rows, size_t n_in, const PanelOut& out) {
  std::memset(out.tiles, 0,
              static_cast<size_t>(panel_bytes(WeightFormat::fp8, static_cast<int64_t>(n_in))));
  for (size_t begin = 0; begin < n_in; begin += 64) {
    const size_t end = std::min(begin + 64, n_in);
    for (size_t n = 0; n < n_rows; ++n) {
      for (size_t k = begin; k < end; ++k)
        out.tiles[fp8_offset(k, n)] = std::byte{rows[n * n_in + k].bits};
    }
  }
}

// Puts the rows side by side for the quantisers, each scaled by a power of two to a largest value
// in [1, 2), so that no square over- or underflows. factors: what undoes it; NaN for a row with a
// value that isn't finite (its columns are zeros then, like those of rows beyond the last).
void spread_rows(const float* rows, size_t n_rows, size_t n_in, size_t n_k, float* columns,
                 float* factors) {
  float scale[kRows] = {};
  for (size_t n = 0; n < n_rows; ++n) {
    const float* row = rows + n * n_in;
    int32_t bits = 0;  // of the largest |value|: they grow with it, infinities and NaN on top
    for (size_t k = 0; k < n_in; ++k)
      bits = std::max(bits, std::bit_cast<int32_t>(row[k]) & INT32_MAX);
    const auto largest = std::bit_cast<float>(bits);
    factors[n] = std::isfinite(largest) ? 0.0f : std::numeric_limits<float>::quiet_NaN();
    if (!std::isfinite(largest) || largest < 0x1p-100f) continue;  // the latter: as good as zeros
    const int exponent = std::ilogb(largest);
    scale[n] = std::ldexp(1.0f, -exponent);
    factors[n] = std::ldexp(1.0f, exponent);
  }
  std::memset(columns, 0, n_k * kLine);
  for (size_t begin = 0; begin < n_in; begin += 64) {
    const size_t end = std::min(begin + 64, n_in);
    for (size_t n = 0; n < n_rows; ++n) {
      if (scale[n] == 0) continue;
      for (size_t k = begin; k < end; ++k) columns[k * kRows + n] = rows[n * n_in + k] * scale[n];
    }
  }
}

void pack_panel_int8(const float* rows, size_t n_rows, size_t n_in, const PanelOut& out,
                     Scratch& scratch) {
  const size_t n_k = round_up(n_in, static_cast<size_t>(tile_cols(WeightFormat::int8)));
  scratch.reserve(n_k);
  float factors[kRows] = {};
  spread_rows(rows, n_rows, n_in, n_k, scratch.columns.get(), factors);
  quantise_panel_int8(scratch.columns.get(), static_cast<int64_t>(n_k), out.row_scales,
                      scratch.q.data());
  const int8_t* q = scratch.q.data();
  std::fill_n(out.row_sums, kRows, 0);
  for (size_t k = 0; k < n_k; k += 4) {  // one line
    for (size_t n = 0; n < kRows; ++n) {
      for (size_t i = 0; i < 4; ++i) {
        const int8_t value = q[(k + i) * kRows + n];
        out.tiles[k / 4 * kLine + n * 4 + i] = static_cast<std::byte>(value);
        out.row_sums[n] += value;
      }
    }
  }
  for (size_t n = 0; n < kRows; ++n) out.row_scales[n] *= factors[n];
}

void pack_panel_int4(const float* rows, size_t n_rows, size_t n_in, const PanelOut& out,
                     Scratch& scratch) {
  const size_t n_k = round_up(n_in, static_cast<size_t>(tile_cols(WeightFormat::int4)));
  scratch.reserve(n_k);
  float factors[kRows] = {};
  spread_rows(rows, n_rows, n_in, n_k, scratch.columns.get(), factors);
  quantise_panel_int4(scratch.columns.get(), static_cast<int64_t>(n_k), out.row_scales,
                      scratch.m.data(), scratch.q.data());
  std::byte* tile = out.tiles;
  for (size_t begin = 0; begin < n_k; begin += 128) {
    std::memcpy(tile, scratch.m.data() + begin / kGroup * kRows, kLine);
    const int8_t* low = scratch.q.data() + begin * kRows;
    const int8_t* high = low + 64 * kRows;
    std::byte* line = tile + kLine;
    for (size_t k = 0; k < 64; k += 4, line += kLine) {
      for (size_t n = 0; n < kRows; ++n) {
        for (size_t i = 0; i < 4; ++i) {
          const size_t at = (k + i) * kRows + n;
          line[n * 4 + i] = static_cast<std::byte>((low[at] + 8) | (high[at] + 8) << 4);
        }
      }
    }
    tile = line;
  }
  for (size_t n = 0; n < kRows; ++n) out.row_scales[n] *= factors[n];
}

void pack_panel(WeightFormat format, const float* rows, size_t n_rows, size_t n_in,
                const PanelOut& out, Scratch& scratch) {
  switch (format) {
    case WeightFormat::f32:
      return pack_panel_f32(rows, n_rows, n_in, out);
    case WeightFormat::bf16:
      return pack_panel_bf16(rows, n_rows, n_in, out);
    case WeightFormat::int8:
      return pack_panel_int8(rows, n_rows, n_in, out, scratch);
    case WeightFormat::int4:
      return pack_panel_int4(rows, n_rows, n_in, out, scratch);
    case WeightFormat::fp8:  // packed from its bytes, never from f32
      return;
  }
}

bool is_integer(WeightFormat f) { return f == WeightFormat::int8 || f == WeightFormat::int4; }

// Room for `n` more panels.
void grow(WeightFormat format, size_t n, size_t n_in, size_t n_k_blocks, PackedPart& part) {
  part.tiles.resize(part.tiles.size() +
                    n * static_cast<size_t>(panel_bytes(format, static_cast<int64_t>(n_in))));
  if (is_integer(format)) part.row_scales.resize(part.row_scales.size() + n * kRows);
  if (format == WeightFormat::int8) part.row_sums.resize(part.row_sums.size() + n * kRows);
  part.block_scales.resize(part.block_scales.size() + n * n_k_blocks);
}

// The place of panel `i`, counted from a part's beginning.
PanelOut panel_of(WeightFormat format, size_t i, size_t n_in, size_t n_k_blocks, PackedPart& part) {
  const size_t bytes = static_cast<size_t>(panel_bytes(format, static_cast<int64_t>(n_in)));
  return {.tiles = part.tiles.data() + i * bytes,
          .row_scales = part.row_scales.data() + i * kRows,
          .row_sums = part.row_sums.data() + i * kRows,
          .block_scales = part.block_scales.data() + i * n_k_blocks};
}

// One task of pack_matrix: reads the rows of panel `panel` (of the result) and packs them.
struct PanelReader {
  const SourceMatrix& source;
  const SourceMatrix* up;
  PackSpec spec;

  Status pack(int64_t panel, const PanelOut& out, std::vector<float>& rows,
              std::vector<f8_e4m3>& bytes, Scratch& scratch) const {
    const SourceMatrix& from = up != nullptr && panel % 2 == 1 ? *up : source;
    const int64_t row = (up != nullptr ? panel / 2 : panel) * kPanelRows;
    const int64_t n_rows = std::min(kPanelRows, from.n_rows() - row), n_in = from.n_cols();
    const auto n_values = static_cast<size_t>(n_rows * n_in);
    if (spec.format == WeightFormat::fp8) {
      bytes.resize(n_values);
      EXO_RETURN_IF_ERROR(from.read_fp8(row, n_rows, bytes));
      pack_panel_fp8(bytes.data(), static_cast<size_t>(n_rows), static_cast<size_t>(n_in), out);
      for (int64_t k = 0; k < n_in; k += spec.k_block)
        out.block_scales[k / spec.k_block] = from.scale_at(row, k);
      return ok_status();
    }
    rows.resize(n_values);
    EXO_RETURN_IF_ERROR(from.read_f32(row, n_rows, rows));
    pack_panel(spec.format, rows.data(), static_cast<size_t>(n_rows), static_cast<size_t>(n_in),
               out, scratch);
    if (!is_integer(spec.format)) return ok_status();
    for (int64_t n = 0; n < n_rows; ++n) {
      if (!std::isfinite(out.row_scales[n])) {
        return data_loss(fmt::format(
            "tensor '{}': row {} holds a NaN or an infinity, which {} cannot hold; is the "
            "checkpoint damaged? (bf16 would keep the value)",
            from.name(), row + n, to_string(spec.format)));
      }
    }
    return ok_status();
  }
};

Status check_shapes(const SourceMatrix& source, const SourceMatrix* up, const PackSpec& spec) {
  if (up != nullptr && (up->n_rows() != source.n_rows() || up->n_cols() != source.n_cols())) {
    return data_loss(fmt::format("tensors '{}' [{}, {}] and '{}' [{}, {}]: expected equal shapes",
                                 source.name(), source.n_rows(), source.n_cols(), up->name(),
                                 up->n_rows(), up->n_cols()));
  }
  if (source.n_rows() == 0 || source.n_cols() == 0)
    return data_loss(fmt::format("tensor '{}' is empty", source.name()));
  if (spec.format == WeightFormat::fp8 && (spec.k_block <= 0 || spec.k_block % 64 != 0)) {
    return internal_error(fmt::format("tensor '{}': fp8 with scale blocks of {} columns",
                                      source.name(), spec.k_block));
  }
  return ok_status();
}

}  // namespace

void pack_rows_f32(WeightFormat format, std::span<const float> rows, int64_t n_rows, int64_t n_in,
                   PackedPart& out) {
  Scratch scratch;
  const auto columns = static_cast<size_t>(n_in), total = static_cast<size_t>(n_rows);
  const size_t n = static_cast<size_t>(n_panels(n_rows));
  const size_t before =
      out.tiles.size() / std::max<size_t>(1, static_cast<size_t>(panel_bytes(format, n_in)));
  grow(format, n, columns, 0, out);
  for (size_t i = 0; i < n; ++i) {
    pack_panel(format, rows.data() + i * kRows * columns, std::min(kRows, total - i * kRows),
               columns, panel_of(format, before + i, columns, 0, out), scratch);
  }
}

void pack_rows_fp8(std::span<const f8_e4m3> rows, std::span<const float> panel_scales,
                   int64_t n_rows, int64_t n_in, PackedPart& out) {
  const auto columns = static_cast<size_t>(n_in), total = static_cast<size_t>(n_rows);
  const size_t n = static_cast<size_t>(n_panels(n_rows));
  const size_t old_bytes = out.tiles.size();
  grow(WeightFormat::fp8, n, columns, 0, out);
  for (size_t i = 0; i < n; ++i) {
    PanelOut to = panel_of(WeightFormat::fp8, i, columns, 0, out);
    to.tiles += old_bytes;
    pack_panel_fp8(rows.data() + i * kRows * columns, std::min(kRows, total - i * kRows), columns,
                   to);
  }
  out.block_scales.insert(out.block_scales.end(), panel_scales.begin(), panel_scales.end());
}

PackSpec resolve_spec(WeightFormat wanted, std::span<const SourceMatrix> sources,
                      std::span<const SourceMatrix> ups) {
  if (wanted != WeightFormat::fp8) return {.format = wanted, .k_block = 0};
  bool all_fp8 = true, any_fp8 = false;
  int64_t k_block = -1;  // not known yet; 0: none fits
  for (const auto matrices : {sources, ups}) {
    for (const SourceMatrix& m : matrices) {
      const bool is_fp8 = m.dtype() == DType::f8_e4m3;
      all_fp8 = all_fp8 && is_fp8;
      any_fp8 = any_fp8 || is_fp8;
      const int64_t own = m.fp8_k_block();
      k_block = k_block == -1 ? own : common_k_block(k_block, own);
    }
  }
  if (!any_fp8) return {.format = WeightFormat::bf16, .k_block = 0};
  if (!all_fp8 || k_block == 0) return {.format = WeightFormat::f32, .k_block = 0};
  return {.format = WeightFormat::fp8, .k_block = k_block};
}

Status pack_matrix(const SourceMatrix& source, const SourceMatrix* up, const PackSpec& spec,
                   ThreadPool& pool, const std::function<Status(const PackedPart&)>& sink) {
  EXO_RETURN_IF_ERROR(check_shapes(source, up, spec));
  const auto n_in = static_cast<size_t>(source.n_cols());
  const int64_t total = n_panels(source.n_rows()) * (up != nullptr ? 2 : 1);
  const size_t n_k_blocks = spec.format == WeightFormat::fp8
                                ? static_cast<size_t>(ceil_div(source.n_cols(), spec.k_block))
                                : 0;
  // Parts of about 16 MB keep the sink's writes large and the memory small.
  constexpr int64_t kPartBytes = int64_t{16} << 20;
  const int64_t per_part =
      std::clamp(kPartBytes / panel_bytes(spec.format, source.n_cols()), int64_t{1}, total);
  const PanelReader reader{source, up, spec};
  const auto n_threads = static_cast<size_t>(pool.n_threads());
  std::vector<std::vector<float>> rows(n_threads);
  std::vector<std::vector<f8_e4m3>> bytes(n_threads);
  std::vector<Scratch> scratch(n_threads);
  for (int64_t begin = 0; begin < total; begin += per_part) {
    const int64_t n = std::min(per_part, total - begin);
    PackedPart part;
    grow(spec.format, static_cast<size_t>(n), n_in, n_k_blocks, part);
    std::vector<Status> statuses(static_cast<size_t>(n));
    pool.parallel_for(n, [&](int64_t task, int thread) {
      const auto i = static_cast<size_t>(task), t = static_cast<size_t>(thread);
      statuses[i] = reader.pack(begin + task, panel_of(spec.format, i, n_in, n_k_blocks, part),
                                rows[t], bytes[t], scratch[t]);
    });
    for (Status& status : statuses) EXO_RETURN_IF_ERROR(std::move(status));
    EXO_RETURN_IF_ERROR(sink(part));
  }
  return ok_status();
}

namespace {

float unpack_one(const PackedMatrix& w, int64_t row, int64_t col) {
  const std::byte* panel = w.panel(row / kPanelRows);
  const auto n = static_cast<size_t>(row % kPanelRows), k = static_cast<size_t>(col);
  switch (w.format) {
    case WeightFormat::f32:
      return load<float>(panel + k * kLine + n * 4);
    case WeightFormat::bf16:
      return to_f32(load<bf16>(panel + k / 2 * kLine + n * 4 + k % 2 * 2));
    case WeightFormat::fp8:
      return to_f32(load<f8_e4m3>(panel + fp8_offset(k, n))) *
             w.block_scales[row / kPanelRows * w.n_k_blocks() + col / w.k_block];
    case WeightFormat::int8:
      return w.row_scales[row] *
             static_cast<float>(load<int8_t>(panel + k / 4 * kLine + n * 4 + k % 4));
    case WeightFormat::int4: {
      const std::byte* tile = panel + k / 128 * static_cast<size_t>(tile_bytes(w.format));
      const int m = load<int8_t>(tile + k % 128 / kGroup * kRows + n);
      const auto both = load<uint8_t>(tile + kLine + k % 64 / 4 * kLine + n * 4 + k % 4);
      const int q = (k % 128 < 64 ? both & 15 : both >> 4) - 8;
      return w.row_scales[row] * static_cast<float>(m * q);
    }
  }
  return 0;
}

}  // namespace

std::vector<float> unpack_f32(const PackedMatrix& matrix) {
  std::vector<float> out(static_cast<size_t>(matrix.n_out * matrix.n_in));
  for (int64_t r = 0; r < matrix.n_out; ++r) {
    for (int64_t c = 0; c < matrix.n_in; ++c)
      out[static_cast<size_t>(r * matrix.n_in + c)] = unpack_one(matrix, r, c);
  }
  return out;
}

}  // namespace exo::weights
