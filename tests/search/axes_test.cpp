// The table of axes: what is tried, and that choices and plans say the same.
#include "emu/search/axes.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>
#include <string>

#include "tests/support/shipped_plans.h"

namespace shardproof {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::Not;

const SearchAxis& axis(std::string_view name) {
  for (const SearchAxis& one : search_axes()) {
    if (one.name == name) return one;
  }
  throw std::logic_error("no such axis");
}

TEST(SearchAxes, GiveBackTheChoiceThatAPlanWasMadeOf) {
  for (const char* name : testing::kShippedPlans) {
    Plan plan = testing::shipped_plan(name);
    plan.parallel.layers_per_stage.clear();
    SearchSpace space{.base = plan, .gpus = plan.world()};
    const Choice choice = choice_of(plan);
    space.base.parallel = {};
    space.base.parallel.experts = plan.parallel.experts;
    space.base.workload.microbatches = 1;

    const Plan again = plan_of(space, choice);

    EXPECT_EQ(again.parallel, plan.parallel) << name;
    EXPECT_EQ(again.workload.microbatches, plan.workload.microbatches) << name;
    EXPECT_EQ(choice_of(again), choice) << name;
  }
}

TEST(SearchAxes, OnlyOfferDegreesThatFitTheModelAndTheGpus) {
  SearchSpace space{.base = testing::shipped_plan("tp4_ep4_pp4"), .gpus = 24};
  space.base.parallel = {};

  const std::vector<std::int64_t> tp = axis("tp").values(space, space.base);

  // 64 heads: not 3, 6, 12 or 24.
  EXPECT_THAT(tp, ElementsAre(1, 2, 4, 8));
}

TEST(SearchAxes, FillAPipelineWithAsManyMicrobatchesAsItHasStages) {
  SearchSpace space{.base = testing::shipped_plan("tp4_ep4_pp4"), .gpus = 16};
  Plan& chosen = space.base;
  chosen.parallel = {.tp = 4, .pp = 4};

  EXPECT_THAT(axis("microbatches").values(space, chosen), ElementsAre(4, 8));

  chosen.workload.lengths.resize(3);
  EXPECT_THAT(axis("microbatches").values(space, chosen), ElementsAre(3));
}

TEST(SearchAxes, TryCopiesOfExpertsWhereTheRoutingIsSkewed) {
  SearchSpace space{.base = testing::shipped_plan("ep64_tp2"), .gpus = 128};
  Plan& chosen = space.base;
  EXPECT_THAT(axis("redundant").values(space, chosen), ElementsAre(0));

  chosen.workload.routing.zipf = 1;

  EXPECT_THAT(axis("redundant").values(space, chosen), ElementsAre(0, 64));
}

TEST(SearchAxes, GatherTokensWhereThatSendsNoMoreAndSendNoneInsideTp) {
  SearchSpace space{.base = testing::shipped_plan("ep64_tp2"), .gpus = 128};
  Plan& chosen = space.base;
  const auto all_to_all = static_cast<std::int64_t>(DispatchComm::all_to_all);
  const auto all_gather = static_cast<std::int64_t>(DispatchComm::all_gather);
  const auto all_reduce = static_cast<std::int64_t>(DispatchComm::all_reduce);
  const auto top_k = static_cast<int>(chosen.model.experts().top_k);
  chosen.parallel = {.tp = 2, .dp = 64, .ep = 2, .edp = 64};
  EXPECT_THAT(axis("dispatch").values(space, chosen), ElementsAre(all_to_all, all_gather, all_reduce));

  chosen.parallel.ep = 2 * top_k;

  EXPECT_THAT(axis("dispatch").values(space, chosen), ElementsAre(all_to_all));

  chosen.parallel = {.tp = 2, .dp = 64};

  EXPECT_THAT(axis("dispatch").values(space, chosen), ElementsAre(all_to_all));
}

TEST(SearchAxes, HideNothingButWhatIsUnderWay) {
  SearchSpace space{.base = testing::shipped_plan("ep64_tp2"), .gpus = 128};
  Plan& chosen = space.base;
  chosen.workload.lengths.assign(128, 16);
  chosen.workload.serving.reset();
  chosen.parallel = {.tp = 2, .dp = 64, .ep = 64, .edp = 2};
  EXPECT_THAT(axis("overlap").values(space, chosen), Contains(static_cast<std::int64_t>(Overlap::two_batch)));
  chosen.parallel.overlap = Overlap::two_batch;
  EXPECT_THAT(axis("microbatches").values(space, chosen), ElementsAre(2));

  chosen.parallel.dispatch = DispatchComm::all_gather;

  EXPECT_THAT(axis("overlap").values(space, chosen), ElementsAre(static_cast<std::int64_t>(Overlap::none)));
}

TEST(SearchAxes, ShareOutTheCacheOfRequestsOverRanksOfOneHead) {
  SearchSpace space{.base = testing::shipped_plan("tp4_ep4_pp4"), .gpus = 32};
  Plan& chosen = space.base;
  chosen.workload.serving.reset();
  const auto heads = static_cast<int>(chosen.model.layers.kinds().front().attention.kv_heads);
  chosen.parallel = {.tp = 2 * heads, .edp = 2 * heads};
  EXPECT_THAT(axis("dcp").values(space, chosen), ElementsAre(1));

  chosen.workload.serving = Serving{.requests = {{.prompt = 64, .output = 4}}};

  EXPECT_THAT(axis("dcp").values(space, chosen), ElementsAre(1, 2));
}

TEST(SearchAxes, CutSequencesThatAreLongEnoughAndNoRequests) {
  SearchSpace space{.base = testing::shipped_plan("tp4_ep4_pp4"), .gpus = 16};
  Plan& chosen = space.base;
  chosen.parallel = {};
  chosen.workload.lengths = {4095};
  EXPECT_THAT(axis("cp").values(space, chosen), ElementsAre(1, 2));
  chosen.workload.lengths = {4096};
  EXPECT_THAT(axis("cp").values(space, chosen), Contains(4));

  chosen.workload.serving = Serving{.requests = {{.prompt = 64, .output = 4}}};

  EXPECT_THAT(axis("cp").values(space, chosen), Not(Contains(4)));
}

TEST(SearchAxes, HaveNamesOfTheirOwn) {
  std::set<std::string_view> names;
  for (const SearchAxis& one : search_axes()) EXPECT_TRUE(names.insert(one.name).second) << one.name;
}

}  // namespace
}  // namespace shardproof
