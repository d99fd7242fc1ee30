#include "base/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <vector>

namespace exo {
namespace {

TEST(ThreadPool, RunsEveryTaskOnceManyTimes) {
  for (int n_threads : {1, 2, 3, 8}) {
    ThreadPool pool(n_threads);
    EXPECT_EQ(pool.n_threads(), n_threads);
    for (int round = 0; round < 500; ++round) {
      const int64_t n = round % 40;
      std::vector<int> count(static_cast<size_t>(n), 0);
      pool.parallel_for(n, [&](int64_t task, int thread) {
        ASSERT_GE(thread, 0);
        ASSERT_LT(thread, n_threads);
        ++count[static_cast<size_t>(task)];
      });
      for (int c : count) ASSERT_EQ(c, 1);
    }
  }
}

TEST(ThreadPool, WritesOfTasksAreSeenAfterwardsAndParkedWorkersWake) {
  ThreadPool pool(4);
  for (int round = 0; round < 20; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(round % 3));  // long enough to park
    std::vector<int64_t> value(1000, 0);
    pool.parallel_for(1000,
                      [&](int64_t task, int) { value[static_cast<size_t>(task)] = task * round; });
    for (int64_t i = 0; i < 1000; ++i) ASSERT_EQ(value[static_cast<size_t>(i)], i * round);
  }
}

}  // namespace
}  // namespace exo
