// Ten thousand valid plans: no false alarm where no tolerance is given.
#include <gtest/gtest.h>

#include "tests/judge/random_verification.h"
#include "tests/support/random_plan.h"

namespace shardproof {
namespace {

TEST(TenThousandRandomPlans, AgreeBitForBitInExact) {
  testing::verify_random_plans(10000, testing::property_seed() + 1000000, ops::Format::exact);
}

TEST(TenThousandRandomPlans, AgreeWithinRoundingInEveryFloatFormat) {
  testing::verify_random_plans(10000, testing::property_seed() + 2000000, ops::Format::bf16);
  testing::verify_random_plans(10000, testing::property_seed() + 3000000, ops::Format::fp16);
  testing::verify_random_plans(10000, testing::property_seed() + 4000000, ops::Format::fp32);
}

TEST(ThreeHundredRandomPlansAFamily, AgreeInEveryFormat) {
  for (const testing::Drawn drawn : testing::kDrawn) {
    for (const ops::Format format :
         {ops::Format::exact, ops::Format::bf16, ops::Format::fp16, ops::Format::fp32, ops::Format::fp64}) {
      testing::verify_random_family_plans(drawn, 300, testing::property_seed() + 5000000, format);
    }
  }
}

TEST(TwoThousandRandomServingPlans, AgreeInEveryFormat) {
  testing::verify_random_serving_plans(2000, testing::property_seed() + 6000000, ops::Format::exact);
  for (const ops::Format format : {ops::Format::bf16, ops::Format::fp16, ops::Format::fp32, ops::Format::fp64}) {
    testing::verify_random_serving_plans(500, testing::property_seed() + 7000000, format);
  }
}

}  // namespace
}  // namespace shardproof
