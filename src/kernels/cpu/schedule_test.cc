// Every unit is in one task, whatever the sizes; tasks shrink; threads share what there is.
#include "kernels/cpu/schedule.h"

#include <gtest/gtest.h>

#include <vector>

namespace exo::kernels::cpu {
namespace {

std::vector<Rounds::Task> tasks_of(const Rounds& rounds) {
  std::vector<Rounds::Task> tasks;
  for (int64_t i = 0; i < rounds.count(); ++i) tasks.push_back(rounds.task(i));
  return tasks;
}

TEST(Rounds, EveryUnitIsInOneTaskOfAnEvenSize) {
  for (int n_threads : {1, 2, 3, 5, 64, 200}) {
    for (int64_t n : {0, 1, 2, 3, 7, 16, 85, 128, 685, 6400}) {
      for (int64_t least : {0, 1, 3, 8, 5000}) {
        for (int64_t most : {2, 16, 100000}) {
          SCOPED_TRACE(testing::Message() << n << " units for " << n_threads << " threads, "
                                          << least << " to " << most);
          int64_t at = 0;
          const auto tasks = tasks_of(Rounds(n, least, most, n_threads));
          for (size_t i = 0; i < tasks.size(); ++i) {
            ASSERT_EQ(tasks[i].begin, at);
            ASSERT_GT(tasks[i].size, 0);
            ASSERT_TRUE(tasks[i].size % 2 == 0 || i + 1 == tasks.size());
            ASSERT_LE(tasks[i].size, i > 0 ? tasks[i - 1].size + 1 : n);
            at += tasks[i].size;
          }
          ASSERT_EQ(at, n);
        }
      }
    }
  }
}

TEST(Rounds, TasksAreLargeAtFirstAndAsSmallAsAllowedAtLast) {
  const auto tasks = tasks_of(Rounds(128, 4, 128, 2));
  EXPECT_EQ(tasks.front().size, 32);  // half of a thread's share
  EXPECT_EQ(tasks.back().size, 4);
  EXPECT_EQ(tasks_of(Rounds(128, 4, 16, 2)).front().size, 16);
  // No more than a task's length apart: 3 threads taking turns at 100 units.
  for (const Rounds::Task& t : tasks_of(Rounds(100, 2, 100, 3))) EXPECT_LE(t.size, 100 / 6);
}

TEST(Rounds, LargeTasksAreSharedOutAmongAllStreams) {
  for (const Rounds::Task& t : tasks_of(Rounds(352, 2, 352, 2)))
    EXPECT_TRUE(t.size < kMostStreams || t.size % kMostStreams == 0) << t.size;
}

TEST(Rounds, PanelsOfFewRowsByBytesOfManyByCount) {
  const PackedMatrix w{.format = WeightFormat::int4, .n_out = 2048, .n_in = 2048};  // 128 panels
  for (const Rounds::Task& t : tasks_of(panel_tasks(w, 1, 2)))
    EXPECT_GE(t.size * w.panel_bytes(), kTaskWeightBytes);
  // Every thread finds work where there is enough of it.
  EXPECT_GE(panel_tasks(w, 1, 32).count(), 32);
  const auto many = tasks_of(panel_tasks(w, 512, 2));
  EXPECT_EQ(many.front().size, 32);
  EXPECT_EQ(many.back().size, 2);
}

}  // namespace
}  // namespace exo::kernels::cpu
