/// WeightConfig: the manifest (weights.json) of a weight cache. It maps an operation's path
/// ("layers.3.mlp.experts.gate_up") to the bytes that stage 3 maps: file, offset, format, shape,
/// layout, checksum. Stage 1 writes it, stage 3 reads nothing else of stage 1. docs/tensor_file.md
/// is the format's description.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/os.h"
#include "base/status.h"
#include "base/thread_pool.h"
#include "tensor/packed.h"
#include "tensor/tensor_view.h"

namespace exo::weights {

/// Bumped whenever a cache of an older build can't be used any more.
inline constexpr int kCacheVersion = 1;

enum class Layout : uint8_t {
  plain,   ///< row-major [shape], dtype
  packed,  ///< `count` packed matrices of tensor/packed.h, equal in shape, one after the other
};

struct WeightEntry {
  std::string file;           ///< relative to the manifest
  uint64_t offset_bytes = 0;  ///< of the data; a multiple of 64
  uint64_t n_bytes = 0;       ///< all parts (tiles, scales, sums) together
  Layout layout = Layout::plain;
  // plain
  DType dtype = DType::f32;
  std::vector<int64_t> shape;
  // packed: matrix i begins at offset_bytes + i * matrix_bytes: tiles, then row_scales, row_sums or
  // block_scales, each aligned to 64 bytes
  WeightFormat format = WeightFormat::bf16;
  bool gate_up = false;
  int64_t count = 1;  ///< experts, heads, or 1
  int64_t n_out = 0, n_in = 0;
  int64_t k_block = 0;  ///< fp8
  uint64_t matrix_bytes = 0;
  uint64_t checksum = 0;  ///< xxh3-64 of the n_bytes
};

/// The manifest's name in a cache's folder.
inline constexpr char kManifestName[] = "weights.json";

/// Letters, digits and "._-", not led by a dot: what may name a tensor file or a unit.
bool is_plain_name(std::string_view name);

/// The bytes of one packed matrix with its scales, as entries hold it.
uint64_t packed_matrix_bytes(WeightFormat format, int64_t n_out, int64_t n_in, int64_t k_block);

struct WeightConfig {
  int version = kCacheVersion;
  uint64_t source_hash = 0;  ///< Checkpoint::header_hash
  std::string format;        ///< as asked for: "bf16", "int4,attention=int8"
  int64_t layer_begin = 0, layer_end = 0;
  std::map<std::string, WeightEntry> entries;
  std::map<std::string, uint64_t> file_bytes;  ///< size of every tensor file

  /// The manifest's text: JSON that holds a checksum of itself.
  std::string to_text() const;
  /// Parses and checks untrusted text: version, checksum, names, ranges, alignment and sizes.
  static Result<WeightConfig> from_text(std::string_view text, const std::string& where);
  /// Were both made from one checkpoint, in one format, by one version? (Their layers may differ.)
  bool same_source(const WeightConfig& other) const {
    return version == other.version && source_hash == other.source_hash && format == other.format;
  }
};

/// A cache, mapped. Sizes and the manifest are checked on opening, contents only by verify().
class WeightCache {
 public:
  static Result<WeightCache> open(const std::string& folder);
  const WeightConfig& config() const { return config_; }
  const std::string& folder() const { return folder_; }

  /// The `count` matrices of a packed entry; an error naming file, path, expected and found if it
  /// isn't there or is of another shape. n_out is that of one matrix (2 * align_up(n_inter, 16) for
  /// gate_up).
  Result<std::vector<PackedMatrix>> matrices(const std::string& path, int64_t count, int64_t n_out,
                                             int64_t n_in, bool gate_up = false) const;
  Result<PackedMatrix> matrix(const std::string& path, int64_t n_out, int64_t n_in,
                              bool gate_up = false) const;
  /// A plain tensor of exactly this dtype and shape.
  Result<TensorView> tensor(const std::string& path, DType dtype,
                            std::initializer_list<int64_t> shape) const;
  bool has(const std::string& path) const { return config_.entries.contains(path); }

  /// Reads every byte and compares checksums; data_loss names the first entry that differs.
  Status verify() const;
  /// Reads everything and maps every page (`--warm`), all threads at once: on a machine with
  /// several NUMA nodes the pages come to lie on all of them.
  void read_all(ThreadPool& pool) const;
  /// Maps the pages of every file that is (nearly) all in memory already, in few calls: a first
  /// pass over a warm cache then takes no page faults. Nothing is read from the disk.
  void map_resident(ThreadPool& pool) const;
  /// Experts (entries of several matrices with gate_up or down) are read one by one, when they are
  /// chosen: the system isn't to read what lies around a page that is missing.
  void advise_single_experts() const;
  /// For benchmarks of a cold start: nothing of it is in memory afterwards, unless others use it.
  void evict() const;

 private:
  Result<const WeightEntry*> find(const std::string& path) const;
  Status mismatch(const std::string& path, const WeightEntry& entry,
                  const std::string& expected) const;

  std::string folder_;
  WeightConfig config_;
  std::map<std::string, MappedFile> files_;
};

}  // namespace exo::weights
