#include "kernels/cpu/attention_tiles.h"

namespace exo::kernels::cpu {

// Each table is made only when asked for: filling it runs that instruction set's code.

const AbsorbedAttention* absorbed_attention([[maybe_unused]] Isa isa, [[maybe_unused]] DType stored,
                                            [[maybe_unused]] int64_t entry,
                                            [[maybe_unused]] int64_t rank) {
#if defined(__x86_64__)
  const int64_t rope = entry - rank;
  if (stored == DType::f32 || rank % 64 != 0 || rope % 32 != 0 || rank == 0 || rope == 0)
    return nullptr;
  if (isa == Isa::avx512 && stored == DType::i8) {
    static const AbsorbedAttention kBytes = absorbed_bytes_avx512();
    return &kBytes;
  }
  if (isa == Isa::avx512bf16 && stored == DType::i8) {
    static const AbsorbedAttention kBytes = absorbed_bytes_avx512bf16();
    return &kBytes;
  }
  if (isa == Isa::avx512bf16) {
    static const AbsorbedAttention kVectors = absorbed_tiles_avx512bf16();
    return &kVectors;
  }
  if (isa == Isa::amx) {
    static const AbsorbedAttention kAmx = absorbed_tiles_amx();
    return &kAmx;
  }
#endif
  return nullptr;
}

const ExpandedAttention* expanded_attention(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::avx512bf16) {
    static const ExpandedAttention kVectors = expanded_tiles_avx512bf16();
    return &kVectors;
  }
  if (isa == Isa::amx) {
    static const ExpandedAttention kAmx = expanded_tiles_amx();
    return &kAmx;
  }
#endif
  return vector_kernels(isa).expanded_words;
}

}  // namespace exo::kernels::cpu
