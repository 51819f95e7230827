#include "emu/plan/block_tables.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>
#include <stdexcept>
#include <vector>

namespace shardproof {
namespace {

TEST(BlockTables, HandOutEveryBlockOnceAndScattered) {
  for (const std::int64_t blocks : {1, 2, 3, 7, 16, 100, 618}) {
    BlockTables tables(blocks, 4);
    tables.extend(0, blocks * 4);

    const auto table = tables.table(0);
    EXPECT_EQ(std::set(table.begin(), table.end()).size(), static_cast<std::size_t>(blocks));
    EXPECT_EQ(tables.free_blocks(), 0);
    std::int64_t in_order = 0;
    for (std::size_t i = 1; i < table.size(); ++i) in_order += table[i] == table[i - 1] + 1 ? 1 : 0;
    EXPECT_LE(in_order, blocks / 8) << blocks;
  }
}

TEST(BlockTables, GrowByWholeBlocks) {
  BlockTables tables(8, 4);

  tables.extend(5, 4);
  EXPECT_EQ(tables.table(5).size(), 1U);
  tables.extend(5, 5);
  EXPECT_EQ(tables.table(5).size(), 2U);
  tables.extend(5, 8);
  EXPECT_EQ(tables.table(5).size(), 2U);
}

TEST(BlockTables, UseAgainWhatCameBackLast) {
  BlockTables tables(8, 4);
  tables.extend(0, 8);
  tables.extend(1, 4);

  const std::vector<std::int32_t> freed = tables.release(0);
  tables.extend(2, 8);

  const auto table = tables.table(2);
  EXPECT_THAT(freed, ::testing::UnorderedElementsAreArray(table.begin(), table.end()));
}

TEST(BlockTables, SayWhoFindsNone) {
  BlockTables tables(1, 4);
  tables.extend(0, 4);

  EXPECT_THROW(tables.extend(1, 1), std::logic_error);
}

TEST(BlockTables, FreeASharedBlockWithItsLastUser) {
  BlockTables tables(8, 4);
  tables.extend(0, 10);
  tables.share(1, 0, 8);
  tables.extend(1, 9);
  const std::vector<std::int32_t> first(tables.table(0).begin(), tables.table(0).end());
  const std::vector<std::int32_t> second(tables.table(1).begin(), tables.table(1).end());

  EXPECT_EQ(first[0], second[0]);
  EXPECT_EQ(first[1], second[1]);
  EXPECT_NE(first[2], second[2]);
  EXPECT_EQ(tables.users(first[0]), 2);
  EXPECT_EQ(tables.used_blocks(), 4);
  EXPECT_THAT(tables.release(0), ::testing::ElementsAre(first[2]));
  EXPECT_EQ(tables.users(first[0]), 1);
  EXPECT_THAT(tables.release(1), ::testing::ElementsAreArray(second));
  EXPECT_EQ(tables.free_blocks(), 8);
}

TEST(BlockTables, ShareFullBlocksOnly) {
  BlockTables tables(8, 4);
  tables.extend(0, 10);

  EXPECT_THROW(tables.share(1, 0, 9), std::logic_error);
  EXPECT_THROW(tables.share(1, 0, 16), std::logic_error);
  EXPECT_THROW(tables.share(1, 5, 4), std::logic_error);
  EXPECT_THROW(tables.share(0, 0, 4), std::logic_error);
}

}  // namespace
}  // namespace shardproof
