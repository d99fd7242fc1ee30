/// Where models lie on this machine: which folder a MODEL argument means, and where its weight
/// caches go. Local only: nothing is downloaded here.
///
/// MODEL, in this order:
///   - left out: $DEEPSEEK_V3_HF_MODEL, read as MODEL, else `tiny`;
///   - a registry id, or a Hugging Face repo id (org/name): its snapshot in the Hugging Face cache
///     ($HF_HOME/hub/models--org--name/snapshots/<revision>, the revision that refs/main names,
///     else the newest), or $EXO_HOME/models/<id or name>;
///   - `tiny`: the model that comes with exo;
///   - a folder. (./deepseek-v3 means the folder, deepseek-v3 the registry's model.)
///
/// Weight caches lie in $DEEPSEEK_V3_CACHE, else $EXO_HOME/cache, one folder each, named by model
/// type, hash of the checkpoint's headers and config, format and cache version. source.json in it
/// names the folders that it was made from: so a cache is found again when its checkpoint is gone.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "base/status.h"
#include "hub/registry.h"

namespace exo::hub {

/// Folders, as cli's environment gives them.
struct StorePaths {
  std::string hf_home;                      ///< Hugging Face's: $HF_HOME, else ~/.cache/huggingface
  std::string exo_home;                     ///< $EXO_HOME, else ~/.cache/exo
  std::string cache;                        ///< $DEEPSEEK_V3_CACHE, else $EXO_HOME/cache
  std::string default_model;                ///< $DEEPSEEK_V3_HF_MODEL
  std::vector<std::string> shipped_models;  ///< folders that may hold tiny/
};

struct ModelLocation {
  std::string name;  ///< for people: registry id, repo id or the folder as given
  const RegistryEntry* entry = nullptr;  ///< if it is a known one
  std::string folder;                    ///< absolute; empty: nothing on disk (then entry is set)
  bool folder_exists = false;            ///< false: a path that is not there (any more)
  bool is_cache = false;                 ///< the folder is a weight cache itself
};

/// not_found names what was looked for and where, and a near id if there is one. A repo id or
/// registry id that isn't on disk is a location without a folder if the registry has its config,
/// else not_found.
Result<ModelLocation> locate(const StorePaths& paths, const std::string& model);

struct CacheKey {
  std::string model_type;
  uint64_t source_hash = 0;  ///< of the checkpoint's headers
  std::string config_json;   ///< the bytes of config.json
  std::string format;        ///< canonical
  int64_t layer_begin = 0, layer_end = 0;
  int version = 0;
};
/// "deepseek_v3-0123456789abcdef-bf16-0-4-v1", under paths.cache.
std::string cache_folder(const StorePaths& paths, const CacheKey& key);

/// A weight cache that is on disk, whole or not.
struct CacheInfo {
  std::string folder;
  std::string model;  ///< name it was made under
  std::string format;
  std::vector<std::string> sources;  ///< absolute checkpoint folders
  bool complete = false;
  uint64_t n_bytes = 0;
  std::filesystem::file_time_type last_used;  ///< of the last record_source
};
/// All of paths.cache, by folder name. Folders without a readable source.json are left out.
std::vector<CacheInfo> list_caches(const StorePaths& paths);

/// Writes (or adds `source` to) the cache folder's source.json, and makes it the one used last;
/// makes the folder.
Status record_source(const std::string& cache, const std::string& model, const std::string& format,
                     const std::string& source);

/// Bytes of all files under a folder.
uint64_t folder_bytes(const std::string& folder);
/// Absolute, without "." and ".." and trailing separators; need not exist.
std::string absolute_path(const std::string& path);
bool folder_exists(const std::string& path);
bool file_exists(const std::string& path);
/// Are there tensors: model.safetensors or its index?
bool has_checkpoint(const std::string& folder);

}  // namespace exo::hub
