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

TEST(Batch, BeginsPromptsOfAGroupAlikeAsFarAsTheirPrefixesGo) {
  Workload workload{.lengths = {}, .seed = 4};
  workload.serving = Serving{.requests = {{.prompt = 6, .prefix = 5},
                                          {.prompt = 5, .output = 3, .prefix = 4},
                                          {.prompt = 6, .prefix = 5, .prefix_group = 1}},
                             .steps = {}};
  set_lengths(workload);
  const Batch batch(workload, 1'000'000);
  const std::span<const std::int32_t> first = batch.tokens().first(6), second = batch.tokens().subspan(6, 7),
                                      other = batch.tokens().subspan(13);

  EXPECT_TRUE(std::ranges::equal(first.first(4), second.first(4)));
  EXPECT_NE(first[4], second[4]);
  EXPECT_NE(first[0], other[0]);
}

}  // namespace
}  // namespace shardproof
