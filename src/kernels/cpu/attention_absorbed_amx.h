/// Absorbed attention on AMX (attention_tiles.h), three pages at a time: the sums of 16 heads are
/// 32 kB, which every step takes from the L2 cache and puts back.
///
/// A step's scores and softmax come first, of all heads, then 64 columns of the sums after another,
/// whose values are interleaved for the tiles once for all heads, into memory that the L1 cache
/// keeps. Evenly over all of it the next step's pages are asked for.
///
/// Include only from files compiled for AMX (see matmul_layout.h about linkage).
#pragma once

#include <immintrin.h>

#include "kernels/cpu/attention_absorbed_avx512.h"
#include "kernels/cpu/matmul_layout.h"
#include "kernels/cpu/tiles_amx.h"

namespace exo::kernels::cpu {
namespace {  // NOLINT: internal linkage on purpose

// The intrinsics for tile loads don't tell the compiler that they read memory.
inline void stores_before_tiles() { asm volatile("" : : : "memory"); }

// The pages of the next step, asked for in shares, a line of each page in turn: three streams come
// a sixth sooner than one. What is asked for holds a fill buffer until it comes, which tiles on
// their way from the L2 cache need too: so only of the first half of each 4 KiB, from where on the
// L2 streamer, which starts afresh in each, goes on by itself.
class PagesAhead {
 public:
  // In so many shares.
  void begin(const AbsorbedPages& task, int64_t first, int64_t n_shares) {
    for (int64_t i = 0; i < kAbsorbedStepPages; ++i) pages_[i] = page_at(task, first + i);
    n_lines_ = task.page_bytes / 64 * kHeadBytes / 4096;
    n_shares_ = n_shares;
    credit_ = 0;
  }
  inline __attribute__((always_inline)) void ask() {
    for (credit_ += n_lines_; credit_ >= n_shares_; credit_ -= n_shares_) {
      for (NextPage& page : pages_) page.ask_head(kHeadBytes);
    }
  }

 private:
  static constexpr int64_t kHeadBytes = 2048;
  NextPage pages_[kAbsorbedStepPages];
  int64_t n_lines_ = 0, n_shares_ = 1, credit_ = 0;
};

template <DType kStored>
class AbsorbedOnTiles {
 public:
  explicit AbsorbedOnTiles(const AbsorbedPages& task)
      : t_(task),
        scores_(reinterpret_cast<float*>(task.scratch)),
        weights_(task.scratch + 2 * kStepKeys * 64),
        values_(weights_ + kMostBlocks * kStepKeys * 32),
        rows_(values_ + kStepKeys * kColumns * 2) {}

  void run() {
    configure_tiles();
    for (int64_t i = 0; i < t_.n_pages; i += kStepPages) {
      begin_step(i);
      for (int64_t block = 0; block < t_.n_blocks; block += kMostBlocks)
        attend(block, min_of(kMostBlocks, t_.n_blocks - block));
    }
    _tile_release();
  }

 private:
  static constexpr bool kCodes = kStored != DType::bf16;
  static constexpr int64_t kStepPages = kAbsorbedStepPages;
  static constexpr int64_t kStepKeys = kStepPages * kPageKeys;
  static constexpr int64_t kMostBlocks = kAbsorbedMostBlocks;
  static constexpr int64_t kColumns = kAbsorbedColumns;

  const AbsorbedPages& t_;
  float* scores_;       // [2 blocks][keys, 16 heads]
  std::byte* weights_;  // [blocks][32 keys] tiles of 16 heads x 32 keys
  std::byte* values_;   // [32 keys][4] tiles of pairs of keys x 16 columns
  std::byte* rows_;     // [keys, entry] bf16 of pages of codes

  // The step's.
  const std::byte* pages_[kStepPages] = {};  // rows of bf16: the cache's own, or rows_
  int64_t row_bytes_ = 0;
  int64_t n_keys_ = 0;
  PagesAhead ahead_;

  const std::byte* row(int64_t key) const {
    return pages_[key / kPageKeys] + key % kPageKeys * row_bytes_;
  }

