// Properties of the whole: every valid plan agrees with the reference.
#include <gtest/gtest.h>

#include "tests/judge/random_verification.h"
#include "tests/support/random_plan.h"

namespace shardproof {
namespace {

using testing::property_seed;
using testing::verify_random_plans;

TEST(RandomPlans, AgreeBitForBitInExact) {
  verify_random_plans(1000, property_seed(), ops::Format::exact);
}

TEST(RandomPlans, AgreeWithinRoundingInFloat32) {
  verify_random_plans(300, property_seed() + 10000, ops::Format::fp32);
}

TEST(RandomPlans, AgreeWithinRoundingInFloat64) {
  verify_random_plans(100, property_seed() + 20000, ops::Format::fp64);
}

TEST(RandomPlans, AgreeWithinRoundingInBfloat16) {
  verify_random_plans(100, property_seed() + 30000, ops::Format::bf16);
}

TEST(RandomPlans, AgreeWithinRoundingInFloat16) {
  verify_random_plans(100, property_seed() + 40000, ops::Format::fp16);
}

}  // namespace
}  // namespace shardproof
