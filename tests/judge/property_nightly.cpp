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

}  // namespace
}  // namespace shardproof