  void begin_step(int64_t first) {
    const int64_t n = min_of(kStepPages, t_.n_pages - first);
    n_keys_ = n * kPageKeys - (first + n == t_.n_pages ? kPageKeys - t_.n_last_keys : 0);
    row_bytes_ = kCodes ? t_.entry * 2 : t_.entry_bytes;
    for (int64_t i = 0; i < n; ++i) {
      const std::byte* from = t_.data + t_.numbers[first + i] * t_.page_bytes;
      const int64_t n_keys = min_of(kPageKeys, n_keys_ - i * kPageKeys);
      if constexpr (kCodes) {
        pages_[i] = rows_ + i * kPageKeys * row_bytes_;
        widen_page<kStored>(t_, from, n_keys, rows_ + i * kPageKeys * row_bytes_);
      } else {
        pages_[i] = from;
      }
    }
    // A share with each 32 columns of two or one blocks' scores, and with each 32 keys' values.
    ahead_.begin(t_, first + n,
                 t_.n_blocks * (2 * t_.entry / 32 + t_.rank / kColumns * kStepKeys / 32));
  }

  void attend(int64_t first_block, int64_t n_blocks) {
    const int64_t n_halves = ceil_of(n_keys_, 32);
    for (int64_t b = 0; b < n_blocks; b += 2) {
      if (b + 1 < n_blocks) {
        score<2>(first_block + b);
      } else {
        score<1>(first_block + b);
      }
      for (int64_t i = b; i < b + 2 && i < n_blocks; ++i) weigh(first_block + i, i, i - b);
    }
    for (int64_t half = 0; half < n_halves; ++half) interleave(0, half);
    for (int64_t c = 0; c < t_.rank; c += kColumns) {
      for (int64_t b = 0; b < n_blocks; ++b) {
        const AbsorbedState state(t_, first_block + b);
        add_values(weights_ + b * kStepKeys * 32, state.sum + c, state.stride * 4,
                   b + 1 == n_blocks && c + kColumns < t_.rank ? c + kColumns : -1, n_halves);
      }
    }
  }

  // scores[key, head], unscaled, of one block or two; what is beyond the last key may be anything.
  template <int kBlocks>
  void score(int64_t block) {
    constexpr int64_t kTiles = kBlocks == 1 ? 6 : 3;  // of 16 keys
    const std::byte* queries[2] = {t_.queries + block * t_.query_bytes,
                                   t_.queries + (block + kBlocks - 1) * t_.query_bytes};
    stores_before_tiles();
    for (int64_t key = 0; key < n_keys_; key += 16 * kTiles) {
      const std::byte* keys[kTiles];
      // Tiles that there aren't are the last one again.
      for (int64_t i = 0; i < kTiles; ++i)
        keys[i] = row(min_of(key + 16 * i, (n_keys_ - 1) / 16 * 16));
      zero_tiles();
      for (int64_t j = 0; j < t_.entry / 32; ++j) {
        ahead_.ask();
        _tile_loadd(6, queries[0] + j * kTileBytes, 64);
        _tile_loadd(7, keys[0] + j * 64, row_bytes_);
        _tile_dpbf16ps(0, 7, 6);
        _tile_loadd(7, keys[1] + j * 64, row_bytes_);
        _tile_dpbf16ps(1, 7, 6);
        _tile_loadd(7, keys[2] + j * 64, row_bytes_);
        _tile_dpbf16ps(2, 7, 6);
        // Three more tiles of keys, or the same ones backwards with the other block.
        if constexpr (kBlocks == 1) {
          _tile_loadd(7, keys[5] + j * 64, row_bytes_);
        } else {
          _tile_loadd(6, queries[1] + j * kTileBytes, 64);
        }
        _tile_dpbf16ps(5, 7, 6);
        _tile_loadd(7, keys[kTiles - 2] + j * 64, row_bytes_);
        _tile_dpbf16ps(4, 7, 6);
        _tile_loadd(7, keys[kTiles - 3] + j * 64, row_bytes_);
        _tile_dpbf16ps(3, 7, 6);
      }
      float* first = scores_ + key * 16;
      float* second = kBlocks == 1 ? first + 3 * 256 : first + kStepKeys * 16;
      _tile_stored(0, first, 64);
      _tile_stored(1, first + 256, 64);
      _tile_stored(2, first + 512, 64);
      _tile_stored(3, second, 64);
      _tile_stored(4, second + 256, 64);
      _tile_stored(5, second + 512, 64);
    }
    stores_before_tiles();
  }

