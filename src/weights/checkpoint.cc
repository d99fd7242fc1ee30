#include "weights/checkpoint.h"

#include <fmt/core.h>

#include <algorithm>
#include <filesystem>
#include <numeric>
#include <optional>
#include <set>

#include "base/json.h"
#include "base/log.h"
#include "weights/hash.h"

namespace exo::weights {
namespace {

constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the reference implementation's own limit
constexpr uint64_t kMaxIndexBytes = uint64_t{256} << 20;
constexpr int kDataSamples = 8;
constexpr uint64_t kDataSampleBytes = 64;

// A name out of the file, fit for a terminal: no control characters, not longer than a line.
std::string shown(std::string_view name) {
  std::string text(name.substr(0, 160));
  for (char& c : text) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) c = '?';
  }
  return name.size() > 160 ? text + "..." : text;
}

std::optional<DType> dtype_from_safetensors(std::string_view name) {
  if (name == "F32") return DType::f32;
  if (name == "F16") return DType::f16;
  if (name == "BF16") return DType::bf16;
  if (name == "F8_E4M3") return DType::f8_e4m3;
  if (name == "F8_E8M0") return DType::f8_e8m0;
  if (name == "I8") return DType::i8;
  if (name == "U8") return DType::u8;
  if (name == "I32") return DType::i32;
  if (name == "I64") return DType::i64;
  return std::nullopt;
}

// One tensor's entry of the header; offsets still count from the end of the header.
Result<TensorInfo> parse_tensor(const Json& json, const std::string& where) {
  const JsonObject object(json, where);
  EXO_ASSIGN_OR_RETURN(const std::string dtype, object.string("dtype"));
  EXO_ASSIGN_OR_RETURN(const Json* shape, object.array("shape"));
  EXO_ASSIGN_OR_RETURN(const Json* offsets, object.array("data_offsets"));
  TensorInfo info;
  const std::optional<DType> known = dtype_from_safetensors(dtype);
  if (!known) {
    return unimplemented(fmt::format(
        "{}: dtype '{}' is not known; expected F32, F16, BF16, F8_E4M3, F8_E8M0, I8, U8, I32 or "
        "I64",
        where, shown(dtype)));
  }
  info.dtype = *known;
  uint64_t n_bytes = static_cast<uint64_t>(size_bytes(info.dtype));
  for (const Json& dim : *shape) {
    uint64_t d = 0;
    if (dim.is_number_unsigned()) d = dim.get<uint64_t>();
    if (!dim.is_number_unsigned() || d > uint64_t{1} << 62 ||
        __builtin_mul_overflow(n_bytes, d, &n_bytes) || n_bytes > uint64_t{1} << 62) {
      return data_loss(
          fmt::format("{}: shape {} is not a list of sizes whose product fits 62 bits", where,
                      shown(shape->dump(-1, ' ', true, Json::error_handler_t::replace))));
    }
    info.shape.push_back(static_cast<int64_t>(d));
  }
  if (offsets->size() != 2 || !(*offsets)[0].is_number_unsigned() ||
      !(*offsets)[1].is_number_unsigned()) {
    return data_loss(
        fmt::format("{}: data_offsets: expected two offsets, got {}", where,
                    shown(offsets->dump(-1, ' ', true, Json::error_handler_t::replace))));
  }
  const auto begin = (*offsets)[0].get<uint64_t>(), end = (*offsets)[1].get<uint64_t>();
  if (end < begin || end - begin != n_bytes) {
    return data_loss(
        fmt::format("{}: data_offsets [{}, {}] do not hold its {} bytes (dtype times shape)", where,
                    begin, end, n_bytes));
  }
  info.offset_bytes = begin;
  info.n_bytes = n_bytes;
  return info;
}

