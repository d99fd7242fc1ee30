#include "base/thread_pool.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "base/os.h"

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

// Three times as many threads as processors, and as many busy neighbours: workers are preempted
// inside of tasks, between them, and before they have begun.
TEST(ThreadPool, ATaskMayWaitForThoseBeforeIt) {
  constexpr int64_t kTasks = 24, kBehind = 8;
  for (int n_threads : {1, 2, 8}) {
    ThreadPool pool(n_threads);
    for (int round = 0; round < 30; ++round) {
      std::vector<std::atomic<bool>> done(kTasks);
      std::vector<int64_t> value(kTasks, 0);
      pool.parallel_for(kTasks, [&](int64_t task, int) {
        const auto i = static_cast<size_t>(task);
        if (task < kBehind) {
          // Now and then long enough for those who wait to park.
          if (round % 10 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
          value[i] = task;
        } else {
          wait_until(done[i - kBehind], [](bool d) { return d; });
          value[i] = value[i - kBehind] + 100;
        }
        done[i].store(true, std::memory_order_release);
        done[i].notify_all();
      });
      for (int64_t i = 0; i < kTasks; ++i)
        ASSERT_EQ(value[static_cast<size_t>(i)], i % kBehind + i / kBehind * 100);
    }
  }
}

TEST(ThreadPool, IsRightOnABusyMachine) {
  const int n_cpus = usable_cpus();
  std::atomic<bool> stop{false};
  std::vector<std::thread> neighbours;
  for (int i = 0; i < n_cpus; ++i)
    neighbours.emplace_back([&] {
      while (!stop.load(std::memory_order_relaxed)) {
      }
    });
  ThreadPool pool(std::min(3 * n_cpus, 24));
  std::vector<int64_t> value(64);
  for (int64_t round = 0; round < 200; ++round) {
    std::atomic<int64_t> n_run{0};
    pool.parallel_for(std::ssize(value), [&](int64_t task, int) {
      volatile int64_t work = 0;
      for (int64_t i = 0; i < task * 20; ++i) work = work + 1;
      value[static_cast<size_t>(task)] = task + round;
      n_run.fetch_add(1, std::memory_order_relaxed);
    });
    ASSERT_EQ(n_run.load(), std::ssize(value));
    for (int64_t task = 0; task < std::ssize(value); ++task)
      ASSERT_EQ(value[static_cast<size_t>(task)], task + round);
  }
  stop = true;
  for (std::thread& t : neighbours) t.join();
}

TEST(ThreadPool, WorkersBeginWithOnStart) {
  std::atomic<int> started{0};
  ThreadPool pool(4, [&](int thread) { started.fetch_or(1 << thread); });
  std::atomic<int> unstarted{0};
  for (int round = 0; round < 50; ++round)
    pool.parallel_for(16, [&](int64_t, int thread) {
      if (thread > 0 && (started.load() >> thread & 1) == 0) ++unstarted;
    });
  EXPECT_EQ(unstarted.load(), 0);
  EXPECT_EQ(started.load() & 1, 0) << "the caller isn't a worker";
}

}  // namespace
}  // namespace exo
