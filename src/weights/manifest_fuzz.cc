// weights.json on arbitrary bytes, and on arbitrary JSON under a good checksum (first byte odd).
#include <cstdlib>
#include <string>

#include "base/json.h"
#include "weights/hash.h"
#include "weights/weight_config.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 1) return 0;
  std::string text(reinterpret_cast<const char*>(data) + 1, size - 1);
  if ((data[0] & 1) != 0) {
    exo::Result<exo::Json> body = exo::parse_json(text, "fuzz");
    if (!body.ok()) return 0;
    exo::Json file;
    file["xxh3"] = exo::weights::hash_text(exo::weights::xxh3(body->dump()));
    file["weights"] = *std::move(body);
    text = file.dump();
  }
  const auto config = exo::weights::WeightConfig::from_text(text, "fuzz");
  if (!config.ok()) return 0;
  for (const auto& [path, entry] : config->entries) {  // accepted entries lie inside their files
    const uint64_t file_bytes = config->file_bytes.at(entry.file);
    if (entry.offset_bytes > file_bytes || entry.n_bytes > file_bytes - entry.offset_bytes)
      std::abort();
    if (entry.offset_bytes % 64 != 0) std::abort();
  }
  return 0;
}
