#include "emu/plan/runnable.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "emu/plan/validate.h"
#include "tests/support/runnable.h"
#include "tests/support/small_plan.h"

namespace shardproof {
namespace {

using ::testing::ElementsAre;
using ::testing::Field;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::runnable;
using testing::small_plan;

TEST(RunnablePlan, HoldsThePlanAndItsMesh) {
  const Runnable made = make_runnable(small_plan({.tp = 2, .dp = 2, .ep = 4}));

  ASSERT_TRUE(made.plan.has_value());
  EXPECT_THAT(made.problems, IsEmpty());
  EXPECT_EQ(made.plan->plan().name, "small");
  EXPECT_EQ(made.plan->mesh().world(), 4);
  EXPECT_EQ(made.plan->mesh().degree(Axis::ep), 4);
}

TEST(RunnablePlan, IsRefusedWithEveryProblemAtOnce) {
  Plan plan = small_plan({.tp = 3, .cp = 2, .edp = 6});
  plan.workload.serving = Serving{.requests = {{.prompt = 4, .output = 2}}};
  plan.workload.microbatches = 1;
  set_lengths(plan.workload);
  plan.model.layers.edit([](LayerSpec& layer) { layer.attention.rope.type = RopeType::longrope; });

  const Runnable made = make_runnable(plan);

  EXPECT_FALSE(made.plan.has_value());
  ASSERT_GT(made.problems.size(), 2U);
  EXPECT_EQ(made.problems.size(), validate(plan).size() + 2);
  EXPECT_EQ(made.problems[made.problems.size() - 2].field, "parallel.cp");
  EXPECT_EQ(made.problems.back().field, "model.rope_scaling.long_factor");
}

TEST(RunnablePlan, ServesNoRequestsWithContextParallelism) {
  Plan plan = small_plan({.cp = 2, .edp = 2});
  EXPECT_THAT(make_runnable(plan).problems, IsEmpty());

  plan.workload.serving = Serving{.requests = {{.prompt = 4, .output = 2}}};
  plan.workload.microbatches = 1;
  set_lengths(plan.workload);

  EXPECT_THAT(validate(plan), IsEmpty());
  EXPECT_THAT(make_runnable(plan).problems, ElementsAre(Field(&Problem::field, "parallel.cp")));
}

TEST(RunnablePlan, LeavesNothingOfItsModelOut) {
  Plan plan = small_plan({.tp = 2, .edp = 2});
  plan.model.layers.edit([](LayerSpec& layer) { layer.attention.rope.type = RopeType::longrope; });

  EXPECT_THAT(validate(plan), IsEmpty());
  EXPECT_THAT(not_executed(plan), IsEmpty());
  EXPECT_THAT(make_runnable(plan).problems, ElementsAre(Field(&Problem::message, HasSubstr("longrope"))));
}

TEST(RunnablePlan, StaysRunnableAtAnotherSizeAndSeed) {
  const RunnablePlan plan = runnable(small_plan({.tp = 2, .dp = 2, .ep = 4}));

  const RunnablePlan small = plan.scaled({.mode = ScaleOptions::Mode::divide, .divisor = 2});
  const RunnablePlan other = plan.reseeded(99);

  EXPECT_EQ(small.plan().model.hidden_size, plan.plan().model.hidden_size / 2);
  EXPECT_THAT(validate(small.plan()), IsEmpty());
  EXPECT_EQ(other.plan().workload.seed, 99U);
  EXPECT_EQ(other.plan().model, plan.plan().model);
  EXPECT_EQ(other.mesh().world(), 4);
}

}  // namespace
}  // namespace shardproof
