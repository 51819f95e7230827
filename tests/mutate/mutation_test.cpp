// What the verifier detects and names, on a few plans; mutation_nightly.cpp does the same on many.
#include "emu/mutate/mutation.h"

#include <gtest/gtest.h>

#include <set>
#include <string>

#include "emu/judge/prepared.h"
#include "emu/judge/verify.h"
#include "emu/plan/load.h"
#include "emu/plan/validate.h"
#include "emu/report/json.h"
#include "tests/mutate/mutation_support.h"
#include "tests/support/runnable.h"
#include "tests/support/small_plan.h"

namespace shardproof {
namespace {

using testing::mutable_plans;
using testing::report_of;
using testing::runnable;
using testing::small_plan;

TEST(Mutations, AreThirtyKindsOrMoreWithDistinctNames) {
  std::set<std::string_view> names;
  for (const MutationKind& kind : mutation_kinds()) {
    EXPECT_FALSE(kind.description.empty());
    EXPECT_TRUE(names.insert(kind.name).second) << kind.name;
  }

  EXPECT_GE(names.size(), 30U);
}

TEST(Mutations, EachAppliesToSomePlan) {
  std::set<std::string_view> unused;
  for (const MutationKind& kind : mutation_kinds()) unused.insert(kind.name);
  std::vector<Plan> plans{small_plan({.tp = 4, .pp = 4, .ep = 2, .etp = 2}), small_plan({.tp = 4, .ep = 1, .etp = 4}),
                          small_plan({.tp = 2, .dp = 2, .pp = 2, .ep = 2, .etp = 1, .edp = 2}),
                          small_plan({.tp = 2, .dp = 2, .ep = 4, .sp = true}),
                          small_plan({.tp = 2, .dp = 4, .ep = 2, .etp = 4})};
  plans.back().workload.lengths = {3, 3};
  plans.back().workload.microbatches = 1;

  for (const Plan& plan : plans) {
    ASSERT_TRUE(validate(plan).empty()) << validate(plan).front().message;
    const MutablePlan subject(plan, prepare_reference(plan, ops::Format::exact).expected);
    for (const MutationKind& kind : mutation_kinds()) {
      const std::vector<Mutation> instances = kind.instances(subject, 2);
      EXPECT_LE(instances.size(), 2U);
      if (!instances.empty()) unused.erase(kind.name);
    }
  }

  EXPECT_TRUE(unused.empty()) << *unused.begin();
}

TEST(Mutations, ANonexistentExpertIsAnErrorOfItsRankNotACrash) {
  const Plan plan = small_plan({.tp = 2, .dp = 2, .ep = 4});

  const MutationScore score =
      run_mutations(runnable(plan), {.wanted = [](std::string_view kind) { return kind == "expert_nonexistent"; }});

  ASSERT_FALSE(score.results.empty());
  for (const MutationResult& result : score.results) {
    EXPECT_EQ(result.verdict, Verdict::mismatch);
    EXPECT_EQ(result.cause.name, "rank_error");
    EXPECT_NE(result.cause.evidence.find("expert 4"), std::string::npos) << result.cause.evidence;
  }
}

TEST(Mutations, OfGeneratedPlansAreDetectedAndNamed) {
  MutationCounts total;
  std::string report;
  for (const Plan& plan : mutable_plans(8, 16)) {
    const MutationScore score = run_mutations(runnable(plan), {.per_kind = 1, .further_seeds = 3});
    total.add(score.counts());
    report += report_of(score);
  }

  EXPECT_EQ(total.missed, 0) << report;
  EXPECT_GE(total.detected, 150);
  EXPECT_GE(static_cast<double>(total.tap_right), 0.98 * static_cast<double>(total.detected)) << report;
  EXPECT_GE(static_cast<double>(total.cause_right), 0.90 * static_cast<double>(total.detected)) << report;
}

TEST(Mutations, OfTheEmbeddedPlanAreDetectedAndNamed) {
  const LoadedPlan loaded = load_plan(std::string(SHARDPROOF_SOURCE_DIR) + "/plans/tp4_ep4_pp4.json");
  ASSERT_TRUE(loaded.plan.has_value());

  const MutationScore score = run_mutations(runnable(*loaded.plan).scaled({}), {.per_kind = 1});

  const MutationCounts counts = score.counts();
  EXPECT_EQ(counts.missed, 0) << report_of(score);
  EXPECT_GE(static_cast<double>(counts.tap_right), 0.98 * static_cast<double>(counts.detected)) << report_of(score);
  EXPECT_GE(static_cast<double>(counts.cause_right), 0.90 * static_cast<double>(counts.detected)) << report_of(score);
}

TEST(MutationScores, AreWrittenAsJson) {
  const Plan plan = small_plan({.tp = 2, .dp = 2, .ep = 4});
  const MutationScore score = run_mutations(
      runnable(plan), {.per_kind = 1, .wanted = [](std::string_view kind) { return kind == "attention_averaged"; }});

  const std::string text = to_json(std::span(&score, 1));

  EXPECT_NE(text.find("\"schema\": \"shardproof.mutate/1\""), std::string::npos);
  EXPECT_NE(text.find("\"averaged\""), std::string::npos);
}

}  // namespace
}  // namespace shardproof
