#include "kernels/cpu/attention_tiles.h"

namespace exo::kernels::cpu {

const TileAttention* tile_attention([[maybe_unused]] Isa isa) {
#if defined(__x86_64__)
  // Each made only when asked for: filling the table runs that instruction set's code.
  if (isa == Isa::avx512bf16) {
    static const TileAttention kVectors = attention_avx512bf16();
    return &kVectors;
  }
  if (isa == Isa::amx) {
    static const TileAttention kAmx = attention_amx();
    return &kAmx;
  }
#endif
  return nullptr;
}

const ExpandedAttention* expanded_attention(Isa isa) {
  const TileAttention* tiles = tile_attention(isa);
  return tiles != nullptr ? &tiles->expanded : vector_kernels(isa).expanded_words;
}

}  // namespace exo::kernels::cpu
