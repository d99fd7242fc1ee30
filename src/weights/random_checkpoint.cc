#include "weights/random_checkpoint.h"

#include <fmt/core.h>

#include <array>
#include <cmath>
#include <filesystem>

#include "base/json.h"
#include "tensor/buffer.h"
#include "weights/hash.h"
#include "weights/safetensors_writer.h"

namespace exo::weights {
namespace {

constexpr size_t kQuantiles = 65536;
constexpr float kFp8Unit =
    100;  // the standard deviation of stored e4m3 values (the largest is 448)

// The normal distribution's inverse at (i + 0.5) / 65536, walked by Newton steps from one to the
// next.
const std::vector<float>& quantiles() {
  static const std::vector<float> table = [] {
    std::vector<float> z(kQuantiles);
    double x = 0;
    for (size_t i = kQuantiles / 2; i < kQuantiles; ++i) {
      const double p = (static_cast<double>(i) + 0.5) / kQuantiles;
      for (int step = 0; step < 8; ++step) {
        const double upper = 0.5 * std::erfc(x / std::sqrt(2.0));
        x += (p - 1 + upper) / (std::exp(-x * x / 2) / std::sqrt(2 * M_PI));
      }
      z[i] = static_cast<float>(x);
      z[kQuantiles - 1 - i] = -z[i];
    }
    return z;
  }();
  return table;
}

// splitmix64: a tensor's own stream of bits.
class RandomBits {
 public:
  RandomBits(uint64_t seed, std::string_view name) : state_(seed ^ xxh3(name)) {}
  uint64_t next() {
    uint64_t x = state_ += 0x9E3779B97F4A7C15u;
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
    x = (x ^ x >> 27) * 0x94D049BB133111EBu;
    return x ^ x >> 31;
  }

