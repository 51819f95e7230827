#include "emu/run/dispatch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "ops/permute.h"

namespace shardproof {
namespace {

using ::testing::ElementsAre;

ops::Matrix<std::int32_t> ids_of(std::initializer_list<std::initializer_list<std::int32_t>> rows) {
  ops::Matrix<std::int32_t> ids(static_cast<ops::Index>(rows.size()), static_cast<ops::Index>(rows.begin()->size()));
  ops::Index i = 0;
  for (const auto& row : rows) std::copy(row.begin(), row.end(), ids.row(i++).begin());
  return ids;
}

TEST(PermuteByOwner, OrdersSlotsByOwnerThenExpertThenToken) {
  const ops::Matrix<std::int32_t> ids = ids_of({{3, 0}, {1, 3}, {0, 2}});
  const std::vector<int> owner{0, 0, 1, 1};

  const Permutation permutation = permute_by_owner(ids, owner, 2);

  EXPECT_THAT(permutation.counts, ElementsAre(2, 1, 1, 2));
  EXPECT_THAT(permutation.rows, ElementsAre(0, 2, 1, 2, 0, 1));
  EXPECT_EQ(permutation.positions(0, 0), 4);
  EXPECT_EQ(permutation.positions(0, 1), 0);
  EXPECT_EQ(permutation.positions(2, 1), 3);
}

TEST(SelectForOwner, TakesWhatAnAllToAllWouldBring) {
  const ops::Matrix<std::int32_t> ids = ids_of({{3, 0}, {1, 3}, {0, 2}});
  const std::vector<int> owner{0, 0, 1, 1};
  const std::vector<std::int64_t> tokens_of{2, 1};

  const Selection selection = select_for_owner(ids, tokens_of, owner, 2, 1);

  EXPECT_EQ(selection.count, 3);
  EXPECT_THAT(selection.counts, ElementsAre(0, 2, 1, 0));  // experts 2 and 3 of the first sender, then of the second
  EXPECT_THAT(selection.rows, ElementsAre(0, 1, 2));
  EXPECT_THAT(selection.choices, ElementsAre(0, 1, 1));
  EXPECT_EQ(selection.positions(0, 0), 0);
  EXPECT_EQ(selection.positions(0, 1), ops::kElsewhere);
  EXPECT_EQ(selection.positions(2, 1), 2);
}

TEST(PermuteByOwner, LeavesTheLastBucketOfAnOwnerWithFewerExpertsEmpty) {
  const ops::Matrix<std::int32_t> ids = ids_of({{2, 0}, {1, 2}});
  const std::vector<int> owner{0, 0, 1};

  const Permutation permutation = permute_by_owner(ids, owner, 2);

  EXPECT_THAT(permutation.counts, ElementsAre(1, 1, 2, 0));
  EXPECT_THAT(permutation.rows, ElementsAre(0, 1, 0, 1));
}

TEST(PermuteByOwner, FollowsAnOwnerMapThatIsNotContiguous) {
  const ops::Matrix<std::int32_t> ids = ids_of({{0}, {1}, {2}, {3}});
  const std::vector<int> owner{1, 0, 1, 0};

  const Permutation permutation = permute_by_owner(ids, owner, 2);

  EXPECT_THAT(permutation.rows, ElementsAre(1, 3, 0, 2));
}

TEST(PermuteByOwner, HandlesNoTokens) {
  const ops::Matrix<std::int32_t> ids(0, 2);
  const std::vector<int> owner{0, 1};

  const Permutation permutation = permute_by_owner(ids, owner, 2);

  EXPECT_TRUE(permutation.rows.empty());
  EXPECT_THAT(permutation.counts, ElementsAre(0, 0));
}

TEST(SortByExpert, GathersEveryChunksRowsOfAnExpert) {
  // Two chunks; rows of experts 0, 1: chunk 0 has 1 and 2, chunk 1 has 2 and 0.
  const std::vector<std::int64_t> counts{1, 2, 2, 0};

  const std::vector<std::int64_t> order = sort_by_expert(counts, 2);

  EXPECT_THAT(order, ElementsAre(0, 3, 4, 1, 2));
  EXPECT_THAT(inverse(order), ElementsAre(0, 3, 4, 1, 2));
}

TEST(ElementCounts, SumsRunsTimesWidth) {
  const std::vector<std::int64_t> counts{1, 2, 0, 4};

  EXPECT_THAT(element_counts(counts, 2, 10), ElementsAre(30u, 40u));
}

}  // namespace
}  // namespace shardproof
