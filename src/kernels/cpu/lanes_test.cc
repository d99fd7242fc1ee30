// Each lane's steps run once and in order, whoever takes them; threads keep together.
#include "kernels/cpu/lanes.h"

#include <gtest/gtest.h>

#include <atomic>
#include <utility>
#include <vector>

#include "base/thread_pool.h"

namespace exo::kernels::cpu {
namespace {

using LaneStep = Lanes::Step;

TEST(Lanes, OneThreadGoesThroughTheLanesStepByStep) {
  std::vector<std::atomic<int64_t>> next(3);
  Lanes lanes(next.data(), 3, 2, 1);
  std::vector<std::pair<int64_t, int64_t>> taken;
  for (LaneStep s; lanes.take(0, &s); lanes.done(s)) taken.emplace_back(s.step, s.lane);
  const std::vector<std::pair<int64_t, int64_t>> expected = {{0, 0}, {0, 1}, {0, 2},
                                                             {1, 0}, {1, 1}, {1, 2}};
  EXPECT_EQ(taken, expected);
}

TEST(Lanes, WithoutLanesOrStepsNoneIsTaken) {
  std::vector<std::atomic<int64_t>> next(3);
  LaneStep s;
  EXPECT_FALSE(Lanes(next.data(), 3, 0, 2).take(1, &s));
  EXPECT_FALSE(Lanes(next.data(), 0, 3, 2).take(1, &s));
}

TEST(Lanes, AThreadKeepsToItsOwnUntilTheyAreAhead) {
  std::vector<std::atomic<int64_t>> next(4);
  Lanes lanes(next.data(), 4, 10, 2);
  std::vector<LaneStep> taken;
  for (LaneStep s; taken.size() < 8 && lanes.take(1, &s); lanes.done(s)) taken.push_back(s);
  ASSERT_EQ(taken.size(), 8u);
  for (size_t i = 0; i < 6; ++i) {
    EXPECT_EQ(lanes.owner(taken[i].lane), 1);
    EXPECT_EQ(taken[i].step, static_cast<int64_t>(i / 2));
  }
  // Three steps ahead of the other's lanes, it helps those.
  for (size_t i = 6; i < 8; ++i) {
    EXPECT_EQ(lanes.owner(taken[i].lane), 0);
    EXPECT_EQ(taken[i].step, 0);
  }
}

TEST(Lanes, AThreadThatIsHeldUpHoldsUpItsLaneAlone) {
  std::vector<std::atomic<int64_t>> next(2);
  Lanes lanes(next.data(), 2, 3, 2);
  LaneStep held;
  ASSERT_TRUE(lanes.take(1, &held));
  int64_t n = 0;
  for (LaneStep s; lanes.take(0, &s); lanes.done(s), ++n) EXPECT_NE(s.lane, held.lane);
  EXPECT_EQ(n, 3);
  lanes.done(held);
  n = 0;
  for (LaneStep s; lanes.take(0, &s); lanes.done(s), ++n) EXPECT_EQ(s.lane, held.lane);
  EXPECT_EQ(n, 2);
}

TEST(Lanes, ThreadsRunEveryStepOfALaneOnceAndInOrder) {
  constexpr int64_t kLanes = 7, kSteps = 400;
  for (int n_threads : {2, 3, 8}) {
    std::vector<std::atomic<int64_t>> next(kLanes);
    Lanes lanes(next.data(), kLanes, kSteps, n_threads);
    // Not atomic: what a step does must be seen by the next of its lane (tsan).
    std::vector<int64_t> done(kLanes, 0);
    std::atomic<int64_t> n_wrong{0};
    ThreadPool pool(n_threads);
    pool.parallel_for(n_threads, [&](int64_t, int thread) {
      for (LaneStep s; lanes.take(thread, &s); lanes.done(s)) {
        int64_t& at = done[static_cast<size_t>(s.lane)];
        if (at != s.step) n_wrong.fetch_add(1);
        ++at;
      }
    });
    EXPECT_EQ(n_wrong.load(), 0);
    EXPECT_EQ(done, std::vector<int64_t>(kLanes, kSteps)) << n_threads;
  }
}

}  // namespace
}  // namespace exo::kernels::cpu
