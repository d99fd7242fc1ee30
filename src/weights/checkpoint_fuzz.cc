// The safetensors header parser on arbitrary bytes. The first byte chooses whether the rest is a
// whole file (length field included) or the JSON alone, with the true length put before it; the
// second how much data follows.
#include <cstdlib>
#include <cstring>
#include <string>

#include "weights/checkpoint.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 2) return 0;
  std::string bytes(reinterpret_cast<const char*>(data) + 2, size - 2);
  if ((data[0] & 1) != 0) {
    const uint64_t length = bytes.size();
    bytes.insert(0, reinterpret_cast<const char*>(&length), 8);
  }
  const uint64_t file_bytes = bytes.size() + data[1];
  auto tensors = exo::weights::parse_safetensors_header(bytes, file_bytes, "fuzz");
  if (!tensors.ok()) return 0;
  uint64_t total = 0;
  for (const auto& [name, info] : *tensors) {  // what was accepted must lie inside the file
    if (info.offset_bytes > file_bytes || info.n_bytes > file_bytes - info.offset_bytes)
      std::abort();
    total += info.n_bytes;
  }
  if (total > file_bytes) std::abort();
  return 0;
}
