#include "weights/weight_config.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <optional>

#include "base/json.h"
#include "weights/hash.h"

namespace exo::weights {
namespace {

constexpr uint64_t kMaxManifestBytes = uint64_t{256} << 20;
constexpr int64_t kMaxSide = int64_t{1} << 31;      // rows or columns of a matrix
constexpr int64_t kMaxElements = int64_t{1} << 45;  // keeps every byte count inside 64 bits
constexpr int64_t kMaxCount = int64_t{1} << 20;     // matrices of an entry

constexpr std::array kFormats = {WeightFormat::f32, WeightFormat::bf16, WeightFormat::fp8,
                                 WeightFormat::int8, WeightFormat::int4};
constexpr std::array kDTypes = {DType::f32, DType::f16, DType::bf16, DType::f8_e4m3, DType::f8_e8m0,
                                DType::i8,  DType::u8,  DType::i32,  DType::i64};

// The value whose to_string is `text`.
template <typename Values>
auto named(const Values& values, std::string_view text)
    -> std::optional<typename Values::value_type> {
  for (const auto v : values) {
    if (to_string(v) == text) return v;
  }
  return std::nullopt;
}

// Byte offsets of a packed matrix's parts from its beginning.
struct PackedParts {
  uint64_t row_scales, row_sums, block_scales, end;
};
PackedParts parts_of(WeightFormat format, int64_t n_out, int64_t n_in, int64_t k_block) {
  const int64_t panels = n_panels(n_out);
  const bool integer = format == WeightFormat::int8 || format == WeightFormat::int4;
  const int64_t row_scales = panels * panel_bytes(format, n_in);
  const int64_t row_sums = row_scales + (integer ? align_up(panels * kPanelRows * 4) : 0);
  const int64_t block_scales =
      row_sums + (format == WeightFormat::int8 ? align_up(panels * kPanelRows * 4) : 0);
  const int64_t end =
      block_scales +
      (format == WeightFormat::fp8 ? align_up(panels * ceil_div(n_in, k_block) * 4) : 0);
  return {static_cast<uint64_t>(row_scales), static_cast<uint64_t>(row_sums),
          static_cast<uint64_t>(block_scales), static_cast<uint64_t>(end)};
}

Json entry_to_json(const WeightEntry& e) {
  Json json = {{"file", e.file},
               {"offset", e.offset_bytes},
               {"bytes", e.n_bytes},
               {"xxh3", hash_text(e.checksum)}};
  if (e.layout == Layout::plain) {
    json["layout"] = "plain";
    json["dtype"] = to_string(e.dtype);
    json["shape"] = e.shape;
    return json;
  }
  json["layout"] = "packed";
  json["format"] = to_string(e.format);
  json["count"] = e.count;
  json["n_out"] = e.n_out;
  json["n_in"] = e.n_in;
  json["matrix_bytes"] = e.matrix_bytes;
  if (e.gate_up) json["gate_up"] = true;
  if (e.format == WeightFormat::fp8) json["k_block"] = e.k_block;
  return json;
}

Result<uint64_t> read_hash(const JsonObject& object, std::string_view key,
                           const std::string& where) {
  EXO_ASSIGN_OR_RETURN(const std::string text, object.string(key));
  const std::optional<uint64_t> hash = parse_hash(text);
  if (!hash) {
    return data_loss(
        fmt::format("{}: field '{}': expected 16 hexadecimal digits, got '{}'", where, key, text));
  }
  return *hash;
}

Status read_plain(const JsonObject& object, const std::string& where, WeightEntry& e) {
  EXO_ASSIGN_OR_RETURN(const std::string dtype, object.string("dtype"));
  EXO_ASSIGN_OR_RETURN(const Json* shape, object.array("shape"));
  const std::optional<DType> known = named(kDTypes, dtype);
  if (!known) return data_loss(fmt::format("{}: dtype '{}' is not known", where, dtype));
  e.dtype = *known;
  if (shape->size() > static_cast<size_t>(kMaxRank))
    return data_loss(
        fmt::format("{}: has {} dimensions, at most {}", where, shape->size(), kMaxRank));
  int64_t n = size_bytes(e.dtype);
  for (const Json& dim : *shape) {
    if (!dim.is_number_unsigned() || dim.get<uint64_t>() > static_cast<uint64_t>(kMaxElements) ||
        __builtin_mul_overflow(n, dim.get<int64_t>(), &n)) {
      return data_loss(fmt::format("{}: shape {} is not one", where, shape->dump()));
    }
    e.shape.push_back(dim.get<int64_t>());
  }
  if (static_cast<uint64_t>(n) == e.n_bytes) return ok_status();
  return data_loss(fmt::format("{}: shape {} of {} needs {} bytes, the entry has {}", where,
                               shape->dump(), dtype, n, e.n_bytes));
}

Status read_packed(const JsonObject& object, const std::string& where, WeightEntry& e) {
  EXO_ASSIGN_OR_RETURN(const std::string format, object.string("format"));
  EXO_ASSIGN_OR_RETURN(e.count, object.integer("count", 1, kMaxCount));
  EXO_ASSIGN_OR_RETURN(e.n_out, object.integer("n_out", 1, kMaxSide));
  EXO_ASSIGN_OR_RETURN(e.n_in, object.integer("n_in", 1, kMaxSide));
  EXO_ASSIGN_OR_RETURN(const int64_t matrix_bytes,
                       object.integer("matrix_bytes", 1, std::numeric_limits<int64_t>::max()));
  EXO_ASSIGN_OR_RETURN(e.gate_up, object.boolean_or("gate_up", false));
  EXO_ASSIGN_OR_RETURN(e.k_block, object.integer_or("k_block", 0, 0, kMaxSide));
  const std::optional<WeightFormat> known = named(kFormats, format);
  if (!known) return data_loss(fmt::format("{}: format '{}' is not known", where, format));
  e.format = *known;
  e.matrix_bytes = static_cast<uint64_t>(matrix_bytes);
  if (align_up(e.n_out, kPanelRows) > kMaxElements / align_up(e.n_in, kKPad))
    return data_loss(fmt::format("{}: [{}, {}] is too large", where, e.n_out, e.n_in));
  if (e.gate_up && e.n_out % (2 * kPanelRows) != 0)
    return data_loss(
        fmt::format("{}: gate_up with {} rows, expected whole panels", where, e.n_out));
  const bool fp8 = e.format == WeightFormat::fp8;
  if (fp8 ? e.k_block == 0 || e.k_block % 64 != 0 : e.k_block != 0)
    return data_loss(fmt::format("{}: k_block {} does not go with {}", where, e.k_block, format));
  const uint64_t expected = packed_matrix_bytes(e.format, e.n_out, e.n_in, e.k_block);
  uint64_t total = 0;
  if (e.matrix_bytes == expected &&
      !__builtin_mul_overflow(expected, static_cast<uint64_t>(e.count), &total) &&
      total == e.n_bytes) {
    return ok_status();
  }
  return data_loss(
      fmt::format("{}: {} x {} [{}, {}] needs {} bytes a matrix, the entry has {} and {} in all",
                  where, e.count, format, e.n_out, e.n_in, expected, e.matrix_bytes, e.n_bytes));
}

Result<WeightEntry> entry_from_json(const Json& json, const WeightConfig& config,
                                    const std::string& where) {
  const JsonObject object(json, where);
  WeightEntry e;
  constexpr int64_t kMax = std::numeric_limits<int64_t>::max();
  EXO_ASSIGN_OR_RETURN(e.file, object.string("file"));
  EXO_ASSIGN_OR_RETURN(const int64_t offset, object.integer("offset", 0, kMax));
  EXO_ASSIGN_OR_RETURN(const int64_t n_bytes, object.integer("bytes", 0, kMax));
  EXO_ASSIGN_OR_RETURN(e.checksum, read_hash(object, "xxh3", where));
  EXO_ASSIGN_OR_RETURN(const std::string layout, object.string("layout"));
  e.offset_bytes = static_cast<uint64_t>(offset);
  e.n_bytes = static_cast<uint64_t>(n_bytes);
  const auto file = config.file_bytes.find(e.file);
  if (file == config.file_bytes.end())
    return data_loss(fmt::format("{}: file '{}' is not among 'files'", where, e.file));
  if (e.offset_bytes > file->second || e.n_bytes > file->second - e.offset_bytes) {
    return data_loss(fmt::format("{}: bytes [{}, {} + {}) lie outside {} of {} bytes", where,
                                 offset, offset, n_bytes, e.file, file->second));
  }
  if (offset % kAlignment != 0)
    return data_loss(fmt::format("{}: offset {} is not aligned to {}", where, offset, kAlignment));
  if (layout == "plain") {
    e.layout = Layout::plain;
    EXO_RETURN_IF_ERROR(read_plain(object, where, e));
  } else if (layout == "packed") {
    e.layout = Layout::packed;
    EXO_RETURN_IF_ERROR(read_packed(object, where, e));
  } else {
    return data_loss(fmt::format("{}: layout '{}' is not known", where, layout));
  }
  return e;
}

Json config_to_json(const WeightConfig& config) {
  Json entries = Json::object();
  for (const auto& [path, entry] : config.entries) entries[path] = entry_to_json(entry);
  return {{"version", config.version},  {"source", hash_text(config.source_hash)},
          {"format", config.format},    {"layers", {config.layer_begin, config.layer_end}},
          {"files", config.file_bytes}, {"entries", std::move(entries)}};
}

Result<WeightConfig> config_from_json(const Json& json, const std::string& where) {
  const JsonObject object(json, where);
  WeightConfig config;
  EXO_ASSIGN_OR_RETURN(const int64_t version, object.integer("version", 0, 1 << 30));
  if (version != kCacheVersion) {
    return failed_precondition(
        fmt::format("{}: made by another version of exo (cache version {}, this one has {}); run "
                    "`exo convert` again",
                    where, version, kCacheVersion));
  }
  EXO_ASSIGN_OR_RETURN(config.source_hash, read_hash(object, "source", where));
  EXO_ASSIGN_OR_RETURN(config.format, object.string("format"));
  EXO_ASSIGN_OR_RETURN(const Json* layers, object.array("layers"));
  if (layers->size() != 2 || !(*layers)[0].is_number_unsigned() ||
      !(*layers)[1].is_number_unsigned() || (*layers)[1].get<uint64_t>() > 1 << 20 ||
      (*layers)[0].get<uint64_t>() > (*layers)[1].get<uint64_t>()) {
    return data_loss(fmt::format("{}: layers {} is not a range", where, layers->dump()));
  }
  config.layer_begin = (*layers)[0].get<int64_t>();
  config.layer_end = (*layers)[1].get<int64_t>();
  EXO_ASSIGN_OR_RETURN(const Json* files, object.object("files"));
  for (auto it = files->begin(); it != files->end(); ++it) {
    if (!is_plain_name(it.key()) || !it->is_number_unsigned() ||
        it->get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
      return data_loss(
          fmt::format("{}: files: '{}' is not a file name with its size", where, it.key()));
    }
    config.file_bytes[it.key()] = it->get<uint64_t>();
  }
  EXO_ASSIGN_OR_RETURN(const Json* entries, object.object("entries"));
  for (auto it = entries->begin(); it != entries->end(); ++it) {
    EXO_ASSIGN_OR_RETURN(
        WeightEntry entry,
        entry_from_json(*it, config, fmt::format("{}: entry '{}'", where, it.key())));
    config.entries.emplace(it.key(), std::move(entry));
  }
  return config;
}

// "3 x int4 [32, 64] gate_up", "f32 [7]"
std::string describe(const WeightEntry& e) {
  if (e.layout == Layout::packed) {
    return fmt::format("{} x {} [{}, {}]{}", e.count, to_string(e.format), e.n_out, e.n_in,
                       e.gate_up ? " gate_up" : "");
  }
  std::string shape;
  for (int64_t d : e.shape) shape += fmt::format("{}{}", shape.empty() ? "" : ", ", d);
  return fmt::format("{} [{}]", to_string(e.dtype), shape);
}

}  // namespace

bool is_plain_name(std::string_view name) {
  if (name.empty() || name.size() > 200 || name[0] == '.') return false;
  return std::all_of(name.begin(), name.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
           c == '_' || c == '-';
  });
}

