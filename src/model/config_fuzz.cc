/// config.json as hostile bytes: parsing, the frequencies and the parameter counts never crash.
#include <cstdint>
#include <string_view>

#include "model/config.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto json =
      exo::parse_json(std::string_view(reinterpret_cast<const char*>(data), size), "config.json");
  if (!json.ok()) return 0;
  const auto config = exo::model::parse_config(*json, "config.json");
  if (!config.ok()) return 0;
  if (config->qk_rope_head_dim <= 64) (void)exo::model::make_rope(*config);
  (void)config->n_parameters(true);
  (void)config->n_active_parameters();
  return 0;
}