  // The scores of a block to weights, its sums to the new largest score.
  void weigh(int64_t block, int64_t number, int64_t of_scores) {
    const AbsorbedState state(t_, block);
    float* scores = scores_ + of_scores * kStepKeys * 16;
    HeadsSoftmax softmax = load_softmax(state.softmax);
    absorbed_rescale(state, t_.rank, add_scores(scores, t_.scale, n_keys_, softmax));
    std::byte* weights = weights_ + number * kStepKeys * 32;
    alignas(64) std::byte pairs[kTileBytes];
    for (int64_t first = 0; first < n_keys_; first += 32, weights += kTileBytes) {
      add_weights(scores + 16 * first, 32, n_keys_ - first, softmax, pairs);
      transpose_words(pairs, 64, weights, 64);
    }
    store_softmax(softmax, state.softmax);
  }

  // 64 columns of 32 keys as lines of pairs of keys, 0 beyond the last key. Columns come out in the
  // order of unpacklo and unpackhi, which the reader of the sums undoes.
  inline void interleave(int64_t c, int64_t half) {
    const std::byte* from = row(half * 32) + 2 * c;
    std::byte* to = values_ + half * 4 * kTileBytes;
    const int64_t n = n_keys_ - half * 32;
    if (n >= 32) {
#pragma GCC unroll 2
      for (int64_t pair = 0; pair < 16; ++pair, from += 2 * row_bytes_, to += 64) {
        store_pair(_mm512_loadu_si512(from), _mm512_loadu_si512(from + row_bytes_), to);
        store_pair(_mm512_loadu_si512(from + 64), _mm512_loadu_si512(from + row_bytes_ + 64),
                   to + 2 * kTileBytes);
      }
      return;
    }
    for (int64_t pair = 0; pair < 16; ++pair, from += 2 * row_bytes_, to += 64) {
      for (int64_t j = 0; j < 2; ++j) {
        __m512i a = _mm512_setzero_si512(), b = a;
        if (2 * pair < n) a = _mm512_loadu_si512(from + j * 64);
        if (2 * pair + 1 < n) b = _mm512_loadu_si512(from + row_bytes_ + j * 64);
        store_pair(a, b, to + j * 2 * kTileBytes);
      }
    }
  }
  static inline void store_pair(__m512i a, __m512i b, std::byte* to) {
    _mm512_store_si512(to, _mm512_unpacklo_epi16(a, b));
    _mm512_store_si512(to + kTileBytes, _mm512_unpackhi_epi16(a, b));
  }

  // sum [16 heads, 64 columns] += weights [16, keys] * values, whose place then takes the values of
  // the columns from next_c on (-1: of none).
  inline void add_values(const std::byte* weights, float* sum, int64_t stride_bytes, int64_t next_c,
                         int64_t n_halves) {
    stores_before_tiles();
    _tile_loadd(0, sum, stride_bytes);
    _tile_loadd(1, sum + 16, stride_bytes);
    _tile_loadd(2, sum + 32, stride_bytes);
    _tile_loadd(3, sum + 48, stride_bytes);
    for (int64_t half = 0; half < n_halves; ++half, weights += kTileBytes) {
      const std::byte* values = values_ + half * 4 * kTileBytes;
      _tile_loadd(4, weights, 64);
      _tile_loadd(6, values, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, values + kTileBytes, 64);
      _tile_dpbf16ps(1, 4, 7);
      _tile_loadd(6, values + 2 * kTileBytes, 64);
      _tile_dpbf16ps(2, 4, 6);
      _tile_loadd(7, values + 3 * kTileBytes, 64);
      _tile_dpbf16ps(3, 4, 7);
      stores_before_tiles();
      ahead_.ask();
      if (next_c >= 0) interleave(next_c, half);
      stores_before_tiles();
    }
    _tile_stored(0, sum, stride_bytes);
    _tile_stored(1, sum + 16, stride_bytes);
    _tile_stored(2, sum + 32, stride_bytes);
    _tile_stored(3, sum + 48, stride_bytes);
  }
};

inline void absorbed_on_tiles(const AbsorbedPages& task) {
  if (task.stored == DType::bf16) return AbsorbedOnTiles<DType::bf16>(task).run();
  if (task.stored == DType::i8) return AbsorbedOnTiles<DType::i8>(task).run();
  AbsorbedOnTiles<DType::f8_e4m3>(task).run();
}

}  // namespace
}  // namespace exo::kernels::cpu
