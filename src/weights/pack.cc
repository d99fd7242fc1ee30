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

// Column values k .. k + 3 of a row in one word, the first lowest: rows lie side by side.
uint32_t four_bytes(const int8_t* q) {
  const auto byte = [&](size_t i) {
    return static_cast<uint32_t>(static_cast<uint8_t>(q[i * kRows]));
  };
  return byte(0) | byte(1) << 8 | byte(2) << 16 | byte(3) << 24;
}

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
  uint16_t tile[kRows][32] =
      {};  // converted along K, where it vectorises, then transposed by pairs
  for (size_t begin = 0; begin < n_in; begin += 32) {
    const size_t n_k = std::min<size_t>(32, n_in - begin);
    if (n_k < 32) std::memset(tile, 0, sizeof tile);
    for (size_t n = 0; n < n_rows; ++n) {
      for (size_t k = 0; k < n_k; ++k) tile[n][k] = to_bf16(rows[n * n_in + begin + k]).bits;
    }
    std::byte* to = out.tiles + begin / 2 * kLine;
    for (size_t pair = 0; pair < 16; ++pair) {
      for (size_t n = 0; n < kRows; ++n)
        std::memcpy(to + pair * kLine + n * 4, &tile[n][2 * pair], 4);
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
  int32_t sums[kRows] = {};
  for (size_t k = 0; k < n_k; k += 4, q += 4 * kRows) {  // one line
    uint32_t line[kRows];
    for (size_t n = 0; n < kRows; ++n) {
      line[n] = four_bytes(q + n);
      sums[n] += q[n] + q[kRows + n] + q[2 * kRows + n] + q[3 * kRows + n];
    }
    std::memcpy(out.tiles + k / 4 * kLine, line, kLine);
  }
  std::copy_n(sums, kRows, out.row_sums);
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
      uint32_t packed[kRows];
      for (size_t n = 0; n < kRows; ++n) {
        // q + 8 in every nibble: for q in -8 .. 7 that is its low nibble with the top bit turned
        packed[n] = (four_bytes(low + k * kRows + n) ^ 0x08080808u) & 0x0F0F0F0Fu;
        packed[n] |= ((four_bytes(high + k * kRows + n) ^ 0x08080808u) & 0x0F0F0F0Fu) << 4;
      }
      std::memcpy(line, packed, kLine);
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

// Room for exactly `n` panels; what is there of them already stays.
void resize(WeightFormat format, size_t n, size_t n_in, size_t n_k_blocks, PackedPart& part) {
  part.tiles.resize(n * static_cast<size_t>(panel_bytes(format, static_cast<int64_t>(n_in))));
  if (is_integer(format)) part.row_scales.resize(n * kRows);
  if (format == WeightFormat::int8) part.row_sums.resize(n * kRows);
  part.block_scales.resize(n * n_k_blocks);
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
  resize(format, before + n, columns, 0, out);
  for (size_t i = 0; i < n; ++i) {
    pack_panel(format, rows.data() + i * kRows * columns, std::min(kRows, total - i * kRows),
               columns, panel_of(format, before + i, columns, 0, out), scratch);
  }
}

void pack_rows_fp8(std::span<const f8_e4m3> rows, std::span<const float> panel_scales,
                   int64_t n_rows, int64_t n_in, PackedPart& out) {
  const auto columns = static_cast<size_t>(n_in), total = static_cast<size_t>(n_rows);
  const size_t n = static_cast<size_t>(n_panels(n_rows));
  const size_t bytes = static_cast<size_t>(panel_bytes(WeightFormat::fp8, n_in));
  size_t at = out.tiles.size();
  out.tiles.resize(at + n * bytes);
  for (size_t i = 0; i < n; ++i, at += bytes) {
    pack_panel_fp8(rows.data() + i * kRows * columns, std::min(kRows, total - i * kRows), columns,
                   {.tiles = out.tiles.data() + at});
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
  // Parts of about 2 MB: several to an expert's matrix, and enough panels for many threads.
  constexpr int64_t kPartBytes = int64_t{2} << 20;
  const int64_t per_part = std::min(std::max(kPartBytes / panel_bytes(spec.format, source.n_cols()),
                                             int64_t{4} * pool.n_threads()),
                                    total);
  const PanelReader reader{source, up, spec};
  const auto n_threads = static_cast<size_t>(pool.n_threads());
  std::vector<std::vector<float>> rows(n_threads);
  std::vector<std::vector<f8_e4m3>> bytes(n_threads);
  std::vector<Scratch> scratch(n_threads);
  // While a part is packed the one before it goes to the sink, as one more task.
  PackedPart part, previous;
  for (int64_t begin = 0; begin < total; begin += per_part) {
    const int64_t n = std::min(per_part, total - begin);
    resize(spec.format, static_cast<size_t>(n), n_in, n_k_blocks, part);
    std::vector<Status> statuses(static_cast<size_t>(n) + 1);
    pool.parallel_for(n + 1, [&](int64_t task, int thread) {
      const auto i = static_cast<size_t>(task), t = static_cast<size_t>(thread);
      if (i == 0) {
        if (begin > 0) statuses[0] = sink(previous);
        return;
      }
      statuses[i] =
          reader.pack(begin + task - 1, panel_of(spec.format, i - 1, n_in, n_k_blocks, part),
                      rows[t], bytes[t], scratch[t]);
    });
    for (Status& status : statuses) EXO_RETURN_IF_ERROR(std::move(status));
    std::swap(part, previous);
  }
  return sink(previous);
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