uint64_t packed_matrix_bytes(WeightFormat format, int64_t n_out, int64_t n_in, int64_t k_block) {
  return parts_of(format, n_out, n_in, k_block).end;
}

std::string WeightConfig::to_text() const {
  Json body = config_to_json(*this);
  const std::string checksum = hash_text(xxh3(body.dump()));
  return Json{{"xxh3", checksum}, {"weights", std::move(body)}}.dump(1);
}

Result<WeightConfig> WeightConfig::from_text(std::string_view text, const std::string& where) {
  EXO_ASSIGN_OR_RETURN(const Json json, parse_json(text, where));
  const JsonObject object(json, where);
  EXO_ASSIGN_OR_RETURN(const uint64_t checksum, read_hash(object, "xxh3", where));
  EXO_ASSIGN_OR_RETURN(const Json* body, object.object("weights"));
  const uint64_t found = xxh3(body->dump(-1, ' ', false, Json::error_handler_t::replace));
  if (found != checksum) {
    return data_loss(fmt::format(
        "{}: its checksum is {}, expected {}: the file was changed; run `exo convert` again", where,
        hash_text(found), hash_text(checksum)));
  }
  return config_from_json(*body, where);
}

Result<WeightCache> WeightCache::open(const std::string& folder) {
  const std::filesystem::path dir(folder);
  const std::string manifest = (dir / kManifestName).string();
  EXO_ASSIGN_OR_RETURN(const std::string text, read_file(manifest, kMaxManifestBytes));
  WeightCache cache;
  cache.folder_ = folder;
  EXO_ASSIGN_OR_RETURN(cache.config_, WeightConfig::from_text(text, manifest));
  for (const auto& [name, n_bytes] : cache.config_.file_bytes) {
    Result<MappedFile> file = MappedFile::open((dir / name).string());
    if (!file.ok()) {
      return std::move(file).status().with_context(
          fmt::format("{} is not whole; run `exo convert` again", folder));
    }
    if (file->size_bytes() != n_bytes) {
      return data_loss(fmt::format("{}: has {} bytes, expected {} ({}); run `exo convert` again",
                                   file->path(), file->size_bytes(), n_bytes, kManifestName));
    }
    cache.files_[name] = *std::move(file);
  }
  return cache;
}

