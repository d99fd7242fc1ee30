#include "text/bpe.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <string>

namespace exo::text {
namespace {

std::array<int32_t, 256> identity_bytes() {
  std::array<int32_t, 256> ids;
  for (int i = 0; i < 256; ++i) ids[i] = i;
  return ids;
}

std::vector<int32_t> encode(const Bpe& bpe, std::string_view word) {
  Bpe::Scratch scratch;
  std::vector<int32_t> ids;
  bpe.encode(word, scratch, ids);
  return ids;
}

// The definition, word for word: joins the pair of lowest rank, the leftmost of these, again and
// again.
std::vector<int32_t> encode_by_definition(const std::vector<Merge>& merges, std::string_view word) {
  std::vector<int32_t> ids;
  for (const char c : word) ids.push_back(static_cast<uint8_t>(c));
  for (;;) {
    size_t best_rank = merges.size(), best_at = 0;
    for (size_t at = 0; at + 1 < ids.size(); ++at)
      for (size_t rank = 0; rank < best_rank; ++rank)
        if (merges[rank].left == ids[at] && merges[rank].right == ids[at + 1]) {
          best_rank = rank;
          best_at = at;
        }
    if (best_rank == merges.size()) return ids;
    ids[best_at] = merges[best_rank].joined;
    ids.erase(ids.begin() + static_cast<std::ptrdiff_t>(best_at) + 1);
  }
}

TEST(Bpe, EqualsTheDefinitionOnRandomMerges) {
  std::mt19937 random(7);
  for (int round = 0; round < 200; ++round) {
    std::vector<Merge> merges;
    std::vector<int32_t> known = {'a', 'b', 'c'};
    std::map<std::pair<int32_t, int32_t>, bool> used;
    for (int i = 0; i < 25; ++i) {
      const int32_t left = known[random() % known.size()], right = known[random() % known.size()];
      if (std::exchange(used[{left, right}], true)) continue;
      merges.push_back({left, right, 256 + i});
      known.push_back(256 + i);
    }
    std::shuffle(merges.begin(), merges.end(), random);
    const Bpe bpe(identity_bytes(), merges);
    for (int i = 0; i < 20; ++i) {
      std::string word;
      for (size_t n = random() % 40; n > 0; --n) word += static_cast<char>('a' + random() % 3);
      ASSERT_EQ(encode(bpe, word), encode_by_definition(merges, word)) << word;
    }
  }
}

TEST(Bpe, WithoutMergesWordsStayBytes) {
  const Bpe bpe(identity_bytes(), {});
  EXPECT_EQ(encode(bpe, "ab"), (std::vector<int32_t>{'a', 'b'}));
  EXPECT_TRUE(encode(bpe, "").empty());
}

TEST(Bpe, OfEqualPairsTheLastCounts) {
  // "ab" has ranks 0 and 2; at 2 the pair "bc" (rank 1) goes first.
  const Bpe bpe(identity_bytes(), {{'a', 'b', 300}, {'b', 'c', 301}, {'a', 'b', 300}});
  EXPECT_EQ(encode(bpe, "abc"), (std::vector<int32_t>{'a', 301}));
}

}  // namespace
}  // namespace exo::text