// The tensors, in the order of their offsets, must fill the data section exactly: no overlap, no
// hole, nothing behind the last one.
Status check_coverage(const std::map<std::string, TensorInfo>& tensors, uint64_t data_bytes,
                      std::string_view where) {
  std::vector<const std::pair<const std::string, TensorInfo>*> order;
  order.reserve(tensors.size());
  for (const auto& entry : tensors) order.push_back(&entry);
  std::sort(order.begin(), order.end(), [](const auto* a, const auto* b) {
    return std::pair(a->second.offset_bytes, a->second.n_bytes) <
           std::pair(b->second.offset_bytes, b->second.n_bytes);
  });
  uint64_t end = 0;
  for (const auto* entry : order) {
    const TensorInfo& t = entry->second;
    if (t.offset_bytes != end) {
      return data_loss(
          fmt::format("{}: tensor '{}' begins at data byte {}, expected {}: {}", where,
                      shown(entry->first), t.offset_bytes, end,
                      t.offset_bytes < end ? "it overlaps another" : "a hole is before it"));
    }
    end += t.n_bytes;  // both at most 2^62 and end only grows while below data_bytes
    if (end > data_bytes) {
      return data_loss(fmt::format(
          "{}: tensor '{}' ends at data byte {}, the file has {}: the download is incomplete; "
          "download the file again",
          where, shown(entry->first), end, data_bytes));
    }
  }
  if (end != data_bytes) {
    return data_loss(fmt::format("{}: {} bytes lie behind the last tensor: not this header's data",
                                 where, data_bytes - end));
  }
  return ok_status();
}

Status check_metadata(const Json& metadata, std::string_view where) {
  bool good = metadata.is_object();
  if (good) {
    for (const Json& value : metadata) good = good && value.is_string();
  }
  if (good) return ok_status();
  return data_loss(fmt::format("{}: __metadata__ is not an object of strings", where));
}

// The length that the first 8 bytes claim, checked against the file's size.
Result<uint64_t> header_length(std::string_view bytes, uint64_t file_bytes,
                               std::string_view where) {
  if (bytes.size() < 8 || file_bytes < 8) {
    return data_loss(fmt::format(
        "{}: has {} bytes, expected a safetensors file (at least 8): the download is incomplete",
        where, file_bytes));
  }
  uint64_t length = 0;
  for (int i = 7; i >= 0; --i)
    length = length << 8 | static_cast<unsigned char>(bytes[static_cast<size_t>(i)]);
  if (length > kMaxHeaderBytes) {
    return data_loss(
        fmt::format("{}: header of {} bytes, at most {} are allowed: not a safetensors file", where,
                    length, kMaxHeaderBytes));
  }
  if (length > file_bytes - 8) {
    return data_loss(fmt::format(
        "{}: header of {} bytes, the file has {} more: the download is incomplete; download the "
        "file again",
        where, length, file_bytes - 8));
  }
  return length;
}

std::string_view text_of(const MappedPart& part) {
  return {reinterpret_cast<const char*>(part.bytes().data()), part.bytes().size()};
}

struct OpenedFile {
  RandomAccessFile file;
  std::map<std::string, TensorInfo> tensors;
};

// Opens one file and adds its name, size, header and a sample of its data to `hash`.
Result<OpenedFile> open_safetensors(const std::string& path, std::string_view name, Xxh3& hash) {
  OpenedFile opened;
  EXO_ASSIGN_OR_RETURN(opened.file, RandomAccessFile::open(path));
  const uint64_t file_bytes = opened.file.size_bytes();
  EXO_ASSIGN_OR_RETURN(MappedPart part, opened.file.map(0, std::min<uint64_t>(8, file_bytes)));
  EXO_ASSIGN_OR_RETURN(const uint64_t length, header_length(text_of(part), file_bytes, path));
  EXO_ASSIGN_OR_RETURN(part, opened.file.map(0, 8 + length));
  const std::string_view header = text_of(part);
  EXO_ASSIGN_OR_RETURN(opened.tensors, parse_safetensors_header(header, file_bytes, path));
  hash.update(name.data(), name.size());
  hash.update(&file_bytes, sizeof file_bytes);
  hash.update(header.data(), header.size());
  const uint64_t data_bytes = file_bytes - header.size();
  for (uint64_t i = 0; i < kDataSamples && data_bytes >= kDataSamples * kDataSampleBytes; ++i) {
    const uint64_t step = (data_bytes - kDataSampleBytes) / (kDataSamples - 1);
    EXO_ASSIGN_OR_RETURN(const MappedPart sample,
                         opened.file.map(header.size() + i * step, kDataSampleBytes));
    hash.update(sample.bytes().data(), sample.bytes().size());
  }
  return opened;
}

