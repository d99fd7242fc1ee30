#include "weights/cache_writer.h"

#include <fmt/core.h>

#include <filesystem>
#include <optional>
#include <set>

#include "base/log.h"
#include "base/os.h"
#include "weights/hash.h"

namespace exo::weights {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kUnitSuffix = ".exo";
constexpr std::string_view kFragmentSuffix = ".exo.json";
constexpr char kLockName[] = "convert.lock";
constexpr uint64_t kMaxFragmentBytes = uint64_t{64} << 20;

std::string gigabytes(uint64_t n_bytes) {
  return fmt::format("{:.1f} GB", static_cast<double>(n_bytes) / 1e9);
}

Status remove_file(const fs::path& path) {
  std::error_code error;
  fs::remove(path, error);
  if (!error) return ok_status();
  return failed_precondition(
      fmt::format("{}: cannot remove the file: {}", path.string(), error.message()));
}

// A finished unit's fragment, if it is this identity's and its file is there in full.
std::optional<WeightConfig> read_fragment(const fs::path& folder, const std::string& unit,
                                          const WeightConfig& identity) {
  const std::string path = (folder / (unit + std::string(kFragmentSuffix))).string();
  Result<std::string> text = read_file(path, kMaxFragmentBytes);
  if (!text.ok()) return std::nullopt;
  Result<WeightConfig> fragment = WeightConfig::from_text(*text, path);
  const std::string file = unit + std::string(kUnitSuffix);
  if (!fragment.ok() || !fragment->same_source(identity) || fragment->file_bytes.size() != 1 ||
      !fragment->file_bytes.contains(file)) {
    return std::nullopt;
  }
  Result<uint64_t> n_bytes = file_size((folder / file).string());
  if (!n_bytes.ok() || *n_bytes != fragment->file_bytes.at(file)) return std::nullopt;
  return *std::move(fragment);
}

Result<std::vector<std::string>> file_names(const fs::path& folder) {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error))
    names.push_back(it->path().filename().string());
  if (!error) return names;
  return failed_precondition(
      fmt::format("{}: cannot list the folder: {}", folder.string(), error.message()));
}

}  // namespace

struct CacheWriter::Impl {
  fs::path folder;
  WeightConfig identity;
  ThreadPool& pool;
  FileLock lock;
  std::map<std::string, WeightConfig> fragments;  // of finished units
  bool said_rounding = false;
  // the open unit
  std::optional<AtomicFile> file;
  std::string unit;
  WeightConfig fragment;
  Status failure;  // of an add_...: the unit can't be finished any more
  std::optional<Xxh3> hash;
  uint64_t entry_begin = 0;

  std::string unit_path(const std::string& name) const {
    return (folder / (name + std::string(kUnitSuffix))).string();
  }
  std::string fragment_path(const std::string& name) const {
    return (folder / (name + std::string(kFragmentSuffix))).string();
  }
  WeightConfig empty_config() const {
    WeightConfig config = identity;
    config.entries.clear();
    config.file_bytes.clear();
    return config;
  }
  Status remove_manifest() const {
    EXO_RETURN_IF_ERROR(remove_file(folder / kManifestName));
    return fsync_path(folder.string());
  }
  Status take_over();
};

// Keeps the finished units of this identity and removes what else an earlier run left: temporary
// files, units without a fragment, and units of another source. The manifest goes first when any
// unit goes, so that it never names files that aren't there.
Status CacheWriter::Impl::take_over() {
  EXO_ASSIGN_OR_RETURN(const std::vector<std::string> names, file_names(folder));
  std::set<std::string> units;
  std::vector<std::string> temporary;
  for (const std::string& name : names) {
    if (name.find(".tmp.") != std::string::npos) {
      temporary.push_back(name);
    } else if (name.ends_with(kFragmentSuffix)) {
      units.insert(name.substr(0, name.size() - kFragmentSuffix.size()));
    } else if (name.ends_with(kUnitSuffix)) {
      units.insert(name.substr(0, name.size() - kUnitSuffix.size()));
    }
  }
  std::vector<std::string> foreign;
  for (const std::string& name : units) {
    std::optional<WeightConfig> found = read_fragment(folder, name, identity);
    if (found) {
      fragments.emplace(name, *std::move(found));
    } else {
      foreign.push_back(name);
    }
  }
  if (!foreign.empty()) EXO_RETURN_IF_ERROR(remove_manifest());
  for (const std::string& name : foreign) {
    EXO_RETURN_IF_ERROR(remove_file(fragment_path(name)));
    EXO_RETURN_IF_ERROR(remove_file(unit_path(name)));
  }
  for (const std::string& name : temporary) EXO_RETURN_IF_ERROR(remove_file(folder / name));
  return fsync_path(folder.string());
}

