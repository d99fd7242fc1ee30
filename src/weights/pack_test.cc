#include "weights/pack.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <cmath>
#include <limits>
#include <random>

#include "weights/quantise.h"
#include "weights/safetensors_writer.h"
#include "weights/test_files.h"

namespace exo::weights {
namespace {

using ::testing::HasSubstr;
using testing::TempDir;

std::vector<float> gaussian(size_t n, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> x(n);
  for (float& v : x) v = normal(random);
  return x;
}

// Heavy tails: Student's t with 5 degrees of freedom. Columns: Gaussian times a factor by column.
std::vector<float> heavy_tailed(size_t n, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::student_t_distribution<float> student(5);
  std::vector<float> x(n);
  for (float& v : x) v = student(random);
  return x;
}
std::vector<float> column_scaled(size_t n, size_t n_in, uint64_t seed) {
  const std::vector<float> factors = gaussian(n_in, seed + 1);
  std::vector<float> x = gaussian(n, seed);
  for (size_t i = 0; i < n; ++i) x[i] *= std::exp(0.5f * factors[i % n_in]);
  return x;
}

PackedMatrix view(const PackedPart& part, WeightFormat format, int64_t n_out, int64_t n_in,
                  int64_t k_block = 0) {
  return {.format = format,
          .gate_up = false,
          .n_out = n_out,
          .n_in = n_in,
          .tiles = part.tiles.data(),
          .row_scales = part.row_scales.data(),
          .row_sums = part.row_sums.data(),
          .block_scales = part.block_scales.data(),
          .k_block = k_block};
}

double snr_db(std::span<const float> exact, std::span<const float> got) {
  double signal = 0, noise = 0;
  for (size_t i = 0; i < exact.size(); ++i) {
    signal += static_cast<double>(exact[i]) * exact[i];
    noise += std::pow(static_cast<double>(exact[i]) - got[i], 2);
  }
  return 10 * std::log10(signal / noise);
}

double snr_db(WeightFormat format, const std::vector<float>& w, int64_t n_in) {
  PackedPart part;
  const int64_t n_out = static_cast<int64_t>(w.size()) / n_in;
  pack_rows_f32(format, w, n_out, n_in, part);
  return snr_db(w, unpack_f32(view(part, format, n_out, n_in)));
}

uint8_t byte_at(const PackedPart& part, int64_t i) {
  return std::to_integer<uint8_t>(part.tiles[static_cast<size_t>(i)]);
}

TEST(Pack, F32AndBf16BytesAreWhereTheTableSays) {
  for (const auto& [n_out, n_in] :
       {std::pair<int64_t, int64_t>{1, 1}, {16, 32}, {37, 83}, {48, 161}}) {
    const std::vector<float> w = gaussian(static_cast<size_t>(n_out * n_in), 1);
    const auto value = [&, rows = n_out, cols = n_in](int64_t r, int64_t c) {
      return r < rows && c < cols ? w[static_cast<size_t>(r * cols + c)] : 0.0f;
    };
    PackedPart f, b;
    pack_rows_f32(WeightFormat::f32, w, n_out, n_in, f);
    pack_rows_f32(WeightFormat::bf16, w, n_out, n_in, b);
    const int64_t panels = (n_out + 15) / 16, f_tiles = (n_in + 15) / 16,
                  b_tiles = (n_in + 31) / 32;
    ASSERT_EQ(f.tiles.size(), static_cast<size_t>(panels * f_tiles * 1024));
    ASSERT_EQ(b.tiles.size(), static_cast<size_t>(panels * b_tiles * 1024));
    for (int64_t p = 0; p < panels; ++p) {
      for (int64_t r = 0; r < 16; ++r) {
        for (int64_t n = 0; n < 16; ++n) {
          for (int64_t t = 0; t < f_tiles; ++t) {
            float got;
            std::memcpy(&got, f.tiles.data() + (p * f_tiles + t) * 1024 + r * 64 + 4 * n, 4);
            ASSERT_EQ(got, value(16 * p + n, 16 * t + r));
          }
          for (int64_t t = 0; t < b_tiles; ++t) {
            for (int64_t i = 0; i < 2; ++i) {
              uint16_t got;
              std::memcpy(&got, b.tiles.data() + (p * b_tiles + t) * 1024 + r * 64 + 4 * n + 2 * i,
                          2);
              ASSERT_EQ(got, to_bf16(value(16 * p + n, 32 * t + 2 * r + i)).bits);
            }
          }
        }
      }
    }
    EXPECT_EQ(unpack_f32(view(f, WeightFormat::f32, n_out, n_in)), w);
    std::vector<float> rounded;
    for (float x : w) rounded.push_back(to_f32(to_bf16(x)));
    EXPECT_EQ(unpack_f32(view(b, WeightFormat::bf16, n_out, n_in)), rounded);
  }
}

TEST(Pack, Fp8BytesAreWhereTheTableSays) {
  const int64_t n_out = 37, n_in = 205, panels = 3, tiles = 4;
  std::vector<f8_e4m3> w(static_cast<size_t>(n_out * n_in));
  for (size_t i = 0; i < w.size(); ++i) w[i].bits = static_cast<uint8_t>(i * 7 + i / 256);
  std::vector<float> scales;
  for (int64_t i = 0; i < panels * 2; ++i) scales.push_back(0.5f + static_cast<float>(i));
  PackedPart part;
  pack_rows_fp8(std::span(w).first(32 * n_in), std::span(scales).first(4), 32, n_in, part);
  pack_rows_fp8(std::span(w).subspan(32 * n_in), std::span(scales).subspan(4), 5, n_in, part);
  ASSERT_EQ(part.tiles.size(), static_cast<size_t>(panels * tiles * 1024));
  EXPECT_EQ(part.block_scales, scales);
  for (int64_t p = 0; p < panels; ++p) {
    for (int64_t t = 0; t < tiles; ++t) {
      for (int64_t r = 0; r < 16; ++r) {
        for (int64_t lane = 0; lane < 4; ++lane) {
          for (int64_t b = 0; b < 16; ++b) {
            const int64_t row = 16 * p + 4 * lane + b % 8 / 2;
            const int64_t col = 64 * t + (b >= 8 ? 32 : 0) + 2 * r + b % 2;
            const uint8_t expected =
                row < n_out && col < n_in ? w[static_cast<size_t>(row * n_in + col)].bits : 0;
            ASSERT_EQ(byte_at(part, (p * tiles + t) * 1024 + r * 64 + 16 * lane + b), expected);
          }
        }
      }
    }
  }
  const std::vector<float> back = unpack_f32(view(part, WeightFormat::fp8, n_out, n_in, 128));
  for (int64_t r = 0; r < n_out; ++r) {
    for (int64_t c = 0; c < n_in; ++c) {
      const float e = to_f32(w[static_cast<size_t>(r * n_in + c)]);
      const float got = back[static_cast<size_t>(r * n_in + c)];
      if (std::isnan(e)) {
        ASSERT_TRUE(std::isnan(got));
      } else {
        ASSERT_EQ(got, e * scales[static_cast<size_t>(r / 16 * 2 + c / 128)]);
      }
    }
  }
}

// Decodes by the table and compares with unpack_f32, which must be near the weights.
TEST(Pack, IntegerBytesAreWhereTheTableSays) {
  for (const auto& [n_out, n_in] :
       {std::pair<int64_t, int64_t>{1, 1}, {16, 128}, {37, 205}, {20, 64}}) {
    const std::vector<float> w = gaussian(static_cast<size_t>(n_out * n_in), 3);
    PackedPart p8, p4;
    pack_rows_f32(WeightFormat::int8, w, n_out, n_in, p8);
    pack_rows_f32(WeightFormat::int4, w, n_out, n_in, p4);
    const auto back8 = unpack_f32(view(p8, WeightFormat::int8, n_out, n_in));
    const auto back4 = unpack_f32(view(p4, WeightFormat::int4, n_out, n_in));
    const int64_t panels = (n_out + 15) / 16, tiles8 = (n_in + 63) / 64,
                  tiles4 = (n_in + 127) / 128;
    ASSERT_EQ(p8.tiles.size(), static_cast<size_t>(panels * tiles8 * 1024));
    ASSERT_EQ(p4.tiles.size(), static_cast<size_t>(panels * tiles4 * 1088));
    ASSERT_EQ(p8.row_scales.size(), static_cast<size_t>(panels * 16));
    ASSERT_EQ(p4.row_scales.size(), static_cast<size_t>(panels * 16));
    for (int64_t row = 0; row < panels * 16; ++row) {
      const int64_t p = row / 16, n = row % 16;
      int32_t sum = 0;
      for (int64_t col = 0; col < tiles8 * 64; ++col) {
        const int64_t at = (p * tiles8 + col / 64) * 1024 + col % 64 / 4 * 64 + 4 * n + col % 4;
        const auto q = static_cast<int8_t>(byte_at(p8, at));
        sum += q;
        ASSERT_NE(q, -128);
        if (row < n_out && col < n_in) {
          ASSERT_EQ(p8.row_scales[static_cast<size_t>(row)] * static_cast<float>(q),
                    back8[static_cast<size_t>(row * n_in + col)]);
        } else {
          ASSERT_EQ(q, 0);
        }
      }
      EXPECT_EQ(sum, p8.row_sums[static_cast<size_t>(row)]);
      if (row >= n_out) {
        EXPECT_EQ(p8.row_scales[static_cast<size_t>(row)], 0.0f);
      }
      for (int64_t col = 0; col < tiles4 * 128; ++col) {
        const int64_t tile = (p * tiles4 + col / 128) * 1088, in = col % 128;
        const auto m = static_cast<int8_t>(byte_at(p4, tile + 16 * (in / 32) + n));
        const uint8_t both = byte_at(p4, tile + 64 + in % 64 / 4 * 64 + 4 * n + in % 4);
        const int q = (in < 64 ? both & 15 : both >> 4) - 8;
        ASSERT_TRUE(std::abs(m) >= 1 && std::abs(m) <= 15) << int{m};
        if (row < n_out && col < n_in) {
          ASSERT_EQ(p4.row_scales[static_cast<size_t>(row)] * static_cast<float>(m * q),
                    back4[static_cast<size_t>(row * n_in + col)]);
        } else {
          ASSERT_EQ(q, 0);
          if (row >= n_out) {
            ASSERT_EQ(m, 1);
          }
        }
      }
    }
    EXPECT_GT(snr_db(w, back8), 40);
    EXPECT_GT(snr_db(w, back4), 20);
  }
}

// The bar: blocks of 32 with their own scale max/-8 (4.5 bits a weight with fp16 scales).
double plain_blocks_db(const std::vector<float>& w) {
  std::vector<float> back(w.size());
  for (size_t begin = 0; begin < w.size(); begin += 32) {
    float extreme = 0;
    for (size_t i = begin; i < begin + 32; ++i) {
      if (std::fabs(w[i]) > std::fabs(extreme)) extreme = w[i];
    }
    const float step = extreme / -8;
    for (size_t i = begin; i < begin + 32; ++i)
      back[i] = step * std::clamp(std::nearbyint(w[i] / step), -8.0f, 7.0f);
  }
  return snr_db(w, back);
}

TEST(Quantise, Int4KeepsUpWithWiderBlockFormats) {
  const size_t n_in = 2048, n = 32 * n_in;
  const auto normal = gaussian(n, 5), heavy = heavy_tailed(n, 6),
             columns = column_scaled(n, n_in, 7);
  const auto db = [&](const std::vector<float>& w) {
    return snr_db(WeightFormat::int4, w, static_cast<int64_t>(n_in));
  };
  EXPECT_GT(db(normal), plain_blocks_db(normal) + 0.2);
  EXPECT_GT(db(normal), 21.5);
  EXPECT_GT(db(heavy), plain_blocks_db(heavy) - 0.05);
  EXPECT_GT(db(columns), plain_blocks_db(columns));
}

TEST(Quantise, Int8IsBetterThanTheLargestWeightOver127) {
  const size_t n_in = 2048, n = 32 * n_in;
  for (const auto& w : {gaussian(n, 8), heavy_tailed(n, 9), column_scaled(n, n_in, 10)}) {
    std::vector<float> plain(n);
    for (size_t row = 0; row < n; row += n_in) {
      float largest = 0;
      for (size_t i = row; i < row + n_in; ++i) largest = std::max(largest, std::fabs(w[i]));
      for (size_t i = row; i < row + n_in; ++i)
        plain[i] = largest / 127 * std::nearbyint(w[i] / largest * 127);
    }
    EXPECT_GT(snr_db(WeightFormat::int8, w, static_cast<int64_t>(n_in)), snr_db(w, plain));
  }
}

TEST(Quantise, ValuesOnTheGridStay) {
  std::vector<float> w(16 * 256);
  for (size_t i = 0; i < w.size(); ++i) {
    const size_t group = i % 256 / 32;
    const int m = group % 2 == 0 ? 15 - static_cast<int>(group) : -static_cast<int>(group) - 3;
    int q = static_cast<int>(i * 5 % 16) - 8;
    w[i] = 0.01f * static_cast<float>(m * (group == 0 && i % 32 == 0 ? -8 : q));
  }
  EXPECT_GT(snr_db(WeightFormat::int4, w, 256), 120);
  for (size_t i = 0; i < w.size(); ++i)
    w[i] = 0.3f * static_cast<float>(static_cast<int>(i * 37 % 255) - 127);
  EXPECT_GT(snr_db(WeightFormat::int8, w, 256), 120);
}

TEST(Quantise, ExtremeRows) {
  for (const WeightFormat format : {WeightFormat::int8, WeightFormat::int4}) {
    const std::vector<float> normal = gaussian(64, 11);
    for (const float factor : {1e-44f, 1e-36f, 1e30f, 5e37f}) {
      std::vector<float> w = normal;
      for (float& x : w) x *= factor;
      PackedPart part;
      pack_rows_f32(format, w, 1, 64, part);
      for (float x : unpack_f32(view(part, format, 1, 64))) ASSERT_TRUE(std::isfinite(x));
      if (factor > 1e-30f) {
        EXPECT_GT(snr_db(format, w, 64), 19);
      }
    }
    for (const float bad : {std::numeric_limits<float>::infinity(), std::nanf("")}) {
      std::vector<float> w = gaussian(2 * 64, 12);
      w[70] = bad;
      PackedPart part;
      pack_rows_f32(format, w, 2, 64, part);
      EXPECT_TRUE(std::isfinite(part.row_scales[0]));
      EXPECT_TRUE(std::isnan(part.row_scales[1]));
    }
    PackedPart zeros;
    pack_rows_f32(format, std::vector<float>(64), 1, 64, zeros);
    EXPECT_EQ(zeros.row_scales[0], 0.0f);
  }
}

TEST(Quantise, EveryInstructionSetGivesTheSameBytes) {
  const std::vector<float> w = column_scaled(21 * 300, 300, 13);
  PackedPart first8, first4;
  pack_rows_f32(WeightFormat::int8, w, 21, 300, first8);
  pack_rows_f32(WeightFormat::int4, w, 21, 300, first4);
  int n_targets = 0;
  for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    PackedPart again8, again4;
    pack_rows_f32(WeightFormat::int8, w, 21, 300, again8);
    pack_rows_f32(WeightFormat::int4, w, 21, 300, again4);
    EXPECT_EQ(again8.tiles, first8.tiles) << hwy::TargetName(target);
    EXPECT_EQ(again8.row_scales, first8.row_scales) << hwy::TargetName(target);
    EXPECT_EQ(again4.tiles, first4.tiles) << hwy::TargetName(target);
    EXPECT_EQ(again4.row_scales, first4.row_scales) << hwy::TargetName(target);
    ++n_targets;
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  EXPECT_GE(n_targets, 1);
}

// A checkpoint with gate, up (bf16) and gate8, up8 (fp8 in blocks of 64 x 64).
struct GateUpFile {
  static constexpr int64_t kInter = 100, kIn = 147;
  TempDir dir;
  std::vector<float> gate = gaussian(kInter * kIn, 20), up = gaussian(kInter * kIn, 21);
  std::vector<bf16> gate16, up16;
  std::vector<uint8_t> gate8, up8;
  std::vector<float> gate_scales, up_scales;
  Checkpoint checkpoint;

