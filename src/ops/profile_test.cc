#include "ops/profile.h"

#include <gtest/gtest.h>

#include "ops/ops.h"

namespace exo::ops {
namespace {

TEST(Profile, CountsCallsOfTheOperationThatRan) {
  ThreadPool pool(1);
  Profile profile;
  OpContext ctx{.table = &reference_table(), .pool = &pool, .profile = &profile};
  const float x[4] = {1, 2, 3, 4};
  float y[4] = {};
  for (int i = 0; i < 3; ++i)
    ASSERT_TRUE(add({.x = make_view(x, {2, 2}), .y = make_view(y, {2, 2})}, ctx).ok());
  EXPECT_EQ(y[3], 12.0f);
  EXPECT_EQ(profile.by_op[static_cast<size_t>(Op::add)].n_calls, 3);
  EXPECT_GT(profile.by_op[static_cast<size_t>(Op::add)].time.count(), 0);
  EXPECT_EQ(profile.by_op[static_cast<size_t>(Op::linear)].n_calls, 0);
  EXPECT_EQ(to_string(Op::mla_expanded), "mla_expanded");
}

}  // namespace
}  // namespace exo::ops