Result<const WeightEntry*> WeightCache::find(const std::string& path) const {
  const auto it = config_.entries.find(path);
  if (it != config_.entries.end()) return &it->second;
  return not_found(
      fmt::format("{}/{}: '{}' is missing: the cache is of another model or of other layers ({} to "
                  "{}); run `exo convert` again",
                  folder_, kManifestName, path, config_.layer_begin, config_.layer_end));
}

Status WeightCache::mismatch(const std::string& path, const WeightEntry& entry,
                             const std::string& expected) const {
  return data_loss(fmt::format("{}/{}: '{}': expected {}, found {}; run `exo convert` again",
                               folder_, entry.file, path, expected, describe(entry)));
}

Result<std::vector<PackedMatrix>> WeightCache::matrices(const std::string& path, int64_t count,
                                                        int64_t n_out, int64_t n_in,
                                                        bool gate_up) const {
  EXO_ASSIGN_OR_RETURN(const WeightEntry* e, find(path));
  if (e->layout != Layout::packed || e->count != count || e->n_out != n_out || e->n_in != n_in ||
      e->gate_up != gate_up) {
    return mismatch(
        path, *e,
        fmt::format("{} x packed [{}, {}]{}", count, n_out, n_in, gate_up ? " gate_up" : ""));
  }
  const PackedParts parts = parts_of(e->format, n_out, n_in, e->k_block);
  const std::byte* base = files_.at(e->file).data() + e->offset_bytes;
  std::vector<PackedMatrix> result;
  result.reserve(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i, base += e->matrix_bytes) {
    PackedMatrix m{.format = e->format, .gate_up = gate_up, .n_out = n_out, .n_in = n_in};
    m.tiles = base;
    if (parts.row_sums > parts.row_scales)
      m.row_scales = reinterpret_cast<const float*>(base + parts.row_scales);
    if (parts.block_scales > parts.row_sums)
      m.row_sums = reinterpret_cast<const int32_t*>(base + parts.row_sums);
    if (parts.end > parts.block_scales)
      m.block_scales = reinterpret_cast<const float*>(base + parts.block_scales);
    m.k_block = e->k_block;
    result.push_back(m);
  }
  return result;
}

