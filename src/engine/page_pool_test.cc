#include "engine/page_pool.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace exo::engine {
namespace {

using ::testing::ElementsAre;

TEST(PagePool, LowestFirstAllOrNothing) {
  PagePool pool(4);
  std::vector<int32_t> a, b;
  ASSERT_TRUE(pool.take(2, a));
  EXPECT_THAT(a, ElementsAre(0, 1));
  EXPECT_FALSE(pool.take(3, b));
  EXPECT_TRUE(b.empty());
  EXPECT_EQ(pool.n_free(), 2);
  ASSERT_TRUE(pool.take(2, b));
  EXPECT_THAT(b, ElementsAre(2, 3));
  pool.give_back(a, 1);
  EXPECT_THAT(a, ElementsAre(0));
  pool.give_back(b, 0);
  ASSERT_TRUE(pool.take(3, a));
  EXPECT_THAT(a, ElementsAre(0, 1, 2, 3));
  EXPECT_EQ(pool.n_free(), 0);
  pool.give_back(a, 9);
  EXPECT_EQ(a.size(), 4u);
}

}  // namespace
}  // namespace exo::engine
