#include "emu/plan/batch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace shardproof {
namespace {

using ::testing::ElementsAre;

TEST(Batch, HasATokenForEveryPlaceOfItsSequences) {
  const Batch batch({.lengths = {3, 1, 2}, .microbatches = 1, .seed = 9}, 100);

  EXPECT_THAT(batch.lengths(), ElementsAre(3, 1, 2));
  EXPECT_EQ(batch.tokens().size(), 6U);
}

TEST(Batch, DrawsTokensInsideTheVocabularyFromTheSeed) {
  const Workload workload{.lengths = {500}, .microbatches = 1, .seed = 4};
  const Batch batch(workload, 17);
  const Batch again(workload, 17);

  EXPECT_TRUE(std::ranges::all_of(batch.tokens(), [](std::int32_t id) { return id >= 0 && id < 17; }));
  EXPECT_TRUE(std::ranges::equal(batch.tokens(), again.tokens()));
}

TEST(Batch, HasTheWorkloadsOwnTokensWhereItNamesThem) {
  const Batch batch({.lengths = {3, 2}, .token_ids = {{5, 0, 9}, {9, 1}}}, 10);

  EXPECT_THAT(batch.tokens(), ElementsAre(5, 0, 9, 9, 1));
}

TEST(Batch, GivesTheTokensOfSeveralRunsInTheirOrder) {
  const Batch batch({.lengths = {8}, .microbatches = 1, .seed = 4}, 1000);
  const std::span<const std::int32_t> all = batch.tokens();

  const std::vector<std::int32_t> ids = batch.tokens(TokenRows{{{5, 2}, {0, 1}}});

  EXPECT_THAT(ids, ElementsAre(all[5], all[6], all[0]));
}

}  // namespace
}  // namespace shardproof
