/// The wide values of i8 rows (ops/wide_columns.h) beside the tile products: where a source tile's
/// weights lie in the L1 cache as bytes, vectors multiply its columns' wide values. By themselves
/// (wide_columns.cc), row after row, they would take half as long as the products of a SwiGLU's
/// rows, whose lists are full: each value fetches a line of 64 weights for one of them.
///
/// Include only from files compiled for AMX (see matmul_layout.h about linkage).
#pragma once

#include <immintrin.h>

#include "kernels/cpu/matmul_layout.h"

namespace exo::kernels::cpu {
namespace {  // NOLINT: internal linkage on purpose

/// A wide value of a row of a group.
struct WideEntry {
  int32_t q;       ///< 16 bits; the upper half 0
  int32_t shift;   ///< of its byte in a word of four columns, to the top
  int32_t source;  ///< the source tile along K
  uint16_t line;   ///< bytes from there to the line of its column
  uint16_t sums;   ///< of its row in the group's
};

constexpr int64_t kMostWideEntries = 4096;  ///< of a pass
constexpr int32_t kNoSource = INT32_MAX;

constexpr int64_t kMostSources = 131072 / 64;  ///< ops::kMaxMatmulCols

/// max_wide of tensor/packed.h
inline int64_t most_wide_of(const PackedRows& x) {
  return min_of(512, max_of(4, ceil_of(x.n_cols, 512)));
}

/// A thread's memory for them.
struct WideScratch {
  uint8_t* sums;       ///< a group's: [row][panel] int32 lines
  WideEntry* entries;  ///< by group, each by source tile and ended by kNoSource
};

/// Rows [row, row + n_rows) of x, whose source tiles have `source_cols` columns, to entries;
/// returns what comes behind them.
inline WideEntry* list_wide(const PackedRows& x, int64_t row, int64_t n_rows, int64_t source_cols,
                            WideEntry* to) {
  const int64_t most = most_wide_of(x), n_sources = ceil_of(x.n_cols, source_cols);
  const WideValue* values = x.wide + row * most;
  int64_t n = 0;
  for (int64_t r = 0; r < n_rows; ++r) n += x.n_wide[row + r];
  if (n > 0) {
    uint16_t at[kMostSources + 1];
    for (int64_t s = 0; s <= n_sources; ++s) at[s] = 0;
    for (int64_t r = 0; r < n_rows; ++r) {
      for (int32_t i = 0; i < x.n_wide[row + r]; ++i)
        ++at[values[r * most + i].column / source_cols + 1];
    }
    for (int64_t s = 0; s < n_sources; ++s) at[s + 1] = static_cast<uint16_t>(at[s + 1] + at[s]);
    for (int64_t r = 0; r < n_rows; ++r) {
      for (int32_t i = 0; i < x.n_wide[row + r]; ++i) {
        const WideValue& v = values[r * most + i];
        const int64_t source = v.column / source_cols, in_source = v.column % source_cols;
        to[at[source]++] = {
            static_cast<int32_t>(v.q & 0xFFFF), static_cast<int32_t>(24 - in_source % 4 * 8),
            static_cast<int32_t>(source),
            static_cast<uint16_t>(in_source / 64 * kTile + in_source % 64 / 4 * kLine),
            static_cast<uint16_t>(r * 2 * kLine)};
      }
    }
  }
  to[n].source = kNoSource;
  return to + n + 1;
}

/// Adds the entries of the first one's source tile, of two panels, to a group's sums; returns what
/// comes behind them.
inline __attribute__((noinline)) const WideEntry* add_wide(const WideEntry* e,
                                                           const uint8_t* panel0,
                                                           const uint8_t* panel1, uint8_t* sums) {
  const auto add = [&](const uint8_t* panel, __m512i shift, __m512i q, uint8_t* to) {
    const __m512i words = _mm512_load_si512(panel + e->line);
    const __m512i weights = _mm512_srai_epi32(_mm512_sllv_epi32(words, shift), 24);
    _mm512_store_si512(to, _mm512_dpwssd_epi32(_mm512_load_si512(to), weights, q));
  };
  for (const int32_t source = e->source; e->source == source; ++e) {
    const __m512i q = _mm512_set1_epi32(e->q), shift = _mm512_set1_epi32(e->shift);
    add(panel0, shift, q, sums + e->sums);
    add(panel1, shift, q, sums + e->sums + kLine);
  }
  return e;
}

}  // namespace
}  // namespace exo::kernels::cpu