 private:
  uint64_t state_;
};

// A tensor as it will stand in a file: a RandomTensor, or the scales of one.
struct Planned {
  NamedTensor header;
  const RandomTensor* source = nullptr;
  bool is_scales = false;
  uint64_t n_bytes = 0;
};

Result<uint64_t> element_count(const RandomTensor& tensor) {
  uint64_t n = 1;
  for (int64_t d : tensor.shape) {
    if (d <= 0 || __builtin_mul_overflow(n, static_cast<uint64_t>(d), &n) || n > uint64_t{1} << 48)
      return invalid_argument(fmt::format("tensor '{}': {} is not a size", tensor.name, d));
  }
  const bool known = tensor.dtype == DType::f32 || tensor.dtype == DType::bf16 ||
                     (tensor.dtype == DType::f8_e4m3 && tensor.shape.size() == 2);
  if (known) return n;
  return invalid_argument(
      fmt::format("tensor '{}': expected f32, bf16 or a matrix of f8_e4m3, got {} of {} dimensions",
                  tensor.name, to_string(tensor.dtype), tensor.shape.size()));
}

struct BlockSize {
  int64_t rows = 128, cols = 128;
};

Result<BlockSize> block_size(const std::string& config_json) {
  EXO_ASSIGN_OR_RETURN(const Json config, parse_json(config_json, "config.json"));
  BlockSize block;
  if (!config.is_object() || !config.contains("quantization_config")) return block;
  const JsonObject quantization(config["quantization_config"], "config.json: quantization_config");
  if (!quantization.has("weight_block_size")) return block;
  EXO_ASSIGN_OR_RETURN(const Json* size, quantization.array("weight_block_size"));
  const auto side = [&](size_t i) {
    return i < size->size() && (*size)[i].is_number_unsigned() ? (*size)[i].get<int64_t>() : 0;
  };
  block = {side(0), side(1)};
  if (size->size() == 2 && block.rows > 0 && block.cols > 0) return block;
  return invalid_argument("config.json: weight_block_size is not two sizes: " + size->dump());
}

Result<std::vector<Planned>> plan_tensors(std::span<const RandomTensor> tensors,
                                          const BlockSize& block) {
  std::vector<Planned> planned;
  for (const RandomTensor& tensor : tensors) {
    EXO_ASSIGN_OR_RETURN(const uint64_t n, element_count(tensor));
    planned.push_back({.header = {tensor.name, tensor.dtype, tensor.shape, {}},
                       .source = &tensor,
                       .is_scales = false,
                       .n_bytes = n * static_cast<uint64_t>(size_bytes(tensor.dtype))});
    if (tensor.dtype != DType::f8_e4m3) continue;
    const std::vector<int64_t> grid = {ceil_div(tensor.shape[0], block.rows),
                                       ceil_div(tensor.shape[1], block.cols)};
    planned.push_back({.header = {tensor.name + "_scale_inv", DType::f32, grid, {}},
                       .source = &tensor,
                       .is_scales = true,
                       .n_bytes = static_cast<uint64_t>(grid[0] * grid[1] * 4)});
  }
  return planned;
}

// Appends n values, each of them table[16 random bits].
template <typename T>
Status append_from_table(SafetensorsStream& out, uint64_t n, const std::vector<T>& table,
                         RandomBits& random) {
  std::vector<T> buffer(std::min<uint64_t>(n, uint64_t{1} << 18));
  while (n > 0) {
    const uint64_t here = std::min<uint64_t>(n, buffer.size());
    for (uint64_t i = 0; i < here; i += 4) {
      const uint64_t bits = random.next();
      for (uint64_t j = 0; j < std::min<uint64_t>(4, here - i); ++j)
        buffer[i + j] = table[bits >> 16 * j & 0xFFFF];
    }
    EXO_RETURN_IF_ERROR(out.append(std::as_bytes(std::span(buffer).first(here))));
    n -= here;
  }
  return ok_status();
}

template <typename T, typename Convert>
Status append_values(SafetensorsStream& out, uint64_t n, RandomBits& random, Convert convert) {
  std::vector<T> table;
  table.reserve(kQuantiles);
  for (float z : quantiles()) table.push_back(convert(z));
  return append_from_table(out, n, table, random);
}

Status append_tensor(SafetensorsStream& out, const Planned& tensor, uint64_t seed) {
  const RandomTensor& source = *tensor.source;
  RandomBits random(seed, tensor.header.name);
  const uint64_t n = tensor.n_bytes / static_cast<uint64_t>(size_bytes(tensor.header.dtype));
  if (tensor.is_scales) {
    std::vector<float> scales(n);
    for (float& scale : scales) {
      const double exponent = static_cast<double>(random.next() >> 11) * 0x1p-53 * 2 - 1;
      scale = source.stddev / kFp8Unit * static_cast<float>(std::exp2(exponent));
    }
    return out.append(std::as_bytes(std::span(scales)));
  }
  switch (source.dtype) {
    case DType::f8_e4m3:
      return append_values<f8_e4m3>(out, n, random,
                                    [](float z) { return to_f8_e4m3(z * kFp8Unit); });
    case DType::f32:
      return append_values<float>(out, n, random,
                                  [&](float z) { return z * source.stddev + source.mean; });
    default:
      return append_values<bf16>(out, n, random,
                                 [&](float z) { return to_bf16(z * source.stddev + source.mean); });
  }
}

}  // namespace

Status write_random_checkpoint(const std::string& folder, const std::string& config_json,
                               std::span<const RandomTensor> tensors, uint64_t shard_bytes,
                               uint64_t seed) {
  EXO_ASSIGN_OR_RETURN(const BlockSize block, block_size(config_json));
  EXO_ASSIGN_OR_RETURN(const std::vector<Planned> planned, plan_tensors(tensors, block));
  // Shards in order; weights and their scales may part, as in the official ones.
  std::vector<std::span<const Planned>> shards;
  uint64_t total = 0;
  for (size_t begin = 0, end = 0; begin < planned.size(); begin = end) {
    uint64_t n_bytes = 0;
    do {
      n_bytes += planned[end++].n_bytes;
    } while (end < planned.size() && n_bytes + planned[end].n_bytes <= shard_bytes);
    shards.push_back(std::span(planned).subspan(begin, end - begin));
    total += n_bytes;
  }
  if (shards.empty()) return invalid_argument(folder + ": no tensors to write");
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) {
    return failed_precondition(
        fmt::format("{}: cannot make the folder: {}", folder, error.message()));
  }
  const std::filesystem::path dir(folder);
  Json weight_map = Json::object();
  for (size_t i = 0; i < shards.size(); ++i) {
    const std::string file = fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size());
    std::vector<NamedTensor> header;
    for (const Planned& tensor : shards[i]) {
      header.push_back(tensor.header);
      if (weight_map.contains(tensor.header.name))
        return invalid_argument(fmt::format("two tensors named '{}'", tensor.header.name));
      weight_map[tensor.header.name] = file;
    }
    EXO_ASSIGN_OR_RETURN(
        SafetensorsStream stream,
        SafetensorsStream::create((dir / file).string(), header, {{"format", "pt"}}));
    for (const Planned& tensor : shards[i])
      EXO_RETURN_IF_ERROR(append_tensor(stream, tensor, seed));
    EXO_RETURN_IF_ERROR(stream.commit());
  }
  EXO_RETURN_IF_ERROR(write_file_atomic((dir / "config.json").string(), config_json));
  const Json index = {{"metadata", {{"total_size", total}}}, {"weight_map", std::move(weight_map)}};
  return write_file_atomic((dir / "model.safetensors.index.json").string(), index.dump(2));
}

}  // namespace exo::weights
