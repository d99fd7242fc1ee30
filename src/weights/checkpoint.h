/// An official checkpoint folder, read: config.json beside model.safetensors, or beside shards that
/// model.safetensors.index.json lists. Every byte is untrusted: headers are checked for overlap,
/// range, size, type, duplicates and JSON faults before a tensor is touched (format:
/// github.com/huggingface/safetensors, README: no holes, no overlap, no bytes behind the last
/// tensor).
///
/// The files are memory-mapped, each part while it is looked at, so that a converter's peak memory
/// is what it asks for.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/os.h"
#include "base/status.h"
#include "tensor/dtype.h"

namespace exo::weights {

/// Where one tensor lies.
struct TensorInfo {
  DType dtype = DType::f32;
  std::vector<int64_t> shape;
  int file = 0;               ///< index into Checkpoint::files()
  uint64_t offset_bytes = 0;  ///< from the beginning of the file
  uint64_t n_bytes = 0;
};

/// Parses a safetensors header (the 8-byte length included) of a file of `file_bytes` bytes.
/// `header` holds at least the first 8 + length bytes. Errors name `where`.
Result<std::map<std::string, TensorInfo>> parse_safetensors_header(std::string_view header,
                                                                   uint64_t file_bytes,
                                                                   std::string_view where);

/// Widens stored elements to f32. F32, F16, BF16, F8_E4M3 (unscaled) and F8_E8M0; another dtype is
/// an error. in: out.size() elements.
Status widen_to_f32(DType dtype, std::span<const std::byte> in, std::span<float> out);

class Checkpoint {
 public:
  /// Opens every file's header. Missing shards and tensors that the index promises and a shard
  /// doesn't hold are errors; a tensor that the index doesn't list for its shard is ignored with a
  /// warning. model.safetensors is preferred when both forms are there, as in transformers.
  static Result<Checkpoint> open(const std::string& folder);
  /// One safetensors file (a reference file of goldens, say).
  static Result<Checkpoint> open_file(const std::string& path);

  const std::string& folder() const { return folder_; }
  const std::map<std::string, TensorInfo>& tensors() const { return tensors_; }
  bool has(const std::string& name) const { return tensors_.contains(name); }
  Result<TensorInfo> find(const std::string& name) const;
  uint64_t total_bytes() const;

  /// xxh3-64 over every file's name, size, header and eight 64-byte samples of its data: what a
  /// weight cache is keyed by. (V3, R1 and R1-0528 have equal headers; the samples tell them
  /// apart.)
  uint64_t header_hash() const { return header_hash_; }

  /// Raw bytes [begin, begin + n) of a tensor, mapped; at any alignment.
  Result<MappedPart> map_bytes(const TensorInfo& tensor, uint64_t begin, uint64_t n) const;
  /// The same, copied.
  Status read_bytes(const TensorInfo& tensor, uint64_t begin, std::span<std::byte> out) const;
  /// Rows [row_begin, row_begin + n_rows) of a matrix (or of a vector seen as [n, 1]) widened to
  /// f32 as widen_to_f32 does. out: [n_rows, n_cols].
  Status read_rows_f32(const std::string& name, int64_t row_begin, int64_t n_rows,
                       std::span<float> out) const;
  /// A whole tensor as f32.
  Result<std::vector<float>> read_f32(const std::string& name) const;

 private:
  std::string folder_;
  std::vector<RandomAccessFile> files_;
  std::map<std::string, TensorInfo> tensors_;
  uint64_t header_hash_ = 0;
};

}  // namespace exo::weights
