/// A cache of random weights straight in the packed formats: what a speed test needs is the real
/// shapes and bytes, not real values. Each weight's variance is 1 / n_in, so activations keep their
/// size from layer to layer. fp8 codes are as common as in a real checkpoint, as zeros and
/// subnormal ones may take longer. A matrix depends on the seed and its path alone.
#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <filesystem>

#include "model/write_cache.h"

namespace exo::model {
namespace {

using weights::CacheWriter;
using weights::PackedPart;

constexpr int64_t kPartBytes = int64_t{16} << 20;
constexpr int64_t kTaskPanels = 4;

uint64_t fnv1a(std::string_view text, uint64_t hash = 0xcbf29ce484222325) {
  for (const char c : text) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3;
  return hash;
}

// Sebastiano Vigna's splitmix64: one multiply-xorshift chain a word, no state but a counter.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }

 private:
  uint64_t state_;
};

// Words of a tile's lines: random bits, cut to values that a weight may have.
struct WordMask {
  uint64_t keep = ~uint64_t{0};
  uint64_t set = 0;
};

// The exponent field of 2^-log2(1.53 sqrt(n_in)): with random sign and mantissa values lie in
// +-[1, 2) times that power, whose root mean square is 1.53.
uint64_t exponent_field(int64_t n_in) {
  return static_cast<uint64_t>(127 -
                               std::lround(std::log2(1.53 * std::sqrt(static_cast<double>(n_in)))));
}

WordMask mask_of(WeightFormat format, int64_t n_in) {
  switch (format) {
    case WeightFormat::f32:
      return {.keep = 0x807fffff'807fffff, .set = exponent_field(n_in) * 0x800000'00800000};
    case WeightFormat::bf16:
      return {.keep = 0x807f807f'807f807f, .set = exponent_field(n_in) * 0x0080'0080'0080'0080};
    case WeightFormat::fp8:  // by make_fp8_codes
      return {};
    case WeightFormat::int8:  // -126 ... 126 once the low bit is cleared and -128 is not there
      return {.keep = 0xfefefefe'fefefefe, .set = 0};
    case WeightFormat::int4:
      return {};
  }
  return {};
}

// DeepSeek's blocks of 128 x 128 weights are scaled so that the largest becomes 448. Of so many
// normal values the largest is about 4.1 deviations.
constexpr double kFp8Deviation = 448 / 4.1;

// The code of each of 65,536 equally probable parts of that distribution: a sign and a size.
using Fp8Codes = std::array<uint8_t, 1 << 16>;
Fp8Codes make_fp8_codes() {
  constexpr size_t kSizes = size_t{1} << 15;
  constexpr uint8_t kLargest = 126, kNegative = 0x80;
  // Up to the middle between a code's value and the next one's go to that code.
  const auto part_below = [](uint8_t code) {
    const double value = to_f32(f8_e4m3{code});
    const double next = to_f32(f8_e4m3{static_cast<uint8_t>(code + 1)});
    return std::erf((value + next) / 2 / (kFp8Deviation * std::sqrt(2.0)));
  };
  Fp8Codes codes;
  uint8_t code = 0;
  for (size_t i = 0; i < kSizes; ++i) {
    const double middle = (static_cast<double>(i) + 0.5) / static_cast<double>(kSizes);
    while (code < kLargest && part_below(code) < middle) ++code;
    codes[i] = code;
    codes[kSizes + i] = code | kNegative;
  }
  return codes;
}

// The scale that makes the codes' variance 1 / n_in. Root mean squares of what random_tile writes.
float scale_of(WeightFormat format, int64_t n_in) {
  const double rms = format == WeightFormat::fp8    ? kFp8Deviation
                     : format == WeightFormat::int8 ? 73
                                                    : 23.4;
  return static_cast<float>(1 / (rms * std::sqrt(static_cast<double>(n_in))));
}

void random_tile(WeightFormat format, const WordMask& mask, Random& random, std::byte* tile) {
  if (format == WeightFormat::int4) {  // multipliers +-1 ... +-8
    for (int64_t i = 0; i < kTileLineBytes; i += 8) {
      uint64_t word = random.next();
      for (int64_t b = 0; b < 8; ++b, word >>= 8) {
        const int magnitude = static_cast<int>(word & 7) + 1;
        const auto m = static_cast<int8_t>((word & 8) != 0 ? -magnitude : magnitude);
        std::memcpy(tile + i + b, &m, 1);
      }
    }
    tile += kTileLineBytes;
  }
  if (format == WeightFormat::fp8) {
    static const Fp8Codes codes = make_fp8_codes();
    for (int64_t i = 0; i < kPanelRows * kTileLineBytes; i += 4) {
      uint64_t word = random.next();
      for (int64_t b = 0; b < 4; ++b, word >>= 16) tile[i + b] = std::byte{codes[word & 0xFFFF]};
    }
    return;
  }
  for (int64_t i = 0; i < kPanelRows * kTileLineBytes; i += 8) {
    uint64_t word = random.next() & mask.keep;
    word |= mask.set;
    if (format == WeightFormat::int8) {
      // A byte of -128 becomes 0.
      const uint64_t low7 = (word & 0x7f7f7f7f'7f7f7f7f) + 0x7f7f7f7f'7f7f7f7f;
      const uint64_t is_min = word & ~low7 & 0x80808080'80808080;
      word &= ~is_min;
    }
    std::memcpy(tile + i, &word, 8);
  }
}

// Writes the weight 0 at (row, col) of a tile (tensor/packed.h).
void clear_weight(WeightFormat format, int64_t row, int64_t col, std::byte* tile) {
  switch (format) {
    case WeightFormat::f32:
      std::memset(tile + col * 64 + row * 4, 0, 4);
      return;
    case WeightFormat::bf16:
      std::memset(tile + col / 2 * 64 + row * 4 + col % 2 * 2, 0, 2);
      return;
    case WeightFormat::fp8:
      tile[col % 32 / 2 * 64 + row / 4 * 16 + col / 32 * 8 + row % 4 * 2 + col % 2] = std::byte{0};
      return;
    case WeightFormat::int8:
      tile[col / 4 * 64 + row * 4 + col % 4] = std::byte{0};
      return;
    case WeightFormat::int4: {
      std::byte& b = tile[kTileLineBytes + col % 64 / 4 * 64 + row * 4 + col % 4];
      b = col < 64 ? (b & std::byte{0xf0}) | std::byte{0x08}
                   : (b & std::byte{0x0f}) | std::byte{0x80};
      return;
    }
  }
}

// One panel of a matrix of `entry`; row_sums [16] is written for int8.
void random_panel(const RecipeEntry& entry, int64_t panel, Random random, std::byte* out,
                  int32_t* row_sums) {
  const WeightFormat format = entry.spec.format;
  const WordMask mask = mask_of(format, entry.n_in);
  const int64_t cols = tile_cols(format), n_tiles = ceil_div(entry.n_in, cols);
  // gate and up panels alternate.
  const int64_t panel_of_source = entry.gate_up() ? panel / 2 : panel;
  const int64_t n_rows = std::min(kPanelRows, entry.n_rows - panel_of_source * kPanelRows);
  for (int64_t t = 0; t < n_tiles; ++t) {
    std::byte* tile = out + t * tile_bytes(format);
    random_tile(format, mask, random, tile);
    const int64_t n_cols = std::min(cols, entry.n_in - t * cols);
    for (int64_t r = 0; r < kPanelRows; ++r) {
      for (int64_t c = r < n_rows ? n_cols : 0; c < cols; ++c) clear_weight(format, r, c, tile);
    }
    if (format != WeightFormat::int8) continue;
    for (int64_t i = 0; i < kPanelRows * kTileLineBytes; ++i)
      row_sums[i % kTileLineBytes / 4] += std::to_integer<int8_t>(tile[i]);
  }
}

// Matrix `index` of the entry, a few panels at a time.
Status random_matrix(const RecipeEntry& entry, uint64_t seed, int64_t index, ThreadPool& pool,
                     const CacheWriter::PartSink& sink) {
  const WeightFormat format = entry.spec.format;
  const int64_t panel_size = panel_bytes(format, entry.n_in), total = n_panels(entry.n_out);
  const int64_t step = std::clamp<int64_t>(kPartBytes / panel_size, 1, total);
  const bool integer = format == WeightFormat::int8 || format == WeightFormat::int4;
  const float scale = scale_of(format, entry.n_in);
  PackedPart part;
  for (int64_t begin = 0; begin < total; begin += step) {
    const int64_t n = std::min(step, total - begin);
    part.tiles.resize(static_cast<size_t>(n * panel_size));
    const auto n_rows = static_cast<size_t>(n * kPanelRows);
    if (integer) part.row_scales.assign(n_rows, scale);
    if (format == WeightFormat::int8) part.row_sums.assign(n_rows, 0);
    if (format == WeightFormat::fp8)
      part.block_scales.assign(static_cast<size_t>(n * ceil_div(entry.n_in, entry.spec.k_block)),
                               scale);
    pool.parallel_for(ceil_div(n, kTaskPanels), [&](int64_t task, int) {
      for (int64_t p = task * kTaskPanels; p < std::min(n, (task + 1) * kTaskPanels); ++p) {
        const Random random(seed ^ fnv1a(entry.path, static_cast<uint64_t>(index) << 32 ^
                                                         static_cast<uint64_t>(begin + p)));
        random_panel(
            entry, begin + p, random, part.tiles.data() + p * panel_size,
            format == WeightFormat::int8 ? part.row_sums.data() + p * kPanelRows : nullptr);
      }
    });
    EXO_RETURN_IF_ERROR(sink(part));
  }
  return ok_status();
}

Status random_packed(const RecipeEntry& entry, uint64_t seed, ThreadPool& pool,
                     CacheWriter& writer) {
  weights::WeightEntry packed;
  packed.layout = weights::Layout::packed;
  packed.format = entry.spec.format;
  packed.gate_up = entry.gate_up();
  packed.count = static_cast<int64_t>(entry.sources.size());
  packed.n_out = entry.n_out;
  packed.n_in = entry.n_in;
  packed.k_block = entry.spec.k_block;
  return writer.add_parts(entry.path, packed, [&](int64_t i, const CacheWriter::PartSink& sink) {
    return random_matrix(entry, seed, i, pool, sink);
  });
}

// Norms are 1, a router's bias 0; the embedding has the spread of weights of one column.
Status random_plain(const RecipeEntry& entry, uint64_t seed, CacheWriter& writer) {
  if (entry.dtype == DType::f32) {
    const bool is_norm = !entry.path.ends_with("bias");
    const std::vector<float> values(static_cast<size_t>(entry.shape.front()),
                                    is_norm ? 1.0f : 0.0f);
    return writer.add_plain(entry.path, DType::f32, entry.shape, std::as_bytes(std::span(values)));
  }
  Random random(seed ^ fnv1a(entry.path));
  const WordMask mask = mask_of(WeightFormat::bf16, 1);
  return writer.add_plain_parts(
      entry.path, entry.dtype, entry.shape, [&](const CacheWriter::BytesSink& sink) -> Status {
        std::vector<uint64_t> words(static_cast<size_t>(kPartBytes / 8));
        for (int64_t left = entry.n_bytes(); left > 0; left -= kPartBytes) {
          for (uint64_t& word : words) word = (random.next() & mask.keep) | mask.set;
          EXO_RETURN_IF_ERROR(sink(std::as_bytes(std::span(words))
                                       .first(static_cast<size_t>(std::min(left, kPartBytes)))));
        }
        return ok_status();
      });
}

}  // namespace

Status write_random_cache(const Plan& plan, const std::string& cache_folder, uint64_t seed,
                          ThreadPool& pool, const OnConvertProgress& on_progress) {
  const std::string config = config_to_json(plan.config).dump(1);
  return write_cache({.plan = plan,
                      .source_hash = fnv1a(config, seed),
                      .folder = cache_folder,
                      .pool = pool,
                      .on_progress = on_progress,
                      .add =
                          [&](const RecipeEntry& entry, CacheWriter& writer) {
                            return entry.packed ? random_packed(entry, seed, pool, writer)
                                                : random_plain(entry, seed, writer);
                          },
                      .add_small_files =
                          [&] {
                            return write_file_atomic(
                                (std::filesystem::path(cache_folder) / "config.json").string(),
                                config);
                          }},
                     make_recipe(plan));
}

}  // namespace exo::model
