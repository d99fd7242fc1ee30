/// The tile products of both attentions on AMX. Compiled with AMX flags: see matmul_layout.h about
/// linkage.
#if defined(__x86_64__)
#include "kernels/cpu/attention_absorbed_amx.h"
#include "kernels/cpu/attention_expanded_avx512.h"
#include "kernels/cpu/tiles_amx.h"

namespace exo::kernels::cpu {
namespace {

struct ExpandedTileProducts {
  static constexpr int64_t kPages = kMostExpandedPages;
  static constexpr bool kSteps = true;
  static void begin() { configure_tiles(); }
  static void end() { _tile_release(); }

  // The keys' first half, then the other; tiles 0 to 3.
  static inline void scores_step(const std::byte* q, const ExpandedTiles& tiles, int64_t step,
                                 float* scores) {
    const int64_t j = step % tiles.steps, half = step / tiles.steps, stride = tiles.steps * 64;
    const std::byte* keys = tiles.keys + (j * 4 + half * 2) * kTileBytes;
    if (j == 0) {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
    }
    _tile_loadd(4, q + j * 64, stride);
    _tile_loadd(6, keys, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, keys + kTileBytes, 64);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, q + 16 * stride + j * 64, stride);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
    if (j + 1 < tiles.steps) return;
    float* to = scores + half * 32;
    _tile_stored(0, to, 256);
    _tile_stored(1, to + 16, 256);
    _tile_stored(2, to + 16 * 64, 256);
    _tile_stored(3, to + 16 * 64 + 16, 256);
  }

  static void scores(const std::byte* q, const ExpandedTiles& tiles, float* scores) {
    stores_before_tiles();
    for (int64_t step = 0; step < 2 * tiles.steps; ++step) scores_step(q, tiles, step, scores);
  }

  // sums [32 rows, 32 or 16 columns from c on] += weights [32, 64 keys] * values, of all pages.
  template <bool kTwo>
  static inline void add_columns(const std::byte* weights, const ExpandedTiles* pages,
                                 int64_t n_pages, int64_t c, int64_t value, float* sums) {
    const int64_t half_bytes = value / 16 * kTileBytes, stride = value * 4;
    float* upper = sums + c;
    float* lower = upper + 16 * value;
    _tile_loadd(0, upper, stride);
    if (kTwo) _tile_loadd(1, upper + 16, stride);
    _tile_loadd(2, lower, stride);
    if (kTwo) _tile_loadd(3, lower + 16, stride);
    for (int64_t page = 0; page < n_pages; ++page, weights += kPageWeightBytes) {
      for (int64_t half = 0; half < 2; ++half) {
        const std::byte* values = pages[page].values + c / 16 * kTileBytes + half * half_bytes;
        _tile_loadd(4, weights + half * 64, 128);
        _tile_loadd(6, values, 64);
        _tile_dpbf16ps(0, 4, 6);
        if (kTwo) _tile_loadd(7, values + kTileBytes, 64);
        if (kTwo) _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, weights + half * 64 + 16 * 128, 128);
        _tile_dpbf16ps(2, 5, 6);
        if (kTwo) _tile_dpbf16ps(3, 5, 7);
      }
    }
    _tile_stored(0, upper, stride);
    if (kTwo) _tile_stored(1, upper + 16, stride);
    _tile_stored(2, lower, stride);
    if (kTwo) _tile_stored(3, lower + 16, stride);
  }

  static void add_values(const std::byte* weights, const ExpandedTiles* pages, int64_t n_pages,
                         int64_t value, float* sums) {
    stores_before_tiles();
    int64_t c = 0;
    for (; c + 32 <= value; c += 32) add_columns<true>(weights, pages, n_pages, c, value, sums);
    if (c < value) add_columns<false>(weights, pages, n_pages, c, value, sums);
  }
};

}  // namespace

AbsorbedAttention absorbed_tiles_amx() {
  return {.query = absorbed_query, .pages = absorbed_on_tiles, .n_interleaved = 2};
}

ExpandedAttention expanded_tiles_amx() {
  return {.queries = expanded_queries,
          .page = expanded_page,
          .rows = expanded_rows<ExpandedTileProducts>,
          .most_pages = kMostExpandedPages};
}

}  // namespace exo::kernels::cpu
#endif