Result<PackedMatrix> WeightCache::matrix(const std::string& path, int64_t n_out, int64_t n_in,
                                         bool gate_up) const {
  EXO_ASSIGN_OR_RETURN(const std::vector<PackedMatrix> all,
                       matrices(path, 1, n_out, n_in, gate_up));
  return all[0];
}

Result<TensorView> WeightCache::tensor(const std::string& path, DType dtype,
                                       std::initializer_list<int64_t> shape) const {
  EXO_ASSIGN_OR_RETURN(const WeightEntry* e, find(path));
  if (e->layout != Layout::plain || e->dtype != dtype ||
      !std::equal(shape.begin(), shape.end(), e->shape.begin(), e->shape.end())) {
    WeightEntry expected;
    expected.dtype = dtype;
    expected.shape = shape;
    return mismatch(path, *e, describe(expected));
  }
  TensorView view;
  view.data = const_cast<std::byte*>(files_.at(e->file).data() + e->offset_bytes);
  view.dtype = dtype;
  view.rank = static_cast<int>(shape.size());
  int64_t stride = 1;
  for (size_t i = shape.size(); i-- > 0;) {
    view.shape[i] = e->shape[i];
    view.strides[i] = stride;
    stride *= e->shape[i];
  }
  return view;
}

Status WeightCache::verify() const {
  constexpr uint64_t kStep = uint64_t{32} << 20;  // pages are let go again after each
  for (const auto& [path, e] : config_.entries) {
    const MappedFile& file = files_.at(e.file);
    Xxh3 hash;
    for (uint64_t at = 0; at < e.n_bytes; at += kStep) {
      const uint64_t n = std::min(kStep, e.n_bytes - at);
      hash.update(file.data() + e.offset_bytes + at, n);
      file.advise(e.offset_bytes + at, n, MappedFile::Advice::dont_need);
    }
    if (hash.digest() != e.checksum) {
      return data_loss(fmt::format(
          "{}: '{}' ({}): its checksum is {}, expected {}: the file is damaged; delete "
          "the cache and run `exo convert` again",
          file.path(), path, describe(e), hash_text(hash.digest()), hash_text(e.checksum)));
    }
  }
  return ok_status();
}

namespace {

// Pieces that end at huge pages' borders.
void populate(const MappedFile& file, ThreadPool& pool) {
  constexpr uint64_t kPiece = uint64_t{64} << 20;
  pool.parallel_for(
      static_cast<int64_t>((file.size_bytes() + kPiece - 1) / kPiece), [&](int64_t i, int) {
        file.advise(static_cast<uint64_t>(i) * kPiece, kPiece, MappedFile::Advice::populate);
      });
}

}  // namespace

void WeightCache::read_all(ThreadPool& pool) const {
  for (const auto& [name, file] : files_) populate(file, pool);
}

void WeightCache::map_resident(ThreadPool& pool) const {
  constexpr double kNearlyAll = 0.95;
  for (const auto& [name, file] : files_)
    if (file.resident_share() > kNearlyAll) populate(file, pool);
}

void WeightCache::advise_single_experts() const {
  for (const auto& [path, e] : config_.entries) {
    if (path.find(".experts.") == path.npos) continue;
    files_.at(e.file).advise(e.offset_bytes, e.n_bytes, MappedFile::Advice::random);
  }
}

void WeightCache::evict() const {
  for (const auto& [name, file] : files_) file.evict();
}

}  // namespace exo::weights
