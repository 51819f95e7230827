#include "emu/plan/timetable.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "emu/plan/deployment.h"
#include "tests/support/random_plan.h"

namespace shardproof {
namespace {

using ::testing::ElementsAre;

TEST(ForwardTimetable, TakesTheMicrobatchesInOrderThroughAllLayersOfTheRank) {
  const std::vector<Layout> layouts{{.layers = {0, 3}}, {.layers = {3, 2}}};

  const Timetable timetable = forward_timetable(layouts, 2, 2);

  EXPECT_THAT(
      timetable,
      ElementsAre(
          ElementsAre(WorkItem{.microbatch = 0, .layers = {0, 3}}, WorkItem{.microbatch = 1, .layers = {0, 3}}),
          ElementsAre(WorkItem{.microbatch = 0, .layers = {3, 2}}, WorkItem{.microbatch = 1, .layers = {3, 2}})));
}

TEST(ForwardTimetable, RunsEveryLayerOnceForEachMicrobatchOfEveryPipelineOnRandomPlans) {
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    const Plan plan = testing::random_plan(testing::property_seed() + seed);
    const Mesh mesh(plan.parallel);

    const Timetable timetable = deploy(plan.model, plan.parallel, plan.workload).timetable;

    ASSERT_EQ(std::ssize(timetable), mesh.world());
    for (const std::vector<int>& pipeline : mesh.groups(Axis::pp)) {
      for (std::int64_t m = 0; m < plan.workload.microbatches; ++m) {
        std::int64_t next = 0;
        for (const int rank : pipeline) {
          const std::int64_t of_item = plan.parallel.overlap == Overlap::two_batch ? 2 : 1;
          const WorkItem& item = timetable[static_cast<std::size_t>(rank)].at(static_cast<std::size_t>(m / of_item));
          EXPECT_EQ(m % of_item == 0 ? item.microbatch : item.beside, m) << testing::describe(plan);
          EXPECT_EQ(item.layers.begin, next) << testing::describe(plan);
          next = item.layers.end();
        }
        EXPECT_EQ(next, plan.model.layers.size()) << testing::describe(plan);
      }
    }
  }
}

}  // namespace
}  // namespace shardproof