// A shard must stay inside the folder. (It may be a symbolic link: the hub's cache is made of
// them.)
bool is_safe_relative(const std::string& file) {
  if (file.empty() || file.size() > 1024) return false;
  for (char c : file) {
    if (static_cast<unsigned char>(c) < 0x20 || c == '\\' || c == ':') return false;
  }
  const std::filesystem::path path(file);
  if (path.is_absolute() || !path.has_filename()) return false;
  return std::none_of(path.begin(), path.end(), [](const auto& part) { return part == ".."; });
}

using ShardMap = std::map<std::string, std::set<std::string>>;  // file -> tensors

Result<ShardMap> read_index(const std::string& path) {
  EXO_ASSIGN_OR_RETURN(const Json index, read_json_file(path, kMaxIndexBytes));
  EXO_ASSIGN_OR_RETURN(const Json* map, JsonObject(index, path).object("weight_map"));
  ShardMap shards;
  for (auto it = map->begin(); it != map->end(); ++it) {
    if (!it->is_string()) {
      return invalid_argument(
          fmt::format("{}: weight_map['{}']: expected a file name", path, shown(it.key())));
    }
    const auto file = it->get<std::string>();
    if (!is_safe_relative(file)) {
      return invalid_argument(
          fmt::format("{}: weight_map['{}']: '{}' is not the name of a file inside the folder",
                      path, shown(it.key()), shown(file)));
    }
    shards[file].insert(it.key());
  }
  if (shards.empty()) return invalid_argument(path + ": weight_map is empty");
  return shards;
}

Status missing_shards(const std::string& folder, const ShardMap& shards) {
  size_t n_missing = 0;
  std::string names;
  for (const auto& [file, names_inside] : shards) {
    std::error_code ignored;
    if (std::filesystem::exists(std::filesystem::path(folder) / file, ignored)) continue;
    if (++n_missing <= 3) names += (names.empty() ? "" : ", ") + file;
  }
  if (n_missing == 0) return ok_status();
  return not_found(fmt::format(
      "{}: {} of {} shards are missing ({}{}): the download is incomplete; download them again",
      folder, n_missing, shards.size(), names, n_missing > 3 ? ", ..." : ""));
}

int64_t row_count(const TensorInfo& tensor) { return tensor.shape.empty() ? 1 : tensor.shape[0]; }

}  // namespace

Result<std::map<std::string, TensorInfo>> parse_safetensors_header(std::string_view header,
                                                                   uint64_t file_bytes,
                                                                   std::string_view where) {
  EXO_ASSIGN_OR_RETURN(const uint64_t length, header_length(header, file_bytes, where));
  if (header.size() < 8 + length)
    return internal_error(fmt::format("{}: only a part of the header was given", where));
  const std::string_view text = header.substr(8, length);
  if (!text.starts_with('{'))
    return data_loss(
        fmt::format("{}: header does not begin with '{{': not a safetensors file", where));
  Result<Json> parsed = parse_json(text, fmt::format("{}: header", where));
  if (!parsed.ok()) return data_loss(parsed.status().message());
  std::map<std::string, TensorInfo> tensors;
  for (auto it = parsed->begin(); it != parsed->end(); ++it) {
    if (it.key() == "__metadata__") {
      EXO_RETURN_IF_ERROR(check_metadata(*it, where));
      continue;
    }
    EXO_ASSIGN_OR_RETURN(TensorInfo info,
                         parse_tensor(*it, fmt::format("{}: tensor '{}'", where, shown(it.key()))));
    tensors.emplace(it.key(), std::move(info));
  }
  EXO_RETURN_IF_ERROR(check_coverage(tensors, file_bytes - 8 - length, where));
  for (auto& [name, info] : tensors) info.offset_bytes += 8 + length;
  return tensors;
}

