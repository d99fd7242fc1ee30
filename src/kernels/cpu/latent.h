/// Entries of the latent cache in f32 and back, for the bodies that read and write them.
#pragma once

#include <algorithm>

#include "kernels/cpu/vector.h"
#include "ops/ops.h"

namespace exo::kernels::cpu {

/// An entry to f32: to [kv_lora_rank + rope_dim].
inline void load_entry(const VectorKernels& v, const ops::LatentPages& pages, int32_t page,
                       int64_t slot, float* to) {
  const std::byte* from = pages.entry(page, slot);
  const int64_t rank = pages.kv_lora_rank;
  if (pages.dtype == DType::f32) {
    std::copy_n(reinterpret_cast<const float*>(from), rank + pages.rope_dim, to);
    return;
  }
  if (pages.dtype == DType::bf16)
    return v.widen_bf16(reinterpret_cast<const bf16*>(from), to, rank + pages.rope_dim);
  const float* scales = pages.scales(page, slot);
  for (int64_t first = 0; first < rank; first += ops::kLatentPartCols) {
    const int64_t n = std::min(ops::kLatentPartCols, rank - first);
    const float scale = *scales++;
    if (pages.dtype == DType::i8) {
      v.widen_i8(reinterpret_cast<const int8_t*>(from + first), scale, to + first, n);
    } else {
      v.widen_f8(reinterpret_cast<const f8_e4m3*>(from + first), scale, to + first, n);
    }
  }
  v.widen_bf16(reinterpret_cast<const bf16*>(from + pages.rope_offset()), to + rank,
               pages.rope_dim);
}

/// latent [kv_lora_rank] and k_rope [rope_dim] into an entry.
inline void store_entry(const VectorKernels& v, const ops::LatentPages& pages, int32_t page,
                        int64_t slot, const float* latent, const float* k_rope) {
  std::byte* to = pages.entry(page, slot);
  const int64_t rank = pages.kv_lora_rank;
  if (pages.dtype == DType::f32) {
    std::copy_n(latent, rank, reinterpret_cast<float*>(to));
    std::copy_n(k_rope, pages.rope_dim, reinterpret_cast<float*>(to) + rank);
    return;
  }
  v.round_to_bf16(k_rope, reinterpret_cast<bf16*>(to + pages.rope_offset()), pages.rope_dim);
  if (pages.dtype == DType::bf16) return v.round_to_bf16(latent, reinterpret_cast<bf16*>(to), rank);
  float* scales = pages.scales(page, slot);
  for (int64_t first = 0; first < rank; first += ops::kLatentPartCols) {
    const int64_t n = std::min(ops::kLatentPartCols, rank - first);
    *scales++ = pages.dtype == DType::i8
                    ? v.round_to_i8(latent + first, reinterpret_cast<int8_t*>(to + first), n)
                    : v.round_to_f8(latent + first, reinterpret_cast<f8_e4m3*>(to + first), n);
  }
}

}  // namespace exo::kernels::cpu
