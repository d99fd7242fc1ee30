/// Writes safetensors files: whole, or not at all (a temporary file that gets its name at the end).
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "base/os.h"
#include "base/status.h"
#include "tensor/dtype.h"

namespace exo::weights {

/// A tensor in borrowed memory: bytes holds the product of shape elements of dtype, row-major.
struct NamedTensor {
  std::string name;
  DType dtype = DType::f32;
  std::vector<int64_t> shape;
  std::span<const std::byte> bytes;
};

/// The file's name in a safetensors header, e.g. "F8_E4M3".
std::string_view safetensors_dtype(DType dtype);

/// Writes `tensors` in their order. Errors: two tensors of one name, bytes that don't fit a shape,
/// and the file system's.
Status write_safetensors(const std::string& path, std::span<const NamedTensor> tensors,
                         const std::map<std::string, std::string>& metadata = {});

/// The same for data that doesn't fit memory: the header's tensors first (bytes unused), then the
/// data through append() in the same order, then commit().
class SafetensorsStream {
 public:
  static Result<SafetensorsStream> create(const std::string& path,
                                          std::span<const NamedTensor> tensors,
                                          const std::map<std::string, std::string>& metadata);
  Status append(std::span<const std::byte> bytes);
  /// Fails if not exactly the header's bytes were appended.
  Status commit();

 private:
  AtomicFile file_;
  std::string path_;
  uint64_t expected_bytes_ = 0;  ///< of the whole file
};

}  // namespace exo::weights
