/// Writes a weight cache, unit by unit (a unit is one tensor file: a layer's attention and dense
/// parts, a layer's experts, the embedding, the head), so that a killed conversion goes on where it
/// was and never leaves a cache that looks whole and isn't:
///   - a unit is written to a temporary file, fsynced and renamed to <unit>.exo; its manifest
///     fragment <unit>.exo.json follows the same way, so a fragment exists only beside its whole
///     file;
///   - weights.json, the manifest, is written last, atomically, from all fragments; a folder
///     without it is no cache, and it is removed before a file that it names is replaced.
/// Errors leave the finished units as they are; docs/tensor_file.md describes the folder.
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

/// resource_exhausted if the file system of `folder` (which may not exist yet) has fewer than
/// `needed_bytes` free, saying how much is missing.
Status check_disk_space(const std::string& folder, uint64_t needed_bytes);

class CacheWriter {
 public:
  /// Units of `identity`'s version, source and format that earlier runs finished are kept, also
  /// those of other layers; all others are removed. A lock file keeps two converters out of one
  /// folder: failed_precondition. `pool` must outlive the writer.
  static Result<std::unique_ptr<CacheWriter>> create(const std::string& folder,
                                                     const WeightConfig& identity,
                                                     ThreadPool& pool);
  ~CacheWriter();

  /// Was this unit finished by an earlier run?
  bool has_unit(const std::string& unit) const;
  /// Bytes of all finished units and of the unfinished one.
  uint64_t written_bytes() const;

  /// begin_unit, add_..., end_unit. An unfinished unit leaves nothing behind; begin_unit of a
  /// finished one replaces it. unit: is_plain_name. After an error in a unit only begin_unit may
  /// follow.
  Status begin_unit(const std::string& unit);
  Status add_plain(const std::string& path, DType dtype, const std::vector<int64_t>& shape,
                   std::span<const std::byte> bytes);
  /// The same for a tensor that is too large for memory: its bytes, in order, go to make's sink.
  using BytesSink = std::function<Status(std::span<const std::byte>)>;
  Status add_plain_parts(const std::string& path, DType dtype, const std::vector<int64_t>& shape,
                         const std::function<Status(const BytesSink&)>& make);
  /// One entry of sources.size() packed matrices of equal shape; `ups` is empty, or the up halves
  /// of gate_up matrices. spec.format is what is wanted: resolve_spec decides.
  Status add_packed(const std::string& path, std::span<const SourceMatrix> sources,
                    std::span<const SourceMatrix> ups, const PackSpec& spec);
  /// The same for matrices that the caller makes (random weights): calls make(i, sink) for every
  /// matrix i < entry.count; the parts that go to its sink together hold all panels. entry: the
  /// packed fields format, gate_up, count, n_out, n_in, k_block.
  using PartSink = std::function<Status(const PackedPart&)>;
  Status add_parts(const std::string& path, const WeightEntry& entry,
                   const std::function<Status(int64_t i, const PartSink& sink)>& make);
  Status end_unit();

  /// Writes the manifest: the entries of all finished units, and identity's layers.
  Status finish();

  /// Called with written_bytes() after each piece: one call at a time, from any thread of the pool.
  std::function<void(uint64_t n_bytes)> on_progress;

 private:
  struct Impl;
  explicit CacheWriter(std::unique_ptr<Impl> impl);
  Status append(const void* data, uint64_t n_bytes);
  Status begin_entry(const std::string& path);
  Status end_entry(const std::string& path, WeightEntry entry);
  Status add_matrix(const WeightEntry& entry, const std::function<Status(const PartSink&)>& make);

  std::unique_ptr<Impl> impl_;
};

}  // namespace exo::weights
