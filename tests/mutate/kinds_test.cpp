// What kinds of mutations say of the plans that they are put into: where they have instances, and which causes are
// right.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "emu/judge/prepared.h"
#include "emu/mutate/mutation.h"
#include "emu/plan/validate.h"
#include "tests/mutate/mutation_support.h"
#include "tests/support/runnable.h"
#include "tests/support/small_plan.h"

namespace shardproof {
namespace {

using testing::report_of;
using testing::runnable;
using testing::small_plan;

/// The instances of a kind.
std::vector<Mutation> instances_of(std::string_view kind, const Plan& plan) {
  const MutablePlan subject(plan, prepare_reference(plan, ops::Format::exact).expected);
  return std::ranges::find(mutation_kinds(), kind, &MutationKind::name)->instances(subject, 2);
}

/// What the kind's instances say to whether the cause is right too; nothing where there is no instance.
std::set<bool> accept(std::string_view kind, const Plan& plan, const std::string& cause) {
  std::set<bool> answers;
  for (const Mutation& mutation : instances_of(kind, plan)) {
    answers.insert(std::ranges::find(mutation.causes, cause) != mutation.causes.end());
  }
  return answers;
}
const std::set<bool> kAll{true}, kNone{false};

/// Experts of which one, as it is, is a token's output.
Plan switch_plan(const Parallel& parallel) {
  Plan plan = small_plan(parallel);
  plan.model.layers.edit([](LayerSpec& layer) {
    layer.feed_forward.top_k = 1;
    layer.feed_forward.norm_topk_prob = true;
  });
  return plan;
}

// What an expert makes of another token's row is that token's output where its own expert is the same.
TEST(MutationCauses, AreRowsInAnotherOrderWhereTheirTokensHaveChosenAlike) {
  const Plan experts = switch_plan({.tp = 2, .dp = 2, .ep = 4});
  Plan replicas = switch_plan({.tp = 2, .ep = 2});
  replicas.model.layers.edit([](LayerSpec& layer) { layer.feed_forward.num_experts = 1; });
  replicas.parallel.experts = {.redundant = 1};
  for (const Plan& plan : {experts, replicas}) {
    ASSERT_TRUE(validate(plan).empty()) << validate(plan).front().message;
  }

  for (const char* kind : {"dispatch_order", "tokens_duplicated"}) {
    EXPECT_EQ(accept(kind, experts, "rows_permuted"), kNone) << kind;
    EXPECT_EQ(accept(kind, replicas, "rows_permuted"), kAll) << kind;
  }
  EXPECT_EQ(accept("return_order", experts, "rows_permuted"), kAll);
  Plan gathered = experts;
  gathered.parallel.dispatch = DispatchComm::all_gather;
  EXPECT_EQ(accept("dispatch_gathered_order", gathered, "rows_permuted"), kNone);
}

// Another choice's output of the same token stands with the wrong weight; another token's does not.
TEST(MutationCauses, AreWeightsInAnotherOrderWhereOutputsComeBackToTheirTokens) {
  Plan all_chosen = small_plan({.tp = 2, .dp = 2, .ep = 4});
  all_chosen.model.layers.edit([](LayerSpec& layer) { layer.feed_forward.top_k = layer.feed_forward.num_experts; });
  Plan replicated = all_chosen;
  replicated.parallel.experts = {.redundant = 3};
  Plan of_one = switch_plan({.tp = 2, .ep = 2});
  of_one.model.layers.edit([](LayerSpec& layer) { layer.feed_forward.num_experts = 1; });
  of_one.parallel.experts = {.redundant = 1};

  for (const char* cause : {"router_weights_permuted", "expert_map"}) {
    EXPECT_EQ(accept("return_order", all_chosen, cause), kAll) << cause;
    for (const Plan& plan : {replicated, of_one}) {
      ASSERT_TRUE(validate(plan).empty()) << validate(plan).front().message;
      EXPECT_EQ(accept("return_order", plan, cause), kNone) << cause;
    }
  }
}

// The layer that the fault is in, not another of the model.
TEST(MutationCauses, AreRowsInAnotherOrderWhereTheLayerWeighsByOne) {
  Plan plan = switch_plan({.tp = 2, .dp = 2, .ep = 4});
  const LayerSpec weighs = small_plan(plan.parallel).model.layers[0];
  LayerList layers(1, weighs);
  layers.push_back(plan.model.layers[0]);
  plan.model.layers = layers;
  ASSERT_TRUE(validate(plan).empty()) << validate(plan).front().message;

  const std::vector<Mutation> instances = instances_of("return_order", plan);

  ASSERT_EQ(instances.size(), 2U);
  for (const Mutation& mutation : instances) {
    EXPECT_EQ(std::ranges::count(mutation.causes, "rows_permuted"), mutation.layer) << mutation.layer;
  }
}

/// One token a sequence and a replica, each served by one expert of four.
Plan few_tokens(const Parallel& parallel, std::uint64_t seed) {
  Plan plan = switch_plan(parallel);
  plan.workload.lengths.assign(static_cast<std::size_t>(parallel.dp), 1);
  plan.workload.microbatches = 1;
  plan.workload.seed = seed;
  return plan;
}

// Of few tokens the first rank may have none that shows the fault, where another has.
TEST(MutationKinds, ArePutOnARankThatShowsThem) {
  struct Tried {
    std::string_view kind;
    Parallel parallel;
  };
  for (const auto& [kind, parallel] :
       {Tried{"expert_map_of_one_rank", {.dp = 4, .ep = 4, .dispatch = DispatchComm::all_gather}},
        Tried{"dispatch_gathered_order", {.dp = 3, .ep = 3, .dispatch = DispatchComm::all_gather}},
        Tried{"moe_reduction_dropped", {.dp = 4, .ep = 2, .edp = 2, .dispatch = DispatchComm::all_gather}}}) {
    for (std::uint64_t seed = 1; seed <= 32; ++seed) {
      const Plan plan = few_tokens(parallel, seed);
      ASSERT_TRUE(validate(plan).empty()) << validate(plan).front().message;

      const MutationScore score = run_mutations(
          runnable(plan), {.per_kind = 1, .wanted = [&only = kind](std::string_view name) { return name == only; }});

      const MutationCounts counts = score.counts(MutationClass::sharding);
      EXPECT_GT(counts.instances, 0) << kind << ", seed " << seed;
      EXPECT_EQ(counts.detected, counts.instances) << report_of(score);
      EXPECT_EQ(counts.tap_right, counts.instances) << report_of(score);
      EXPECT_EQ(counts.cause_right, counts.instances) << report_of(score);
    }
  }
}

}  // namespace
}  // namespace shardproof