Result<Checkpoint> Checkpoint::open_file(const std::string& path) {
  Checkpoint checkpoint;
  const std::filesystem::path p(path);
  checkpoint.folder_ = p.parent_path().string();
  Xxh3 hash;
  EXO_ASSIGN_OR_RETURN(OpenedFile opened, open_safetensors(path, p.filename().string(), hash));
  checkpoint.tensors_ = std::move(opened.tensors);
  checkpoint.files_.push_back(std::move(opened.file));
  checkpoint.header_hash_ = hash.digest();
  return checkpoint;
}

Result<Checkpoint> Checkpoint::open(const std::string& folder) {
  const std::filesystem::path dir(folder);
  const std::string single = (dir / "model.safetensors").string();
  const std::string index = (dir / "model.safetensors.index.json").string();
  std::error_code ignored;
  if (std::filesystem::exists(single, ignored)) {
    EXO_ASSIGN_OR_RETURN(Checkpoint checkpoint, open_file(single));
    checkpoint.folder_ = folder;
    return checkpoint;
  }
  if (!std::filesystem::exists(index, ignored)) {
    return not_found(fmt::format(
        "{}: has neither model.safetensors nor model.safetensors.index.json: not a checkpoint "
        "folder",
        folder));
  }
  EXO_ASSIGN_OR_RETURN(const ShardMap shards, read_index(index));
  EXO_RETURN_IF_ERROR(missing_shards(folder, shards));
  Checkpoint checkpoint;
  checkpoint.folder_ = folder;
  Xxh3 hash;
  for (const auto& [file, listed] : shards) {
    const std::string path = (dir / file).string();
    EXO_ASSIGN_OR_RETURN(OpenedFile opened, open_safetensors(path, file, hash));
    for (const std::string& name : listed) {
      auto node = opened.tensors.extract(name);
      if (node.empty()) {
        return data_loss(fmt::format(
            "{}: tensor '{}' is not in this file, though model.safetensors.index.json says so: "
            "the files are not of one download",
            path, shown(name)));
      }
      node.mapped().file = static_cast<int>(checkpoint.files_.size());
      checkpoint.tensors_.insert(std::move(node));
    }
    for (const auto& [name, info] : opened.tensors) {
      log_warn("{}: tensor '{}' is ignored: model.safetensors.index.json doesn't list it here",
               path, shown(name));
    }
    checkpoint.files_.push_back(std::move(opened.file));
  }
  checkpoint.header_hash_ = hash.digest();
  return checkpoint;
}

Result<TensorInfo> Checkpoint::find(const std::string& name) const {
  auto it = tensors_.find(name);
  if (it == tensors_.end()) {
    return not_found(fmt::format("{}: tensor '{}' is missing; the checkpoint has {} others",
                                 folder_, shown(name), tensors_.size()));
  }
  return it->second;
}

uint64_t Checkpoint::total_bytes() const {
  return std::accumulate(tensors_.begin(), tensors_.end(), uint64_t{0},
                         [](uint64_t n, const auto& t) { return n + t.second.n_bytes; });
}

Result<MappedPart> Checkpoint::map_bytes(const TensorInfo& tensor, uint64_t begin,
                                         uint64_t n) const {
  if (begin > tensor.n_bytes || n > tensor.n_bytes - begin) {
    return internal_error(fmt::format("{}: bytes [{}, {} + {}) asked of a tensor of {}", folder_,
                                      begin, begin, n, tensor.n_bytes));
  }
  return files_[static_cast<size_t>(tensor.file)].map(tensor.offset_bytes + begin, n);
}