Status check_disk_space(const std::string& folder, uint64_t needed_bytes) {
  EXO_ASSIGN_OR_RETURN(const uint64_t free_bytes, disk_free_bytes(folder));
  if (free_bytes >= needed_bytes) return ok_status();
  return resource_exhausted(fmt::format(
      "{}: the weight cache needs {} more, {} are free: {} are missing; free some space, or put "
      "the cache on another disk with DEEPSEEK_V3_CACHE",
      folder, gigabytes(needed_bytes), gigabytes(free_bytes),
      gigabytes(needed_bytes - free_bytes)));
}

CacheWriter::CacheWriter(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
CacheWriter::~CacheWriter() = default;

Result<std::unique_ptr<CacheWriter>> CacheWriter::create(const std::string& folder,
                                                         const WeightConfig& identity,
                                                         ThreadPool& pool) {
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) {
    return failed_precondition(fmt::format(
        "{}: cannot make this folder for the weight cache: {}; set DEEPSEEK_V3_CACHE to "
        "one that can be written",
        folder, error.message()));
  }
  Result<FileLock> lock = FileLock::acquire((fs::path(folder) / kLockName).string());
  if (!lock.ok()) {
    return std::move(lock).status().with_context(
        "another exo is converting into this folder at the moment");
  }
  // NOLINTNEXTLINE(modernize-make-unique): an aggregate with a reference and a lock
  std::unique_ptr<Impl> impl(new Impl{.folder = folder,
                                      .identity = identity,
                                      .pool = pool,
                                      .lock = *std::move(lock),
                                      .fragments = {},
                                      .file = {},
                                      .unit = {},
                                      .fragment = {},
                                      .failure = {},
                                      .hash = {}});
  EXO_RETURN_IF_ERROR(impl->take_over());
  return std::unique_ptr<CacheWriter>(new CacheWriter(std::move(impl)));
}

bool CacheWriter::has_unit(const std::string& unit) const {
  return impl_->fragments.contains(unit);
}

uint64_t CacheWriter::written_bytes() const {
  uint64_t n = impl_->file ? impl_->file->size_bytes() : 0;
  for (const auto& [unit, fragment] : impl_->fragments) {
    for (const auto& [file, n_bytes] : fragment.file_bytes) n += n_bytes;
  }
  return n;
}

Status CacheWriter::begin_unit(const std::string& unit) {
  Impl& w = *impl_;
  w.file.reset();
  w.failure = ok_status();
  if (!is_plain_name(unit))
    return internal_error(fmt::format("'{}' is not a name for a unit of a cache", unit));
  if (w.fragments.erase(unit) != 0) {
    EXO_RETURN_IF_ERROR(w.remove_manifest());
    EXO_RETURN_IF_ERROR(remove_file(w.fragment_path(unit)));
    EXO_RETURN_IF_ERROR(fsync_path(w.folder.string()));
  }
  EXO_ASSIGN_OR_RETURN(w.file, AtomicFile::create(w.unit_path(unit)));
  w.unit = unit;
  w.fragment = w.empty_config();
  return ok_status();
}

Status CacheWriter::append(const void* data, uint64_t n_bytes) {
  impl_->hash->update(data, n_bytes);
  EXO_RETURN_IF_ERROR(impl_->file->append(data, n_bytes));
  if (on_progress) on_progress(written_bytes());
  return ok_status();
}

