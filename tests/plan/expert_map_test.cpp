#include "emu/plan/expert_map.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <ctime>
#include <numeric>
#include <random>
#include <vector>

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

/// The definition, one look over all for each copy.
std::vector<std::int64_t> balanced_by_looking(const std::vector<std::int64_t>& slots, std::int64_t redundant, int ep) {
  struct Copy {
    double load;
    std::int64_t expert;
  };
  std::vector<std::int64_t> count(slots.size(), 1);
  const auto each = [&](std::size_t e) { return static_cast<double>(slots[e]) / static_cast<double>(count[e]); };
  for (std::int64_t r = 0; r < redundant; ++r) {
    std::size_t busiest = 0;
    for (std::size_t e = 1; e < slots.size(); ++e) {
      if (each(e) > each(busiest)) busiest = e;
    }
    ++count[busiest];
  }
  std::vector<Copy> all;
  for (std::size_t e = 0; e < slots.size(); ++e)
    all.insert(all.end(), static_cast<std::size_t>(count[e]), Copy{each(e), static_cast<std::int64_t>(e)});
  std::ranges::stable_sort(all, [](const Copy& a, const Copy& b) { return a.load > b.load; });
  std::vector<std::vector<std::int64_t>> ranks(static_cast<std::size_t>(ep));
  std::vector<double> load(ranks.size(), 0);
  for (const Copy& copy : all) {
    std::size_t to = ranks.size();
    for (std::size_t r = 0; r < ranks.size(); ++r) {
      const std::int64_t places = partition(std::ssize(all), ep, static_cast<std::int64_t>(r)).count;
      if (std::ssize(ranks[r]) < places && (to == ranks.size() || load[r] < load[to])) to = r;
    }
    ranks[to].push_back(copy.expert);
    load[to] += copy.load;
  }
  std::vector<std::int64_t> logical;
  for (const auto& rank : ranks) logical.insert(logical.end(), rank.begin(), rank.end());
  return logical;
}

TEST(ExpertMap, BalancesAsTheDefinitionSays) {
  std::mt19937 random(17);
  for (int i = 0; i < 300; ++i) {
    std::vector<std::int64_t> slots(1 + random() % 12);
    for (std::int64_t& count : slots) count = static_cast<std::int64_t>(random() % 5);
    const auto redundant = static_cast<std::int64_t>(random() % 12);
    const int ep = 1 + static_cast<int>(random() % (slots.size() + static_cast<std::size_t>(redundant)));

    const ExpertMap map =
        make_expert_map({.redundant = redundant, .map = Placed::Map::balanced}, std::ssize(slots), ep, slots, 0);

    ASSERT_TRUE(std::ranges::equal(map.logical(), balanced_by_looking(slots, redundant, ep)));
  }
}

// Of a plan's largest size, a look over all experts or ranks for each copy would take minutes.
TEST(ExpertMap, BalancesTheMostExpertsOverTheMostRanksAtOnce) {
  constexpr std::int64_t kExperts = 65536;
  std::vector<std::int64_t> slots(kExperts);
  std::iota(slots.begin(), slots.end(), 0);
  const std::clock_t begin = std::clock();

  const ExpertMap map =
      make_expert_map({.redundant = kExperts, .map = Placed::Map::balanced}, kExperts, kExperts, slots, 0);

  EXPECT_EQ(std::ssize(map.logical()), 2 * kExperts);
  EXPECT_LT(std::clock() - begin, 5 * CLOCKS_PER_SEC);
}

}  // namespace
}  // namespace shardproof
