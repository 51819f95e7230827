// The search held to a search by hand, and to the clock that `time` uses.
#include "emu/search/search.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>
#include <set>

#include "emu/paper/check.h"
#include "emu/paper/quantities.h"
#include "emu/plan/validate.h"
#include "tests/search/exhaustive.h"
#include "tests/support/shipped_plans.h"

namespace shardproof {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

struct Asked {
  SearchSpace space;
  SearchOptions options;
};

/// A small mixture on 4 GPUs.
Asked asked(int gpus = 4) {
  Plan plan = testing::shipped_plan("ep4_tp2_pp2_sp");
  plan.workload = {.lengths = std::vector<std::int64_t>(8, 16)};
  plan.hardware = Hardware{.gpus = gpus, .gpus_per_node = 4};
  plan.parallel = {};
  plan.claims.clear();
  Asked all{.space = {.base = plan, .gpus = gpus}, .options = {}};
  all.options.hardware = choose_hardware(built_in_hardware(), plan.hardware, {.preset = "h100"});
  all.options.memory_bytes = 80e9;
  all.options.projection = {.format = format_of(plan.model)};
  return all;
}

double most_memory(const Plan& plan) {
  double most = 0;
  for (const RankFigures& rank : rank_figures(plan)) most = std::max(most, inference_bytes(plan, rank));
  return most;
}

TEST(Search, RanksByWhatTheClockSaysOfEachPlan) {
  const Asked all = asked();

  const SearchReport report = search(all.space, all.options);

  ASSERT_GT(report.ranked.size(), 20U);
  double before = 0;
  for (const TimedLayout& layout : report.ranked) {
    const Plan plan = plan_of(all.space, layout.choice);
    const Projection projection = project(plan, all.options.hardware, all.options.projection);
    EXPECT_THAT(validate(plan), IsEmpty()) << describe(layout.choice);
    EXPECT_EQ(plan.world(), 4);
    EXPECT_EQ(layout.first_token, projection.seconds_to_first_token()) << describe(layout.choice);
    EXPECT_EQ(layout.output_token, projection.seconds_per_output_token()) << describe(layout.choice);
    EXPECT_DOUBLE_EQ(layout.tokens_per_second.value, projection.prompt_tokens_per_second().value);
    EXPECT_DOUBLE_EQ(layout.memory_bytes, most_memory(plan)) << describe(layout.choice);
    EXPECT_GE(layout.cost, before);
    before = layout.cost;
  }
}

TEST(Search, FindsTheBestOfATrialOfEveryDegree) {
  const Asked all = asked();
  double most = 0;
  int tried = 0;
  for (int tp = 1; tp <= 4; ++tp) {
    for (int pp = 1; pp <= 4; ++pp) {
      for (int ep = 1; ep <= 4; ++ep) {
        for (int etp = 1; etp <= 4; ++etp) {
          Plan plan = all.space.base;
          if (4 % (tp * pp) != 0 || (4 / pp) % (ep * etp) != 0) continue;
          plan.parallel = {.tp = tp, .dp = 4 / (tp * pp), .pp = pp, .ep = ep, .etp = etp, .edp = 4 / pp / (ep * etp)};
          plan.workload.microbatches = std::min(pp, 8 / plan.parallel.dp);
          if (!validate(plan).empty()) continue;
          most = std::max(most,
                          project(plan, all.options.hardware, all.options.projection).prompt_tokens_per_second().value);
          ++tried;
        }
      }
    }
  }

  const SearchReport report = search(all.space, all.options);

  EXPECT_GT(tried, 20);
  EXPECT_GE(report.ranked.front().tokens_per_second.value, most);
}

TEST(Search, SaysTheSameOnAnyNumberOfThreads) {
  Asked all = asked();
  const SearchReport one = search(all.space, all.options);
  all.options.threads = 5;

  const SearchReport five = search(all.space, all.options);

  ASSERT_EQ(one.ranked.size(), five.ranked.size());
  for (std::size_t i = 0; i < one.ranked.size(); ++i) {
    EXPECT_EQ(one.ranked[i].choice, five.ranked[i].choice);
    EXPECT_EQ(one.ranked[i].cost, five.ranked[i].cost);
    EXPECT_EQ(one.ranked[i].loses_by, five.ranked[i].loses_by);
    EXPECT_EQ(one.ranked[i].pareto, five.ranked[i].pareto);
  }
}

TEST(Search, RefinesTheBestWithEveryDispatchAndOverlap) {
  Asked all = asked(8);
  Workload& workload = all.space.base.workload;
  workload.serving = Serving{.requests = std::vector<Request>(16, {.prompt = 64, .output = 8})};
  set_lengths(workload);

  const SearchReport report = search(all.space, all.options);

  std::set<DispatchComm> dispatches;
  std::set<Overlap> overlaps;
  std::set<Choice> choices;
  for (const TimedLayout& layout : report.ranked) {
    const Plan plan = plan_of(all.space, layout.choice);
    EXPECT_THAT(validate(plan), IsEmpty()) << describe(layout.choice);
    EXPECT_EQ(layout.output_token,
              project(plan, all.options.hardware, all.options.projection).seconds_per_output_token());
    EXPECT_TRUE(choices.insert(layout.choice).second) << describe(layout.choice) << " is there twice";
    dispatches.insert(plan.parallel.dispatch);
    overlaps.insert(plan.parallel.overlap);
  }
  EXPECT_TRUE(dispatches.contains(DispatchComm::all_gather));
  EXPECT_TRUE(overlaps.contains(Overlap::two_batch));
}

TEST(Search, FindsTheBestOfAllWhereFewLayoutsAreRefined) {
  EXPECT_GT(testing::expect_best_of_all({.model = "mixtral-8x7b"}), 0U);
  EXPECT_GT(testing::expect_best_of_all({.model = "deepseek-v2-lite", .gpus = 4}), 0U);
}

TEST(Search, FindsTheBestWhereOnlyAnotherDispatchLeavesRoom) {
  testing::expect_best_of_all(
      {.model = "qwen3-30b-a3b", .memory_gb = 20, .batch = {.requests = 16, .prompt = 32768, .output = 128}});
}

TEST(Search, AccountsForTheWholeCostByCause) {
  Asked all = asked();
  for (const bool serves : {false, true}) {
    Workload& workload = all.space.base.workload;
    if (serves) {
      workload.serving = Serving{.requests = std::vector<Request>(8, {.prompt = 16, .output = 8})};
      set_lengths(workload);
    }
    for (const TimedLayout& layout : search(all.space, all.options).ranked) {
      double sum = 0;
      for (const auto& [cause, seconds] : layout.causes) sum += seconds;
      EXPECT_NEAR(sum, layout.cost, 1e-9 * layout.cost) << describe(layout.choice);
      EXPECT_NEAR(layout.cost * layout.tokens_per_second.value, 1, 1e-12);
    }
  }
}

TEST(Search, DropsWhatCheckFindsTooLarge) {
  Asked all = asked();
  const SearchReport everything = search(all.space, all.options);
  std::vector<double> memory;
  for (const TimedLayout& layout : everything.ranked) memory.push_back(layout.memory_bytes);
  std::ranges::sort(memory);
  all.options.memory_bytes = memory[memory.size() / 2];

  const SearchReport half = search(all.space, all.options);

  EXPECT_GT(half.too_large, 0);
  ASSERT_THAT(half.ranked, Not(IsEmpty()));
  for (const TimedLayout& layout : half.ranked) EXPECT_LE(layout.memory_bytes, all.options.memory_bytes);
  for (const TimedLayout& layout : everything.ranked) {
    if (layout.memory_bytes > all.options.memory_bytes) continue;
    EXPECT_TRUE(std::ranges::any_of(half.ranked, [&](const TimedLayout& kept) { return kept.choice == layout.choice; }))
        << describe(layout.choice);
  }
}

TEST(Search, SaysWhatIsLeastTooLargeWhereNothingFits) {
  Asked all = asked();
  all.options.memory_bytes = 4e7;

  const SearchReport report = search(all.space, all.options);

  EXPECT_THAT(report.ranked, IsEmpty());
  EXPECT_EQ(report.good(), 0);
  EXPECT_GT(report.too_large, 0);
  ASSERT_TRUE(report.least_too_large.has_value());
  EXPECT_GT(report.least_too_large->memory_bytes, all.options.memory_bytes);
}

TEST(Search, SaysWhatTheWeightsWeighWhereTheyAloneAreTooLarge) {
  Asked all = asked();
  all.options.memory_bytes = 1e6;

  const SearchReport report = search(all.space, all.options);

  EXPECT_THAT(report.ranked, IsEmpty());
  ASSERT_TRUE(report.least_too_large.has_value());
  EXPECT_EQ(report.least_too_large->arithmetic,
            fmt::format("weights {} alone", readable(report.least_too_large->memory_bytes, Dimension::bytes)));
}

TEST(Search, PutsWhatMissesALimitBehindWhatKeepsIt) {
  Asked all = asked();
  const SearchReport free = search(all.space, all.options);
  all.options.limits.output_token = free.ranked[free.ranked.size() / 2].output_token.value;

  const SearchReport limited = search(all.space, all.options);

  const auto good = static_cast<std::size_t>(limited.good());
  ASSERT_GT(good, 0U);
  ASSERT_LT(good, limited.ranked.size());
  for (std::size_t i = 0; i < limited.ranked.size(); ++i) {
    const TimedLayout& layout = limited.ranked[i];
    EXPECT_EQ(layout.meets_limits, i < good);
    EXPECT_EQ(layout.output_token.value <= all.options.limits.output_token, i < good);
    if (i < good) continue;
    EXPECT_THAT(layout.loses_by, HasSubstr("over the limit of"));
    EXPECT_FALSE(layout.pareto);
  }
}

TEST(Search, MarksNothingOnTheFrontThatAnotherBeatsInAllThree) {
  const Asked all = asked();
  const SearchReport report = search(all.space, all.options);

  int on_front = 0;
  for (const TimedLayout& one : report.ranked) {
    const bool beaten = std::ranges::any_of(report.ranked, [&](const TimedLayout& other) {
      return other.tokens_per_second.value > one.tokens_per_second.value &&
             other.output_token.value < one.output_token.value && other.first_token.value < one.first_token.value;
    });
    EXPECT_FALSE(one.pareto && beaten) << describe(one.choice);
    on_front += one.pareto ? 1 : 0;
  }
  EXPECT_GT(on_front, 1);
  EXPECT_TRUE(report.ranked.front().pareto);
}

TEST(Search, SeeksEachObjective) {
  Asked all = asked();
  for (const Objective objective : {Objective::output_token, Objective::first_token}) {
    all.options.objective = objective;

    const SearchReport report = search(all.space, all.options);

    const auto figure = [&](const TimedLayout& layout) {
      return objective == Objective::output_token ? layout.output_token.value : layout.first_token.value;
    };
    for (const TimedLayout& layout : report.ranked) EXPECT_GE(figure(layout), figure(report.ranked.front()));
  }
}

TEST(Search, NamesWhatALoserSpendsMoreOn) {
  const Asked all = asked();

  const SearchReport report = search(all.space, all.options);

  EXPECT_THAT(report.ranked.front().loses_by, IsEmpty());
  for (std::size_t i = 1; i < report.ranked.size(); ++i) EXPECT_THAT(report.ranked[i].loses_by, Not(IsEmpty()));
  EXPECT_THAT(report.ranked.back().loses_by, HasSubstr(" % slower: "));
}

TEST(Search, PlacesAPlanAmongTheOthers) {
  const Asked all = asked();
  const SearchReport report = search(all.space, all.options);
  const std::size_t middle = report.ranked.size() / 2;

  const Placed placed = place(plan_of(all.space, report.ranked[middle].choice), all.options, report);

  EXPECT_EQ(placed.place, middle);
  EXPECT_EQ(placed.layout.loses_by, report.ranked[middle].loses_by);
  EXPECT_EQ(placed.layout.cost, report.ranked[middle].cost);
}

}  // namespace
}  // namespace shardproof
