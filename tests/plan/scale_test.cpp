#include "emu/plan/scale.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "emu/plan/load.h"
#include "emu/plan/validate.h"
#include "tests/support/generate.h"
#include "tests/support/small_plan.h"

namespace shardproof {
namespace {

using Mode = ScaleOptions::Mode;

constexpr const char* kPlans[] = {"tp4_ep4_pp4", "tp2_ep4_pp2_dp2", "ep64_tp2", "ep16_tp2_pp4", "ep4_tp2_pp2_sp"};

Plan shipped(const std::string& name) {
  const LoadedPlan loaded = load_plan(std::string(SHARDPROOF_SOURCE_DIR) + "/plans/" + name + ".json");
  for (const Problem& problem : loaded.problems) ADD_FAILURE() << problem.field << ": " << problem.message;
  return loaded.plan.value_or(Plan{});
}

void expect_same_shape(const Plan& plan, const Plan& small) {
  EXPECT_EQ(small.parallel, plan.parallel);
  EXPECT_EQ(small.model.layers.size(), plan.model.layers.size());
  EXPECT_EQ(small.model.layers[0].attention.heads, plan.model.layers[0].attention.heads);
  EXPECT_EQ(small.model.layers[0].attention.kv_heads, plan.model.layers[0].attention.kv_heads);
  EXPECT_EQ(small.model.layers[0].feed_forward.num_experts, plan.model.layers[0].feed_forward.num_experts);
  EXPECT_EQ(small.model.layers[0].feed_forward.top_k, plan.model.layers[0].feed_forward.top_k);
  EXPECT_LE(small.model.hidden_size, plan.model.hidden_size);
  EXPECT_LE(small.model.layers[0].attention.head_dim, plan.model.layers[0].attention.head_dim);
  EXPECT_LE(small.model.layers[0].feed_forward.intermediate_size, plan.model.layers[0].feed_forward.intermediate_size);
  EXPECT_LE(small.model.vocab_size, plan.model.vocab_size);
  for (const Problem& problem : validate(small)) ADD_FAILURE() << problem.field << ": " << problem.message;
}

TEST(ShippedPlans, LoadAndAreValid) {
  const int worlds[] = {16, 8, 128, 128, 16};
  for (std::size_t i = 0; i < std::size(kPlans); ++i) {
    const Plan plan = shipped(kPlans[i]);
    EXPECT_EQ(plan.name, kPlans[i]);
    EXPECT_EQ(plan.world(), worlds[i]);
    EXPECT_TRUE(validate(plan).empty());
    EXPECT_FALSE(plan.claims.empty());
    EXPECT_FALSE(plan.notes.empty());
  }
}

TEST(Scaled, ShrinksShippedPlansToAFewHundredTokens) {
  for (const char* name : kPlans) {
    SCOPED_TRACE(name);
    const Plan plan = shipped(name);

    const Plan small = scaled(plan, {});

    expect_same_shape(plan, small);
    EXPECT_GE(small.workload.tokens(), 64);
    EXPECT_LE(small.workload.tokens(), 256);
    EXPECT_GE(small.workload.batch(), plan.parallel.dp);
    EXPECT_LE(small.model.hidden_size, 64);
    EXPECT_LE(small.model.layers[0].feed_forward.intermediate_size, 32);
    EXPECT_LE(small.model.vocab_size, 128);
  }
}

TEST(Scaled, KeepsTheSpreadOfLengths) {
  const Plan small = scaled(shipped("ep4_tp2_pp2_sp"), {});

  const auto [shortest, longest] = std::minmax_element(small.workload.lengths.begin(), small.workload.lengths.end());

  EXPECT_EQ(*shortest, 1);
  EXPECT_GE(*longest, 8);
  EXPECT_EQ(small.workload.microbatches, 8);
}

TEST(Scaled, FullChangesOnlyWhatIsAskedFor) {
  const Plan plan = shipped("ep4_tp2_pp2_sp");

  const Plan same = scaled(plan, {.mode = Mode::full});
  const Plan asked = scaled(plan, {.mode = Mode::full, .batch = 4, .sequence = 128});

  EXPECT_EQ(same.model, plan.model);
  EXPECT_EQ(same.workload.lengths, plan.workload.lengths);
  EXPECT_EQ(asked.model, plan.model);
  EXPECT_EQ(asked.workload.lengths, (std::vector<std::int64_t>{128, 128, 128, 128}));
  EXPECT_EQ(asked.workload.microbatches, 1);
  EXPECT_TRUE(validate(asked).empty());
}

TEST(Scaled, DividesWidthsAndLeavesTheWorkload) {
  const Plan plan = shipped("ep64_tp2");

  const Plan small = scaled(plan, {.mode = Mode::divide, .divisor = 16});

  EXPECT_EQ(small.model.hidden_size, 64);
  EXPECT_EQ(small.model.layers[0].attention.head_dim, 4);
  EXPECT_EQ(small.model.layers[0].feed_forward.intermediate_size, 256);
  EXPECT_EQ(small.model.vocab_size, 2000);
  EXPECT_EQ(small.workload.lengths, plan.workload.lengths);
}

TEST(Scaled, RepeatsLengthsForALargerBatch) {
  Plan plan = shipped("ep4_tp2_pp2_sp");
  plan.workload.lengths = {5, 7, 9};

  const Plan larger = scaled(plan, {.mode = Mode::full, .batch = 5});

  EXPECT_EQ(larger.workload.lengths, (std::vector<std::int64_t>{5, 7, 9, 5, 7}));
}

TEST(Scaled, IsValidForEveryGeneratedPlanAndMode) {
  std::mt19937_64 random(11);
  for (int round = 0; round < 500; ++round) {
    const Plan plan = testing::random_valid_plan(random, 64);
    SCOPED_TRACE(round);
    expect_same_shape(plan, scaled(plan, {}));
    expect_same_shape(plan,
                      scaled(plan, {.mode = Mode::divide, .divisor = static_cast<std::int64_t>(random() % 1000)}));
    expect_same_shape(plan, scaled(plan, {.mode = Mode::full, .batch = static_cast<std::int64_t>(1 + random() % 20)}));
    // A replica that had no sequence still has none, and one that had some still has.
    const auto busy = [&](const Plan& p) { return std::min<std::int64_t>(p.workload.batch(), p.parallel.dp); };
    EXPECT_EQ(busy(scaled(plan, {})), busy(plan));
  }
}

TEST(Scaled, KeepsTheFirstLayersOfEachKindAndALayerForEachStage) {
  Plan plan = testing::small_plan({.tp = 2, .pp = 2, .edp = 2});
  LayerSpec dense = plan.model.layers[0];
  dense.feed_forward = {.intermediate_size = 8};
  LayerList layers(3, dense);
  for (int i = 0; i < 5; ++i) layers.push_back(testing::small_plan({}).model.layers[0]);
  plan.model.layers = layers;
  plan.parallel.layers_per_stage = {3, 5};

  const Plan one = scaled(plan, {.mode = ScaleOptions::Mode::full, .layers = 1});
  const Plan two = scaled(plan, {.mode = ScaleOptions::Mode::full, .layers = 2});
  const Plan all = scaled(plan, {.mode = ScaleOptions::Mode::full, .layers = 5});
  plan.model.layers = LayerList(4, dense);
  plan.parallel.layers_per_stage.clear();
  const Plan stages = scaled(plan, {.mode = ScaleOptions::Mode::full, .layers = 1});

  ASSERT_EQ(one.model.layers.size(), 2);
  EXPECT_TRUE(one.model.layers[0].feed_forward.dense());
  EXPECT_FALSE(one.model.layers[1].feed_forward.dense());
  EXPECT_EQ(two.model.layers.size(), 4);
  EXPECT_TRUE(two.parallel.layers_per_stage.empty());
  EXPECT_EQ(all.model.layers.size(), 8);
  EXPECT_EQ(all.parallel.layers_per_stage, (std::vector<std::int64_t>{3, 5}));
  EXPECT_EQ(stages.model.layers.size(), 2);
}

}  // namespace
}  // namespace shardproof
