#include "emu/run/routing.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>
#include <random>

#include "tests/support/random_plan.h"
#include "tests/support/shipped_plans.h"

namespace shardproof {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::Ge;
using ::testing::Le;

using Counts = std::vector<std::int64_t>;

Counts slots_of(const SlotCycle& cycle, std::size_t experts, std::int64_t begin, std::int64_t end) {
  Counts slots(experts, 0);
  cycle.add_slots(begin, end, slots);
  return slots;
}

/// Counts of a period that a cycle can deal: none above the number of tokens.
Counts random_counts(std::mt19937_64& random, std::int64_t experts, std::int64_t top_k, std::int64_t period) {
  Counts counts(static_cast<std::size_t>(experts), 0);
  for (std::int64_t slot = 0; slot < top_k * period;) {
    std::int64_t& count = counts[random() % counts.size()];
    if (count == period) continue;
    ++count;
    ++slot;
  }
  return counts;
}

TEST(SlotCycle, DealsEveryPeriodOfTokensByTheCounts) {
  const Counts counts{3, 0, 5, 1, 1};
  const SlotCycle cycle(counts, 2);

  EXPECT_EQ(slots_of(cycle, 5, 0, 5), counts);
  EXPECT_EQ(slots_of(cycle, 5, 3, 8), counts);
  EXPECT_EQ(slots_of(cycle, 5, 5000000000003, 5000000000008), counts);
}

TEST(SlotCycle, GivesATokenToAsManyExpertsAsItChooses) {
  std::mt19937_64 random(testing::property_seed());
  for (int trial = 0; trial < 100; ++trial) {
    const auto top_k = static_cast<std::int64_t>(1 + random() % 4);
    const auto experts = top_k + static_cast<std::int64_t>(random() % 12);
    const auto period = static_cast<std::int64_t>(1 + random() % 40);
    const Counts counts = random_counts(random, experts, top_k, period);
    const SlotCycle cycle(counts, top_k);
    Counts sum(counts.size(), 0);

    for (std::int64_t token = 0; token < period; ++token) {
      const Counts slots = slots_of(cycle, counts.size(), token, token + 1);
      EXPECT_THAT(slots, Each(AllOf(Ge(0), Le(1))));
      EXPECT_EQ(std::accumulate(slots.begin(), slots.end(), std::int64_t{0}), top_k);
      for (std::size_t e = 0; e < sum.size(); ++e) sum[e] += slots[e];
      EXPECT_EQ(slots_of(cycle, counts.size(), 0, token + 1), sum);
    }

    EXPECT_EQ(sum, counts);
  }
}

TEST(SlotCycle, CountsATrillionTokensOfALongPeriodAtOnce) {
  const std::int64_t period = (std::int64_t{1} << 31) - 1;
  const SlotCycle cycle(Counts{period - 7, 7, period}, 2);

  const Counts slots = slots_of(cycle, 3, 0, 1000 * period + 1);

  EXPECT_THAT(slots[1], AllOf(Ge(7000), Le(7001)));
  EXPECT_THAT(slots, ElementsAre(1000 * period + 1 - slots[1], slots[1], 1000 * period + 1));
}

TEST(StatedRouting, IsEvenUnlessThePlanSaysOtherwise) {
  const Plan plan = testing::shipped_plan("ep64_tp2");
  const std::int64_t experts = plan.model.layers[0].feed_forward.num_experts;

  const Counts slots = StatedRouting::of(plan).slots(0, {{{17, 1000}}}, experts);

  const std::int64_t mean = 1000 * plan.model.layers[0].feed_forward.top_k / experts;
  EXPECT_THAT(slots, Each(AllOf(Ge(mean - 2), Le(mean + 2))));
}

TEST(StatedRouting, FollowsAZipfLaw) {
  Plan plan = testing::shipped_plan("tp4_ep4_pp4");
  plan.workload.routing.zipf = 1;

  const Counts slots = StatedRouting::of(plan).slots(0, {{{0, 4096}}}, 4);

  // Two slots a token over 4 experts: 8192 / (1 + 1/2 + 1/3 + 1/4) = 3932.2 for the first.
  const Counts wanted{3932, 1966, 1311, 983};
  for (std::size_t e = 0; e < 4; ++e) EXPECT_NEAR(static_cast<double>(slots[e]), static_cast<double>(wanted[e]), 3);
}

TEST(StatedRouting, GivesNoExpertATokenTwiceHoweverPopularItIs) {
  Plan plan = testing::shipped_plan("tp4_ep4_pp4");
  plan.workload.routing.zipf = 16;

  const Counts slots = StatedRouting::of(plan).slots(0, {{{0, 4096}}}, 4);

  EXPECT_EQ(slots[0], 4096);
  EXPECT_EQ(std::accumulate(slots.begin(), slots.end(), std::int64_t{0}), 2 * 4096);
}

TEST(StatedRouting, FollowsTheCountsOfEachLayer) {
  Plan plan = testing::shipped_plan("tp4_ep4_pp4");
  const Counts even(4, 2), skewed{4, 4, 0, 0};
  plan.workload.routing.counts.assign(static_cast<std::size_t>(plan.model.layers.size()), even);
  plan.workload.routing.counts[1] = skewed;

  const StatedRouting routing = StatedRouting::of(plan);

  EXPECT_FALSE(routing.same_in_every_layer());
  EXPECT_EQ(routing.slots(0, {{{0, 4}}}, 4), even);
  EXPECT_EQ(routing.slots(1, {{{0, 4}}}, 4), skewed);
}

}  // namespace
}  // namespace shardproof
