// The plans of plans/serving, with one layer of each kind.
#include <gtest/gtest.h>

#include <filesystem>

#include "emu/judge/verify.h"
#include "emu/plan/load.h"
#include "emu/plan/scale.h"

namespace shardproof {
namespace {

TEST(ServingPlans, PassWithOneLayerOfEachKind) {
  int plans = 0;
  for (const auto& entry : std::filesystem::directory_iterator(SHARDPROOF_SOURCE_DIR "/plans/serving")) {
    const LoadedPlan loaded = load_plan(entry.path().string());
    ASSERT_TRUE(loaded.plan.has_value()) << entry.path();
    ASSERT_TRUE(loaded.plan->workload.serving.has_value()) << entry.path();
    const Plan small = scaled(*loaded.plan, {.layers = 1});

    for (const ops::Format format : {ops::Format::exact, ops::Format::bf16}) {
      const VerifyReport report = verify(small, {.format = format});

      EXPECT_EQ(report.verdict, Verdict::pass) << entry.path() << " " << ops::to_string(format) << " "
                                               << (report.first_divergence ? report.first_divergence->message : "");
    }
    ++plans;
  }
  EXPECT_GE(plans, 7);
}

}  // namespace
}  // namespace shardproof
