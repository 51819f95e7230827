// The five seeds' plans in their own search: each is one of its layouts, placed where that layout is.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "emu/paper/figures.h"
#include "emu/search/search.h"
#include "tests/support/shipped_plans.h"

namespace shardproof {
namespace {

using ::testing::StartsWith;

class SeedInItsSearch : public ::testing::TestWithParam<const char*> {};

TEST_P(SeedInItsSearch, StandsWhereItsLayoutStandsBehindWhatIsFaster) {
  const Plan seed = testing::shipped_plan(GetParam());
  const SearchSpace space{.base = seed, .gpus = seed.world()};
  SearchOptions options;
  options.hardware = choose_hardware(built_in_hardware(), seed.hardware, {});
  options.memory_bytes = seed.hardware->memory_gb * 1e9;
  options.projection = {.format = format_of(seed.model)};
  options.threads = 2;
  if (options.memory_bytes == 0) options.memory_bytes = 80e9;
  const SearchReport report = search(space, options);

  const Placed placed = place(seed, options, report);

  const auto own = std::ranges::find(report.ranked, choice_of(seed), &TimedLayout::choice);
  ASSERT_NE(own, report.ranked.end()) << "the search passed the seed's own layout over";
  EXPECT_EQ(placed.layout.cost, own->cost);
  EXPECT_EQ(placed.place, static_cast<std::size_t>(own - report.ranked.begin()));
  EXPECT_EQ(placed.layout.loses_by, own->loses_by);
  EXPECT_TRUE(placed.too_large.empty()) << placed.too_large;
  const TimedLayout& best = report.ranked.front();
  EXPECT_TRUE(std::all_of(report.ranked.begin(), own, [&](const auto& one) { return one.cost <= own->cost; }));
  EXPECT_TRUE(std::all_of(own, report.ranked.end(), [&](const auto& one) { return one.cost >= own->cost; }));
  EXPECT_LT(best.cost, own->cost);
  EXPECT_THAT(placed.layout.loses_by,
              StartsWith(fmt::format("{:.1f} % slower: ", 100 * (own->cost - best.cost) / best.cost)));
}

INSTANTIATE_TEST_SUITE_P(Plans, SeedInItsSearch,
                         ::testing::Values("tp4_ep4_pp4", "tp2_ep4_pp2_dp2", "ep64_tp2", "ep16_tp2_pp4",
                                           "ep4_tp2_pp2_sp"),
                         [](const auto& plan) { return std::string(plan.param); });

}  // namespace
}  // namespace shardproof
