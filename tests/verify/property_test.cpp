// Properties of the whole: every valid plan agrees with the reference, whatever the schedule.
#include <gtest/gtest.h>

#include <iostream>

#include "emu/plan/validate.h"
#include "emu/verify/verify.h"
#include "tests/support/random_plan.h"

namespace shardproof {
namespace {

std::string explain(const VerifyReport& report) {
  std::string text = to_string(report.verdict);
  if (report.first_divergence) text += ": " + report.first_divergence->tap + ": " + report.first_divergence->message;
  for (const Problem& problem : report.problems) text += "\n" + problem.field + ": " + problem.message;
  return text + report.deadlock;
}

/// Of a small model some taps may be vacuous by chance (a tensor of one element); agreement is what is asked here.
bool agrees(const VerifyReport& report) {
  return report.verdict == Verdict::pass || (report.verdict == Verdict::inconclusive && !report.first_divergence);
}

void verify_random_plans(int count, std::uint64_t first_seed, ops::Format format) {
  std::cout << "seeds from " << first_seed << " (SHARDPROOF_TEST_SEED)\n";
  int conclusive = 0;
  for (int i = 0; i < count; ++i) {
    const Plan plan = testing::random_plan(first_seed + static_cast<std::uint64_t>(i));
    ASSERT_TRUE(validate(plan).empty()) << testing::describe(plan) << "\n" << validate(plan).front().message;

    const VerifyReport report = verify(plan, {.format = format});

    ASSERT_TRUE(agrees(report)) << testing::describe(plan) << "\n" << explain(report);
    conclusive += report.verdict == Verdict::pass ? 1 : 0;
  }
  EXPECT_GT(conclusive, count * 3 / 4);
}

TEST(RandomPlans, AgreeBitForBitInExact) {
  verify_random_plans(1000, testing::property_seed(), ops::Format::exact);
}

TEST(RandomPlans, AgreeWithinRoundingInFloat32) {
  verify_random_plans(300, testing::property_seed() + 10000, ops::Format::fp32);
}

TEST(RandomPlans, AgreeWithinRoundingInFloat64) {
  verify_random_plans(100, testing::property_seed() + 20000, ops::Format::fp64);
}

TEST(RandomPlans, AgreeWithinRoundingInBfloat16) {
  verify_random_plans(100, testing::property_seed() + 30000, ops::Format::bf16);
}

TEST(RandomPlans, AgreeWithinRoundingInFloat16) {
  verify_random_plans(100, testing::property_seed() + 40000, ops::Format::fp16);
}

}  // namespace
}  // namespace shardproof
