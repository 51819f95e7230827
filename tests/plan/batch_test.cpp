#include "emu/plan/batch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace shardproof {
namespace {

using ::testing::ElementsAre;

TEST(Batch, SplitsSequencesOverReplicasAndMicrobatches) {
  const Batch batch({.lengths = {3, 1, 2, 4, 5}, .microbatches = 2, .seed = 9}, 100);

  const MicroBatch first = batch.microbatch(2, 0, 0);
  const MicroBatch second = batch.microbatch(2, 0, 1);
  const MicroBatch third = batch.microbatch(2, 1, 0);

  EXPECT_EQ(first.rows, (Range{0, 4}));
  EXPECT_THAT(first.offsets, ElementsAre(0, 3, 4));
  EXPECT_THAT(first.positions, ElementsAre(0, 1, 2, 0));
  EXPECT_EQ(second.rows, (Range{4, 2}));
  EXPECT_EQ(third.rows, (Range{6, 4}));
}

TEST(Batch, LeavesReplicasWithoutASequenceEmpty) {
  const Batch batch({.lengths = {3}, .microbatches = 1, .seed = 9}, 100);

  const MicroBatch empty = batch.microbatch(4, 3, 0);

  EXPECT_EQ(empty.rows, (Range{3, 0}));
  EXPECT_THAT(empty.offsets, ElementsAre(0));
  EXPECT_TRUE(empty.positions.empty());
}

TEST(Batch, CoversEveryTokenOnceInOrder) {
  const Batch batch({.lengths = {2, 7, 1, 1, 3, 5, 4}, .microbatches = 3, .seed = 9}, 50);

  std::int64_t next = 0;
  for (int dp = 0; dp < 3; ++dp) {
    for (int m = 0; m < 3; ++m) {
      const MicroBatch part = batch.microbatch(3, dp, m);
      EXPECT_EQ(part.rows.begin, next);
      next = part.rows.end();
    }
  }
  EXPECT_EQ(next, 23);
}

TEST(Batch, DrawsTokensInsideTheVocabularyFromTheSeed) {
  const Workload workload{.lengths = {500}, .microbatches = 1, .seed = 4};
  const Batch batch(workload, 17);
  const Batch again(workload, 17);

  EXPECT_TRUE(std::ranges::all_of(batch.tokens(), [](std::int32_t id) { return id >= 0 && id < 17; }));
  EXPECT_TRUE(std::ranges::equal(batch.tokens(), again.tokens()));
}

}  // namespace
}  // namespace shardproof
