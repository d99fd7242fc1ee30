#include "hub/store.h"

#include <fmt/core.h>

#include <algorithm>
#include <filesystem>

#include "base/json.h"
#include "base/os.h"

namespace exo::hub {
namespace {

namespace fs = std::filesystem;

constexpr const char* kShippedModel = "tiny";
constexpr std::string_view kSourceFile = "source.json";
constexpr uint64_t kMaxSourceFileBytes = 1 << 20;

/// FNV-1a, 64 bits, going on from `hash`.
uint64_t fnv1a(std::string_view bytes, uint64_t hash) {
  for (const char c : bytes) {
    hash ^= static_cast<unsigned char>(c);
    hash *= 0x100000001b3;
  }
  return hash;
}

/// Only what every file system takes.
std::string file_name_of(std::string_view text) {
  std::string name;
  for (const char c : text) {
    const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                       c == '.' || c == '_' || c == '-' || c == '=' || c == ',';
    name.push_back(plain ? c : '_');
  }
  return name;
}

std::string join(const std::string& folder, std::string_view name) {
  return (fs::path(folder) / name).string();
}

bool is_repo_id(const std::string& model) {
  const size_t slash = model.find('/');
  return slash != std::string::npos && slash > 0 && slash + 1 < model.size() &&
         model.find('/', slash + 1) == std::string::npos && model[0] != '.' && model[0] != '~';
}

/// The folder of a snapshot in Hugging Face's cache, empty if there is none.
std::string find_snapshot(const StorePaths& paths, const std::string& repo) {
  std::string name = "models--" + repo;
  if (const size_t slash = name.find('/'); slash != std::string::npos) name.replace(slash, 1, "--");
  const std::string base = join(join(paths.hf_home, "hub"), name);
  const std::string snapshots = join(base, "snapshots");
  if (auto revision = read_file(join(join(base, "refs"), "main"), 256); revision.ok()) {
    std::string text = *revision;
    while (!text.empty() && (text.back() == '\n' || text.back() == ' ')) text.pop_back();
    const bool plain = !text.empty() && text.find('/') == std::string::npos && text[0] != '.';
    if (plain && folder_exists(join(snapshots, text))) return join(snapshots, text);
  }
  std::string newest;
  fs::file_time_type newest_time{};
  std::error_code error;
  for (fs::directory_iterator it(snapshots, error), end; !error && it != end; it.increment(error)) {
    std::error_code ignored;
    if (!it->is_directory(ignored)) continue;
    const auto time = it->last_write_time(ignored);
    if (newest.empty() || time > newest_time) {
      newest = it->path().string();
      newest_time = time;
    }
  }
  return newest;
}

std::string find_downloaded(const StorePaths& paths, const RegistryEntry* entry,
                            const std::string& repo) {
  if (!repo.empty())
    if (std::string folder = find_snapshot(paths, repo); !folder.empty()) return folder;
  const std::string models = join(paths.exo_home, "models");
  if (entry != nullptr && folder_exists(join(models, entry->id))) return join(models, entry->id);
  const std::string name = repo.substr(repo.find('/') + 1);
  if (!name.empty() && folder_exists(join(models, name))) return join(models, name);
  return {};
}

Result<ModelLocation> locate_shipped(const StorePaths& paths, ModelLocation location) {
  std::string searched;
  for (const std::string& folder : paths.shipped_models) {
    location.folder = join(folder, location.entry->id);
    location.folder_exists = file_exists(join(location.folder, "config.json"));
    if (location.folder_exists) return location;
    searched += (searched.empty() ? "" : ", ") + location.folder;
  }
  return not_found(
      fmt::format("{}: the model that comes with exo isn't beside this binary (looked "
                  "in {}); give a checkpoint's folder instead",
                  location.name, searched));
}

Result<ModelLocation> locate_known(const StorePaths& paths, ModelLocation location,
                                   const std::string& repo) {
  location.folder = find_downloaded(paths, location.entry, repo);
  location.folder_exists = !location.folder.empty();
  if (location.folder_exists) return location;
  if (location.entry != nullptr && location.entry->has_config()) return location;
  return not_found(fmt::format(
      "{}: not on this machine (looked in {}/hub and {}/models){}; download {} with Hugging Face's "
      "own tools (`hf download {}`), or give a checkpoint's folder",
      location.name, paths.hf_home, paths.exo_home,
      location.entry != nullptr ? ", and its config.json isn't known here" : "", repo, repo));
}

Result<ModelLocation> locate_folder(const std::string& model) {
  ModelLocation location;
  location.name = model;
  location.folder = absolute_path(model);
  location.folder_exists = folder_exists(location.folder);
  location.is_cache = file_exists(join(location.folder, "weights.json"));
  if (file_exists(location.folder))
    return invalid_argument(
        fmt::format("{}: is a file; expected a model's folder (with config.json), a registry id or "
                    "a Hugging Face repo id",
                    model));
  return location;
}

}  // namespace

std::string absolute_path(const std::string& path) {
  std::error_code error;
  fs::path absolute = fs::absolute(path, error);
  if (error) absolute = path;
  // Links are followed where the path exists, so that two spellings of a folder are one.
  fs::path canonical = fs::weakly_canonical(absolute, error);
  if (error) canonical = absolute.lexically_normal();
  std::string text = canonical.string();
  while (text.size() > 1 && text.back() == '/') text.pop_back();
  return text;
}

bool folder_exists(const std::string& path) {
  std::error_code error;
  return fs::is_directory(path, error);
}

bool file_exists(const std::string& path) {
  std::error_code error;
  return fs::is_regular_file(path, error);
}

bool has_checkpoint(const std::string& folder) {
  return file_exists(join(folder, "model.safetensors")) ||
         file_exists(join(folder, "model.safetensors.index.json"));
}

uint64_t folder_bytes(const std::string& folder) {
  uint64_t total = 0;
  std::error_code error;
  for (fs::recursive_directory_iterator it(folder, error), end; !error && it != end;
       it.increment(error)) {
    std::error_code ignored;
    if (it->is_regular_file(ignored))
      if (const auto n = it->file_size(ignored); !ignored) total += n;
  }
  return total;
}

Result<ModelLocation> locate(const StorePaths& paths, const std::string& given) {
  std::string model = given.empty() ? paths.default_model : given;
  if (model.empty()) model = kShippedModel;
  if (model.find('\0') != std::string::npos)
    return invalid_argument("MODEL: has a zero byte, expected a name or a path");
  ModelLocation location;
  location.name = model;
  location.entry = find_entry(model);
  if (location.entry != nullptr && location.entry->hf_repo.empty())
    return locate_shipped(paths, location);
  if (location.entry != nullptr)
    return locate_known(paths, location, std::string(location.entry->hf_repo));
  EXO_ASSIGN_OR_RETURN(ModelLocation as_folder, locate_folder(model));
  if (as_folder.folder_exists || model.find('/') == std::string::npos) {
    if (as_folder.folder_exists) return as_folder;
    // A bare word that is neither: a gone folder's cache may still know it.
    for (const CacheInfo& cache : list_caches(paths))
      for (const std::string& source : cache.sources)
        if (source == as_folder.folder) return as_folder;
    const std::string_view near = nearest_id(model);
    return not_found(
        fmt::format("{}: neither a known model nor a folder here{}; `exo models list` shows the "
                    "known ones",
                    model, near.empty() ? "" : fmt::format(" (did you mean {}?)", near)));
  }
  if (!is_repo_id(model)) return as_folder;
  auto downloaded = locate_known(paths, location, model);
  return downloaded.ok() ? downloaded : Result<ModelLocation>(as_folder);
}

std::string cache_folder(const StorePaths& paths, const CacheKey& key) {
  const uint64_t hash = fnv1a(key.config_json, key.source_hash ^ 0xcbf29ce484222325);
  return join(paths.cache,
              file_name_of(fmt::format("{}-{:016x}-{}-{}-{}-v{}", key.model_type, hash, key.format,
                                       key.layer_begin, key.layer_end, key.version)));
}

namespace {

/// The fields of a source.json; an error when it isn't one of ours.
Result<CacheInfo> read_source(const std::string& cache) {
  const std::string path = join(cache, kSourceFile);
  EXO_ASSIGN_OR_RETURN(const Json json, read_json_file(path, kMaxSourceFileBytes));
  const JsonObject object(json, path);
  CacheInfo info;
  info.folder = cache;
  EXO_ASSIGN_OR_RETURN(info.model, object.string("model"));
  EXO_ASSIGN_OR_RETURN(info.format, object.string("format"));
  EXO_ASSIGN_OR_RETURN(const Json* sources, object.array("sources"));
  for (const Json& source : *sources)
    if (source.is_string()) info.sources.push_back(source.get<std::string>());
  return info;
}

}  // namespace

std::vector<CacheInfo> list_caches(const StorePaths& paths) {
  std::vector<CacheInfo> caches;
  std::error_code error;
  for (fs::directory_iterator it(paths.cache, error), end; !error && it != end;
       it.increment(error)) {
    auto info = read_source(it->path().string());
    if (!info.ok()) continue;
    info->complete = file_exists(join(info->folder, "weights.json"));
    info->n_bytes = folder_bytes(info->folder);
    std::error_code ignored;
    info->last_used = fs::last_write_time(join(info->folder, kSourceFile), ignored);
    caches.push_back(*std::move(info));
  }
  std::sort(caches.begin(), caches.end(),
            [](const CacheInfo& a, const CacheInfo& b) { return a.folder < b.folder; });
  return caches;
}

Status record_source(const std::string& cache, const std::string& model, const std::string& format,
                     const std::string& source) {
  std::error_code error;
  fs::create_directories(cache, error);
  if (error)
    return failed_precondition(fmt::format(
        "{}: cannot make this folder for the weight cache: {}; set DEEPSEEK_V3_CACHE to "
        "one that can be written",
        cache, error.message()));
  std::vector<std::string> sources;
  if (auto known = read_source(cache); known.ok()) sources = known->sources;
  const std::string path = join(cache, kSourceFile);
  if (std::find(sources.begin(), sources.end(), source) != sources.end()) {
    std::error_code read_only;  // no reason to fail
    fs::last_write_time(path, fs::file_time_type::clock::now(), read_only);
    return ok_status();
  }
  sources.push_back(source);
  const OrderedJson json = {{"model", model}, {"format", format}, {"sources", sources}};
  // A path need not be UTF-8: what isn't is replaced, and such a cache is only found while its
  // checkpoint is there.
  return write_file_atomic(path,
                           json.dump(1, ' ', false, OrderedJson::error_handler_t::replace) + "\n");
}

}  // namespace exo::hub
