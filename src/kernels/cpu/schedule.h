/// How products are cut into tasks: large enough to stream weights at the memory's bandwidth and to
/// reuse them for all rows, small enough that every thread finds work.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/thread_pool.h"
#include "tensor/packed.h"

namespace exo::kernels::cpu {

/// `count` blocks of `size` units (the last may have fewer).
struct Blocks {
  int64_t size = 1;
  int64_t count = 0;
};

/// A block of activations that a core's second-level cache holds beside the weights.
inline constexpr int64_t kMaxTaskRows = 512;
/// Weight bytes from which on a task's start no longer counts against its streaming.
inline constexpr int64_t kTaskWeightBytes = 64 << 10;

inline Blocks row_blocks(int64_t n_rows) {
  const int64_t n = ceil_div(n_rows, kMaxTaskRows);
  const int64_t size = n <= 1 ? std::max<int64_t>(n_rows, 1) : align_up(ceil_div(n_rows, n), 16);
  return {size, ceil_div(n_rows, size)};
}

/// Panels of `w` in one task: by bytes when few rows share them, 8 (128 outputs) when many do; an
/// even number (gate and up, and tile kernels, go by pairs); fewer where threads would be idle.
inline Blocks panel_blocks(const PackedMatrix& w, int64_t n_rows, int64_t n_row_blocks,
                           int n_threads) {
  const int64_t n = w.n_panels();
  const int64_t wanted = n_rows > 16 ? 32 : ceil_div(kTaskWeightBytes, w.panel_bytes());
  const int64_t fair = n * n_row_blocks / (4 * n_threads);
  const int64_t size = align_up(std::clamp<int64_t>(fair, 1, wanted), 2);
  return {size, ceil_div(n, size)};
}

/// Calls f(row, thread) for every row, several rows a task: a task moves about 64 KiB, and less
/// work than that stays on the calling thread.
template <typename F>
void for_rows(ThreadPool& pool, int64_t n_rows, int64_t row_bytes, F&& f) {
  const int64_t size = std::max<int64_t>(1, (64 << 10) / std::max<int64_t>(row_bytes, 1));
  pool.parallel_for(ceil_div(n_rows, size), [&](int64_t task, int thread) {
    const int64_t end = std::min(n_rows, (task + 1) * size);
    for (int64_t row = task * size; row < end; ++row) f(row, thread);
  });
}

}  // namespace exo::kernels::cpu
