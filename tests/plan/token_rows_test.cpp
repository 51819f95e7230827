#include "emu/plan/token_rows.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace shardproof {
namespace {

using ::testing::ElementsAre;

/// The first and the last quarter of 12 rows, as the first of two ranks holds them in a zig-zag.
const TokenRows kZigZag{{{0, 3}, {9, 3}}};

TEST(TokenRows, CountTheRowsOfAllRuns) {
  EXPECT_EQ(kZigZag.count(), 6);
  EXPECT_EQ((TokenRows{{{7, 0}}}.count()), 0);
}

TEST(TokenRows, LieInTheOrderOfTheirRuns) {
  std::vector<std::int64_t> rows;
  for (std::int64_t place = 0; place < kZigZag.count(); ++place) rows.push_back(kZigZag[place]);

  EXPECT_THAT(rows, ElementsAre(0, 1, 2, 9, 10, 11));
}

TEST(TokenRows, FindTheirPlaceAgainAndNoOther) {
  for (std::int64_t place = 0; place < kZigZag.count(); ++place) EXPECT_EQ(kZigZag.place_of(kZigZag[place]), place);
  for (const std::int64_t absent : {-1, 3, 8, 12}) EXPECT_EQ(kZigZag.place_of(absent), std::nullopt) << absent;
}

TEST(TokenRows, GiveAPartThatCrossesTheGapAsTwoRuns) {
  EXPECT_THAT(kZigZag.part({1, 3}).runs, ElementsAre(Range{1, 2}, Range{9, 1}));
  EXPECT_THAT(kZigZag.part({0, 3}).runs, ElementsAre(Range{0, 3}));
  EXPECT_THAT(kZigZag.part({4, 2}).runs, ElementsAre(Range{10, 2}));
}

TEST(TokenRows, GiveAnEmptyPartAsOneEmptyRunWhereItWouldBe) {
  EXPECT_THAT(kZigZag.part({4, 0}).runs, ElementsAre(Range{10, 0}));
  EXPECT_THAT(kZigZag.part({6, 0}).runs, ElementsAre(Range{12, 0}));
  EXPECT_THAT((TokenRows{{{7, 0}}}.part({0, 0}).runs), ElementsAre(Range{7, 0}));
}

TEST(TokenRows, AreMadeOfTheirParts) {
  for (int shards = 1; shards <= 7; ++shards) {
    std::vector<std::int64_t> rows;
    for (int shard = 0; shard < shards; ++shard) {
      const TokenRows part = kZigZag.part(partition(kZigZag.count(), shards, shard));
      for (std::int64_t place = 0; place < part.count(); ++place) rows.push_back(part[place]);
    }
    EXPECT_THAT(rows, ElementsAre(0, 1, 2, 9, 10, 11)) << shards << " shards";
  }
}

TEST(Partition, FindsTheShardOfEveryIndex) {
  for (const auto& [count, shards] : {std::pair{10, 4}, {7, 7}, {3, 5}, {8, 1}, {23, 11}}) {
    for (int shard = 0; shard < shards; ++shard) {
      const Range part = partition(count, shards, shard);
      for (std::int64_t i = part.begin; i < part.end(); ++i) {
        EXPECT_EQ(shard_of(count, shards, i), shard) << i << " of " << count << " over " << shards;
      }
    }
  }
}

}  // namespace
}  // namespace shardproof
