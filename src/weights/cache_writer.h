/// Writes a weight cache, unit by unit (a unit is one tensor file: a layer's attention and dense
/// parts, a layer's experts, the embedding, the head), so that a killed conversion goes on where it
/// was and never leaves a cache that looks whole and isn't:
///   - a unit is written to <unit>.tmp, fsynced and renamed to <unit>.exo; its manifest fragment
///   <unit>.json follows the
///     same way, so a fragment exists only beside its whole file;
///   - weights.json, the manifest, is written last, atomically, from all fragments; a folder
///   without it is no cache.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "base/thread_pool.h"
#include "weights/pack.h"
#include "weights/weight_config.h"

namespace exo::weights {

class CacheWriter {
 public:
  /// `identity` (source hash, format, layers) is written to fragments: those of another identity
  /// are discarded. A lock file keeps two converters out of one folder.
  static Result<std::unique_ptr<CacheWriter>> create(const std::string& folder,
                                                     const WeightConfig& identity,
                                                     ThreadPool& pool);
  ~CacheWriter();

  /// Was this unit finished by an earlier run?
  bool has_unit(const std::string& unit) const;

  /// begin_unit, add_..., end_unit. An unfinished unit leaves nothing behind.
  Status begin_unit(const std::string& unit);
  Status add_plain(const std::string& path, DType dtype, const std::vector<int64_t>& shape,
                   std::span<const std::byte> bytes);
  /// One entry of sources.size() packed matrices of equal shape; `ups` is empty, or the up halves
  /// of gate_up matrices.
  Status add_packed(const std::string& path, std::span<const SourceMatrix> sources,
                    std::span<const SourceMatrix> ups, const PackSpec& spec);
  Status end_unit();

  /// Writes the manifest.
  Status finish();

  /// Called with the bytes written so far.
  std::function<void(uint64_t n_bytes)> on_progress;

 private:
  struct Impl;
  explicit CacheWriter(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace exo::weights