Status CacheWriter::begin_entry(const std::string& path) {
  Impl& w = *impl_;
  if (!w.file) return internal_error(path + ": added outside of a unit");
  EXO_RETURN_IF_ERROR(w.failure);
  if (w.fragment.entries.contains(path)) return internal_error(path + ": added twice");
  const uint64_t at = w.file->size_bytes();
  const std::byte zeros[kAlignment] = {};
  const uint64_t padding = static_cast<uint64_t>(align_up(static_cast<int64_t>(at))) - at;
  EXO_RETURN_IF_ERROR(w.file->append(zeros, padding));
  w.entry_begin = at + padding;
  w.hash.emplace();
  return ok_status();
}

Status CacheWriter::end_entry(const std::string& path, WeightEntry entry) {
  Impl& w = *impl_;
  entry.file = w.unit + std::string(kUnitSuffix);
  entry.offset_bytes = w.entry_begin;
  entry.n_bytes = w.file->size_bytes() - w.entry_begin;
  entry.checksum = w.hash->digest();
  w.fragment.entries.emplace(path, std::move(entry));
  return ok_status();
}

Status CacheWriter::add_plain(const std::string& path, DType dtype,
                              const std::vector<int64_t>& shape, std::span<const std::byte> bytes) {
  return add_plain_parts(path, dtype, shape, [&](const BytesSink& sink) { return sink(bytes); });
}

Status CacheWriter::add_plain_parts(const std::string& path, DType dtype,
                                    const std::vector<int64_t>& shape,
                                    const std::function<Status(const BytesSink&)>& make) {
  int64_t expected = size_bytes(dtype);
  for (int64_t d : shape) expected *= d;
  Status status = [&]() -> Status {
    EXO_RETURN_IF_ERROR(begin_entry(path));
    EXO_RETURN_IF_ERROR(make(
        [this](std::span<const std::byte> bytes) { return append(bytes.data(), bytes.size()); }));
    const uint64_t given = impl_->file->size_bytes() - impl_->entry_begin;
    if (static_cast<uint64_t>(expected) != given) {
      return internal_error(
          fmt::format("{}: {} bytes given, its shape needs {}", path, given, expected));
    }
    WeightEntry entry;
    entry.layout = Layout::plain;
    entry.dtype = dtype;
    entry.shape = shape;
    return end_entry(path, std::move(entry));
  }();
  if (!status.ok()) impl_->failure = status;
  return status;
}

// Tiles go straight to the file; scales and sums are small and follow them.
Status CacheWriter::add_matrix(const WeightEntry& entry,
                               const std::function<Status(const PartSink&)>& make) {
  const uint64_t begin = impl_->file->size_bytes();
  PackedPart rest;
  EXO_RETURN_IF_ERROR(make([&](const PackedPart& part) -> Status {
    const auto add = [](auto& to, const auto& from) {
      to.insert(to.end(), from.begin(), from.end());
    };
    add(rest.row_scales, part.row_scales);
    add(rest.row_sums, part.row_sums);
    add(rest.block_scales, part.block_scales);
    return append(part.tiles.data(), part.tiles.size());
  }));
  const auto write_aligned = [&](const auto& values) -> Status {
    const auto bytes = std::as_bytes(std::span(values));
    const std::byte zeros[kAlignment] = {};
    EXO_RETURN_IF_ERROR(append(bytes.data(), bytes.size()));
    return append(zeros, static_cast<uint64_t>(align_up(std::ssize(bytes)) - std::ssize(bytes)));
  };
  EXO_RETURN_IF_ERROR(write_aligned(rest.row_scales));
  EXO_RETURN_IF_ERROR(write_aligned(rest.row_sums));
  EXO_RETURN_IF_ERROR(write_aligned(rest.block_scales));
  const uint64_t written = impl_->file->size_bytes() - begin;
  if (written == entry.matrix_bytes) return ok_status();
  return internal_error(
      fmt::format("{} bytes of a packed matrix, expected {}", written, entry.matrix_bytes));
}