  GateUpFile() {
    for (float& x : gate) gate16.push_back(to_bf16(x)), x = to_f32(gate16.back());
    for (float& x : up) up16.push_back(to_bf16(x)), x = to_f32(up16.back());
    for (size_t i = 0; i < gate.size(); ++i) {
      gate8.push_back(to_f8_e4m3(gate[i]).bits);
      up8.push_back(to_f8_e4m3(up[i]).bits);
    }
    for (int i = 0; i < 6; ++i) {
      gate_scales.push_back(0.3f + static_cast<float>(i));
      up_scales.push_back(0.1f - static_cast<float>(i));
    }
    const auto bytes = [](const auto& v) { return std::as_bytes(std::span(v)); };
    const NamedTensor tensors[] = {
        {"gate", DType::bf16, {kInter, kIn}, bytes(gate16)},
        {"up", DType::bf16, {kInter, kIn}, bytes(up16)},
        {"gate32", DType::f32, {kInter, kIn}, bytes(gate)},
        {"gate8", DType::f8_e4m3, {kInter, kIn}, bytes(gate8)},
        {"up8", DType::f8_e4m3, {kInter, kIn}, bytes(up8)},
        {"gate8_scale_inv", DType::f32, {2, 3}, bytes(gate_scales)},
        {"up8_scale_inv", DType::f32, {2, 3}, bytes(up_scales)},
    };
    EXPECT_TRUE(write_safetensors(dir.file("x"), tensors).ok());
    checkpoint = *Checkpoint::open_file(dir.file("x"));
  }
  SourceMatrix open(const std::string& name) const {
    return *SourceMatrix::open(checkpoint, name, 64, 64);
  }
};

PackedPart pack_all(const SourceMatrix& source, const SourceMatrix* up, const PackSpec& spec,
                    int n_threads) {
  ThreadPool pool(n_threads);
  PackedPart all;
  const Status status = pack_matrix(source, up, spec, pool, [&](const PackedPart& part) {
    const auto append = [](auto& to, const auto& from) {
      to.insert(to.end(), from.begin(), from.end());
    };
    append(all.tiles, part.tiles);
    append(all.row_scales, part.row_scales);
    append(all.row_sums, part.row_sums);
    append(all.block_scales, part.block_scales);
    return ok_status();
  });
  EXPECT_TRUE(status.ok()) << status.message();
  return all;
}

TEST(PackMatrix, InterleavesGateAndUpByPanel) {
  const GateUpFile file;
  const SourceMatrix gate = file.open("gate"), up = file.open("up");
  const auto expect_interleaved = [&](WeightFormat format, const std::vector<float>& packed) {
    PackedPart gate_part, up_part;
    pack_rows_f32(format, file.gate, file.kInter, file.kIn, gate_part);
    pack_rows_f32(format, file.up, file.kInter, file.kIn, up_part);
    const auto gates = unpack_f32(view(gate_part, format, 112, file.kIn));
    const auto ups = unpack_f32(view(up_part, format, 112, file.kIn));
    for (int64_t row = 0; row < 224; ++row) {
      const auto& from = row / 16 % 2 == 0 ? gates : ups;
      const int64_t source_row = row / 32 * 16 + row % 16;
      for (int64_t c = 0; c < file.kIn; ++c) {
        ASSERT_EQ(packed[static_cast<size_t>(row * file.kIn + c)],
                  from[static_cast<size_t>(source_row * file.kIn + c)]);
      }
    }
  };
  for (const WeightFormat format :
       {WeightFormat::f32, WeightFormat::bf16, WeightFormat::int8, WeightFormat::int4}) {
    const PackedPart one = pack_all(gate, &up, {.format = format, .k_block = 0}, 1);
    const PackedPart three = pack_all(gate, &up, {.format = format, .k_block = 0}, 3);
    EXPECT_EQ(one.tiles, three.tiles);
    EXPECT_EQ(one.row_scales, three.row_scales);
    EXPECT_EQ(one.row_sums, three.row_sums);
    expect_interleaved(format, unpack_f32(view(three, format, 224, file.kIn)));
  }
}

TEST(PackMatrix, Fp8KeepsTheCheckpointsNumbersOrBecomesF32) {
  const GateUpFile file;
  const SourceMatrix sources[] = {file.open("gate8")}, ups[] = {file.open("up8")};
  const PackSpec spec = resolve_spec(WeightFormat::fp8, sources, ups);
  ASSERT_EQ(spec.format, WeightFormat::fp8);
  ASSERT_EQ(spec.k_block, 64);
  const PackedPart part = pack_all(sources[0], &ups[0], spec, 2);
  const auto back = unpack_f32(view(part, WeightFormat::fp8, 224, file.kIn, 64));
  std::vector<float> row(file.kIn);
  for (int64_t r = 0; r < file.kInter; ++r) {
    for (int half = 0; half < 2; ++half) {
      const SourceMatrix& from = half == 0 ? sources[0] : ups[0];
      ASSERT_TRUE(from.read_f32(r, 1, row).ok());
      for (int64_t c = 0; c < file.kIn; ++c) {
        const int64_t packed_row = r / 16 * 32 + half * 16 + r % 16;
        ASSERT_EQ(back[static_cast<size_t>(packed_row * file.kIn + c)],
                  row[static_cast<size_t>(c)]);
      }
    }
  }
  // Rows 8..: panels straddle two blocks.
  const SourceMatrix shifted[] = {*sources[0].slice_rows(8, 80)};
  EXPECT_EQ(resolve_spec(WeightFormat::fp8, shifted, {}).format, WeightFormat::f32);
  const SourceMatrix mixed[] = {sources[0], *sources[0].slice_rows(8, 80)};
  EXPECT_EQ(resolve_spec(WeightFormat::fp8, mixed, {}).format, WeightFormat::f32);
  const SourceMatrix plain[] = {file.open("gate")};
  EXPECT_EQ(resolve_spec(WeightFormat::fp8, plain, {}).format, WeightFormat::bf16);
  EXPECT_EQ(resolve_spec(WeightFormat::fp8, sources, plain).format, WeightFormat::f32);
  EXPECT_EQ(resolve_spec(WeightFormat::int4, plain, {}).format, WeightFormat::int4);
  const PackedPart exact =
      pack_all(shifted[0], nullptr, {.format = WeightFormat::f32, .k_block = 0}, 1);
  const auto exact_back = unpack_f32(view(exact, WeightFormat::f32, 80, file.kIn));
  ASSERT_TRUE(sources[0].read_f32(60, 1, row).ok());
  for (int64_t c = 0; c < file.kIn; ++c)
    ASSERT_EQ(exact_back[static_cast<size_t>(52 * file.kIn + c)], row[static_cast<size_t>(c)]);
}

TEST(PackMatrix, NamesWhatIsWrong) {
  TempDir dir;
  std::vector<float> a = gaussian(20 * 40, 30), b = gaussian(21 * 40, 31);
  a[17 * 40 + 3] = std::nanf("");
  const NamedTensor tensors[] = {
      {"a", DType::f32, {20, 40}, std::as_bytes(std::span(a))},
      {"b", DType::f32, {21, 40}, std::as_bytes(std::span(b))},
      {"none", DType::f32, {0, 40}, {}},
  };
  ASSERT_TRUE(write_safetensors(dir.file("x"), tensors).ok());
  auto checkpoint = Checkpoint::open_file(dir.file("x"));
  const SourceMatrix ma = *SourceMatrix::open(*checkpoint, "a", 0, 0);
  const SourceMatrix mb = *SourceMatrix::open(*checkpoint, "b", 0, 0);
  const SourceMatrix none = *SourceMatrix::open(*checkpoint, "none", 0, 0);
  ThreadPool pool(2);
  const auto message = [&](const SourceMatrix& s, const SourceMatrix* up, WeightFormat format) {
    return pack_matrix(s, up, {.format = format, .k_block = 0}, pool,
                       [](const PackedPart&) { return ok_status(); })
        .message();
  };
  EXPECT_THAT(message(ma, nullptr, WeightFormat::int8), HasSubstr("'a': row 17 holds a NaN"));
  EXPECT_THAT(message(ma, nullptr, WeightFormat::int4), HasSubstr("'a': row 17 holds a NaN"));
  EXPECT_EQ(message(ma, nullptr, WeightFormat::bf16), "");
  EXPECT_THAT(message(ma, &mb, WeightFormat::bf16), HasSubstr("expected equal shapes"));
  EXPECT_THAT(message(none, nullptr, WeightFormat::bf16), HasSubstr("is empty"));
  EXPECT_EQ(pack_matrix(mb, nullptr, {.format = WeightFormat::bf16, .k_block = 0}, pool,
                        [](const PackedPart&) { return cancelled("stop"); })
                .code(),
            StatusCode::cancelled);
}

}  // namespace
}  // namespace exo::weights
