#include "emu/plan/expert_map.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

namespace shardproof {
namespace {

using Placed = ExpertPlacement;

TEST(ExpertMap, RepeatsTheFirstExpertsWhereItIsLinear) {
  const ExpertMap map = make_expert_map({.redundant = 2}, 4, 2, {}, 0);

  EXPECT_THAT(map.logical(), ::testing::ElementsAre(0, 1, 2, 3, 0, 1));
  EXPECT_THAT(map.replicas(1), ::testing::ElementsAre(1, 5));
  EXPECT_THAT(map.replicas(3), ::testing::ElementsAre(3));
}

TEST(ExpertMap, DealsExpertsOutOneAtATime) {
  const ExpertMap map = make_expert_map({.redundant = 1, .map = Placed::Map::round_robin}, 4, 2, {}, 0);

  EXPECT_THAT(map.logical(), ::testing::ElementsAre(0, 2, 0, 1, 3));
}

TEST(ExpertMap, CopiesTheBusiestAndFillsRanksEvenly) {
  const std::vector<std::int64_t> slots{12, 2, 3, 1};

  const ExpertMap map = make_expert_map({.redundant = 2, .map = Placed::Map::balanced}, 4, 3, slots, 0);

  EXPECT_EQ(map.replicas(0).size(), 3U);  // 12 / 3 is more than any other
  std::vector<std::int64_t> load;
  for (int rank = 0; rank < 3; ++rank) {
    std::int64_t sum = 0;
    for (int i = 0; i < 2; ++i) {
      const std::int64_t expert = map.logical(rank * 2 + i);
      sum += slots[static_cast<std::size_t>(expert)] / std::ssize(map.replicas(expert));
    }
    load.push_back(sum);
  }
  EXPECT_THAT(load, ::testing::UnorderedElementsAre(7, 6, 5));
}

TEST(ExpertMap, ChoosesByRowOrTheNearest) {
  const ExpertMap map({0, 1, 1, 0}, 2);

  EXPECT_EQ(map.choose(1, 4, {2, 2}, Placed::Replica::round_robin), 1);
  EXPECT_EQ(map.choose(1, 5, {0, 2}, Placed::Replica::round_robin), 2);
  EXPECT_EQ(map.choose(1, 4, {2, 2}, Placed::Replica::nearest), 2);
  EXPECT_EQ(map.choose(0, 5, {1, 1}, Placed::Replica::nearest), 3);  // none there
}

TEST(ExpertMap, SpreadsSlotsOverReplicas) {
  const ExpertMap map({0, 1, 1, 0}, 2);

  EXPECT_THAT(map.spread(std::vector<std::int64_t>{5, 2}), ::testing::ElementsAre(3, 1, 1, 2));
}

// As many on every rank as there are places, each expert somewhere, whatever the counts.
TEST(ExpertMap, OfAnyKindHoldsEveryExpert) {
  for (const auto kind : {Placed::Map::linear, Placed::Map::round_robin, Placed::Map::balanced}) {
    for (std::int64_t experts = 1; experts < 9; ++experts) {
      for (std::int64_t redundant = 0; redundant < 5; ++redundant) {
        for (int ep = 1; ep <= experts + redundant; ++ep) {
          std::vector<std::int64_t> slots(static_cast<std::size_t>(experts));
          std::iota(slots.begin(), slots.end(), ep % 3);
          const ExpertMap map = make_expert_map({.redundant = redundant, .map = kind}, experts, ep, slots, 0);
          ASSERT_EQ(std::ssize(map.logical()), experts + redundant);
          for (std::int64_t e = 0; e < experts; ++e) ASSERT_FALSE(map.replicas(e).empty());
        }
      }
    }
  }
}

}  // namespace
}  // namespace shardproof