Status CacheWriter::add_parts(const std::string& path, const WeightEntry& entry,
                              const std::function<Status(int64_t i, const PartSink& sink)>& make) {
  Status status = [&]() -> Status {
    EXO_RETURN_IF_ERROR(begin_entry(path));
    WeightEntry e = entry;
    e.layout = Layout::packed;
    e.matrix_bytes = packed_matrix_bytes(e.format, e.n_out, e.n_in, e.k_block);
    for (int64_t i = 0; i < e.count; ++i)
      EXO_RETURN_IF_ERROR(add_matrix(e, [&](const PartSink& sink) { return make(i, sink); }));
    return end_entry(path, std::move(e));
  }();
  if (!status.ok()) {
    status = std::move(status).with_context(path);
    impl_->failure = status;
  }
  return status;
}

Status CacheWriter::add_packed(const std::string& path, std::span<const SourceMatrix> sources,
                               std::span<const SourceMatrix> ups, const PackSpec& wanted) {
  if (sources.empty() || (!ups.empty() && ups.size() != sources.size()))
    return impl_->failure = internal_error(path + ": no matrices, or gates without ups");
  const SourceMatrix& first = sources[0];
  for (const SourceMatrix& m : sources) {
    if (m.n_rows() == first.n_rows() && m.n_cols() == first.n_cols()) continue;
    return impl_->failure = data_loss(fmt::format(
               "{}: tensors '{}' [{}, {}] and '{}' [{}, {}]: expected equal shapes", path,
               first.name(), first.n_rows(), first.n_cols(), m.name(), m.n_rows(), m.n_cols()));
  }
  const PackSpec spec = resolve_spec(wanted.format, sources, ups);
  const bool rounds = first.dtype() == DType::f32 || first.dtype() == DType::f16;
  if (spec.format == WeightFormat::bf16 && rounds && !impl_->said_rounding) {
    log_warn("{} weights are rounded to bf16 ('{}' is the first)", to_string(first.dtype()),
             first.name());
    impl_->said_rounding = true;
  }
  WeightEntry entry;
  entry.format = spec.format;
  entry.k_block = spec.k_block;
  entry.gate_up = !ups.empty();
  entry.count = std::ssize(sources);
  entry.n_out = entry.gate_up ? 2 * align_up(first.n_rows(), kPanelRows) : first.n_rows();
  entry.n_in = first.n_cols();
  return add_parts(path, entry, [&](int64_t i, const PartSink& sink) {
    const auto at = static_cast<size_t>(i);
    return pack_matrix(sources[at], ups.empty() ? nullptr : &ups[at], spec, impl_->pool, sink);
  });
}

Status CacheWriter::end_unit() {
  Impl& w = *impl_;
  if (!w.file) return internal_error("end_unit without begin_unit");
  if (!w.failure.ok()) {
    w.file.reset();
    return w.failure;
  }
  w.fragment.file_bytes[w.unit + std::string(kUnitSuffix)] = w.file->size_bytes();
  EXO_RETURN_IF_ERROR(w.file->commit());
  w.file.reset();
  EXO_RETURN_IF_ERROR(write_file_atomic(w.fragment_path(w.unit), w.fragment.to_text()));
  w.fragments[w.unit] = std::move(w.fragment);
  return ok_status();
}

Status CacheWriter::finish() {
  Impl& w = *impl_;
  if (w.file) return internal_error("finish inside of a unit");
  WeightConfig manifest = w.empty_config();
  for (const auto& [unit, fragment] : w.fragments) {
    for (const auto& [file, n_bytes] : fragment.file_bytes) manifest.file_bytes[file] = n_bytes;
    for (const auto& [path, entry] : fragment.entries) {
      if (!manifest.entries.emplace(path, entry).second)
        return internal_error(fmt::format("{}: in two units ('{}' is one)", path, unit));
    }
  }
  return write_file_atomic((w.folder / kManifestName).string(), manifest.to_text());
}

}  // namespace exo::weights
