#include "emu/timeline/causes.h"

#include <gtest/gtest.h>

#include "emu/paper/figures.h"
#include "emu/timeline/projection.h"
#include "tests/support/random_plan.h"

namespace shardproof {
namespace {

TEST(TimeCauses, AddUpToTheSpanOfAnyPass) {
  int with_stages = 0;
  for (int round = 0; round < 40; ++round) {
    Plan plan = testing::random_plan(testing::property_seed() + static_cast<std::uint64_t>(round), 32);
    plan.hardware = Hardware{.gpus = plan.world(), .gpus_per_node = 4};
    const ops::Format format = format_of(plan.model);
    const HardwareModel& hardware = built_in_hardware().find("h100")->model;
    for (const DryPass pass : {DryPass::prefill, DryPass::decode}) {
      const PassTiming timing =
          time_pass(plan, dry_run(plan, format, pass, StatedRouting::of(plan)), pass, hardware, {.format = format});
      double begin = 0;
      for (const double end : timing.replay.pass_ends) {
        double sum = 0;
        for (const auto& [cause, seconds] : seconds_by_cause(timing.replay, begin, end)) {
          EXPECT_GT(seconds, 0) << describe(cause);
          sum += seconds;
        }
        EXPECT_NEAR(sum, end - begin, 1e-9 * end) << testing::describe(plan);
        begin = end;
      }
      with_stages += timing.replay.pass_ends.size() > 1 ? 1 : 0;
    }
  }
  EXPECT_GT(with_stages, 3);
}

TEST(TimeCauses, AreTheSharesOfThePass) {
  Plan plan = testing::random_plan(3, 32);
  const ops::Format format = format_of(plan.model);
  const PassTiming timing = time_pass(plan, dry_run(plan, format, DryPass::prefill, StatedRouting::of(plan)),
                                      DryPass::prefill, built_in_hardware().find("h100")->model, {.format = format});
  double computing = 0, moving = 0;

  for (const auto& [cause, seconds] : seconds_by_cause(timing.replay, 0, timing.seconds)) {
    if (cause.kind == TimeCause::Kind::computing) computing += seconds;
    if (cause.kind == TimeCause::Kind::moving) moving += seconds;
  }

  EXPECT_NEAR(computing / timing.seconds, timing.computing, 1e-9);
  EXPECT_NEAR(moving / timing.seconds, timing.communicating, 1e-9);
}

}  // namespace
}  // namespace shardproof
