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
/// Rows up to which a task streams weights from memory and has time to spare.
inline constexpr int64_t kFewRows = 16;
/// Streams in which a task of few rows is read at most, its panels shared out among them.
inline constexpr int64_t kMostStreams = 8;
/// Weight bytes of the smallest task of few rows. Where a stream of weights ends and another
/// begins, a thread waits for memory, 0.3 us each time: two threads decode int4 8 to 25% faster
/// with tasks of 1 MiB than of 64 KiB, the more the faster the memory.
inline constexpr int64_t kTaskWeightBytes = 128 << 10;

inline Blocks row_blocks(int64_t n_rows) {
  const int64_t n = ceil_div(n_rows, kMaxTaskRows);
  const int64_t size = n <= 1 ? std::max<int64_t>(n_rows, 1) : align_up(ceil_div(n_rows, n), 16);
  return {size, ceil_div(n_rows, size)};
}

/// Of `n_left` units, what the next task takes: half of a thread's share, so that tasks are large
/// while much is left and small at the end, where threads must finish together. An even number,
/// from kMostStreams on a multiple of that, between `least` and `most`, but for the last.
inline int64_t next_task(int64_t n_left, int64_t least, int64_t most, int n_threads) {
  const int64_t fewest = align_up(std::max<int64_t>(least, 1), 2);
  const int64_t half = n_left / (2 * n_threads), unit = half < kMostStreams ? 2 : kMostStreams;
  const int64_t n = std::clamp(half / unit * unit, fewest, std::max(fewest, most));
  return n_left - n < 2 ? n_left : n;
}

/// Units cut into tasks of such sizes, a round of one task for each thread at a time.
class Rounds {
 public:
  struct Task {
    int64_t begin = 0, size = 0;
  };

  Rounds(int64_t n_units, int64_t least, int64_t most, int n_threads)
      : n_units_(n_units), least_(least), most_(most), n_threads_(n_threads) {
    for (int64_t at = 0; at < n_units; at += std::min(n_units - at, n_threads * size_at(at)))
      count_ += std::min<int64_t>(n_threads, ceil_div(n_units - at, size_at(at)));
  }
  int64_t count() const { return count_; }
  /// Task i < count().
  Task task(int64_t i) const {
    int64_t at = 0;
    for (; i >= n_threads_; i -= n_threads_) at += n_threads_ * size_at(at);
    const int64_t size = size_at(at), begin = at + i * size;
    return {begin, std::min(size, n_units_ - begin)};
  }

 private:
  int64_t size_at(int64_t at) const { return next_task(n_units_ - at, least_, most_, n_threads_); }

  int64_t n_units_, least_, most_;
  int n_threads_;
  int64_t count_ = 0;
};

/// Panels of the largest task of many rows.
inline constexpr int64_t kMostTaskPanels = 32;

/// A matrix's panels in tasks that shrink, an even number each (gate and up, and tile kernels, go
/// by pairs): the last of few rows are kTaskWeightBytes, of many two panels.
inline Rounds panel_tasks(const PackedMatrix& w, int64_t n_rows, int n_threads) {
  const int64_t n = w.n_panels();
  if (n_rows > kFewRows) return Rounds(n, 2, kMostTaskPanels, n_threads);
  return Rounds(n, std::min(ceil_div(kTaskWeightBytes, w.panel_bytes()), n / (4 * n_threads)), n,
                n_threads);
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
