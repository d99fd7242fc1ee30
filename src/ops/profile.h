/// Time per operation of the forwards that run with OpContext::profile set (`exo bench --profile`).
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <string_view>

namespace exo::ops {

enum class Op : uint8_t {
  embedding,
  rms_norm,
  add,
  pack_rows,
  linear,
  head_linear,
  rope_table,
  rope,
  select_experts,
  experts,
  store_latent,
  mla_absorbed,
  mla_expanded,
};
inline constexpr size_t kOpCount = 13;

constexpr std::string_view to_string(Op op) {
  constexpr std::array<std::string_view, kOpCount> kNames = {
      "embedding",    "rms_norm",     "add",         "pack_rows",      "linear",
      "head_linear",  "rope_table",   "rope",        "select_experts", "experts",
      "store_latent", "mla_absorbed", "mla_expanded"};
  return kNames[static_cast<size_t>(op)];
}

/// Wall time of the bodies, as the thread that runs the forward sees it. One thread writes it.
struct Profile {
  struct Entry {
    int64_t n_calls = 0;
    std::chrono::nanoseconds time{0};
  };
  std::array<Entry, kOpCount> by_op{};
};

}  // namespace exo::ops
