// One plan and seed give the same bits at any number of threads and in any order.
#include <gtest/gtest.h>

#include "emu/judge/verify.h"
#include "tests/support/random_plan.h"

namespace shardproof {
namespace {

std::vector<std::uint64_t> bits_of(const VerifyReport& report) {
  std::vector<std::uint64_t> bits;
  for (const TapReport& tap : report.taps) bits.push_back(tap.bits);
  return bits;
}

void expect_equal_bits(ops::Format format) {
  for (std::uint64_t seed = 0; seed < 6; ++seed) {
    const Plan plan = testing::random_plan(testing::property_seed() + 50000 + seed);
    const std::vector<std::uint64_t> first = bits_of(verify(plan, {.format = format, .threads = 1}));
    ASSERT_FALSE(first.empty());
    for (const int threads : {2, 3, 16}) {
      EXPECT_EQ(bits_of(verify(plan, {.format = format, .threads = threads})), first)
          << threads << " threads, " << testing::describe(plan);
    }
    for (std::uint64_t schedule = 0; schedule < 20; ++schedule) {
      EXPECT_EQ(bits_of(verify(plan, {.format = format, .schedule = schedule})), first)
          << "schedule " << schedule << ", " << testing::describe(plan);
    }
  }
}

TEST(Schedules, GiveTheSameBitsInFloat32) {
  expect_equal_bits(ops::Format::fp32);
}
TEST(Schedules, GiveTheSameBitsInBfloat16) {
  expect_equal_bits(ops::Format::bf16);
}
TEST(Schedules, GiveTheSameBitsInExact) {
  expect_equal_bits(ops::Format::exact);
}

TEST(Schedules, GiveOtherBitsForAnotherSeed) {
  Plan plan = testing::random_plan(testing::property_seed() + 50000);
  const std::vector<std::uint64_t> first = bits_of(verify(plan));
  plan.workload.seed += 1;

  EXPECT_NE(bits_of(verify(plan)), first);
}

}  // namespace
}  // namespace shardproof