Status Checkpoint::read_bytes(const TensorInfo& tensor, uint64_t begin,
                              std::span<std::byte> out) const {
  EXO_ASSIGN_OR_RETURN(const MappedPart part, map_bytes(tensor, begin, out.size()));
  std::copy(part.bytes().begin(), part.bytes().end(), out.begin());
  return ok_status();
}

Status widen_to_f32(DType dtype, std::span<const std::byte> in, std::span<float> out) {
  switch (dtype) {
    case DType::f32:
      std::memcpy(out.data(), in.data(), out.size_bytes());
      return ok_status();
    case DType::f16:
      for (size_t i = 0; i < out.size(); ++i) {
        uint16_t bits;
        std::memcpy(&bits, in.data() + 2 * i, 2);
        out[i] = f16_to_f32(bits);
      }
      return ok_status();
    case DType::bf16:
      for (size_t i = 0; i < out.size(); ++i) {
        bf16 value;
        std::memcpy(&value, in.data() + 2 * i, 2);
        out[i] = to_f32(value);
      }
      return ok_status();
    case DType::f8_e4m3: {
      static const auto kTable = [] {
        std::array<float, 256> table;
        for (size_t b = 0; b < 256; ++b) table[b] = to_f32(f8_e4m3{static_cast<uint8_t>(b)});
        return table;
      }();
      for (size_t i = 0; i < out.size(); ++i) out[i] = kTable[std::to_integer<size_t>(in[i])];
      return ok_status();
    }
    case DType::f8_e8m0:
      for (size_t i = 0; i < out.size(); ++i)
        out[i] = f8_e8m0_to_f32(std::to_integer<uint8_t>(in[i]));
      return ok_status();
    default:
      return invalid_argument(
          fmt::format("expected F32, F16, BF16, F8_E4M3 or F8_E8M0, got {}", to_string(dtype)));
  }
}

Status Checkpoint::read_rows_f32(const std::string& name, int64_t row_begin, int64_t n_rows,
                                 std::span<float> out) const {
  EXO_ASSIGN_OR_RETURN(const TensorInfo info, find(name));
  const int64_t rows = row_count(info);
  const uint64_t n_cols = rows == 0 ? 0
                                    : info.n_bytes / static_cast<uint64_t>(size_bytes(info.dtype)) /
                                          static_cast<uint64_t>(rows);
  if (row_begin < 0 || n_rows < 0 || row_begin > rows || n_rows > rows - row_begin ||
      out.size() != static_cast<uint64_t>(n_rows) * n_cols) {
    return internal_error(fmt::format(
        "{}: rows [{}, {} + {}) of tensor '{}' asked for as {} values; it has {} rows of {}",
        folder_, row_begin, row_begin, n_rows, shown(name), out.size(), rows, n_cols));
  }
  const uint64_t element = static_cast<uint64_t>(size_bytes(info.dtype));
  constexpr size_t kChunk = size_t{1} << 20;  // values; bounds what is mapped at a time
  uint64_t at = static_cast<uint64_t>(row_begin) * n_cols;
  while (!out.empty()) {
    const size_t n = std::min(out.size(), kChunk);
    EXO_ASSIGN_OR_RETURN(const MappedPart part, map_bytes(info, at * element, n * element));
    Status widened = widen_to_f32(info.dtype, part.bytes(), out.first(n));
    if (!widened.ok())
      return std::move(widened).with_context(fmt::format("{}: tensor '{}'", folder_, shown(name)));
    out = out.subspan(n);
    at += n;
  }
  return ok_status();
}

Result<std::vector<float>> Checkpoint::read_f32(const std::string& name) const {
  EXO_ASSIGN_OR_RETURN(const TensorInfo info, find(name));
  std::vector<float> values(info.n_bytes / static_cast<uint64_t>(size_bytes(info.dtype)));
  EXO_RETURN_IF_ERROR(read_rows_f32(name, 0, row_count(info), values));
  return values;
}

}  // namespace exo::weights
