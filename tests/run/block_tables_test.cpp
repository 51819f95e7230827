#include "emu/run/block_tables.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>
#include <stdexcept>

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

}  // namespace
}  // namespace shardproof
