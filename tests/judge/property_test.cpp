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

class RandomFamilyPlans : public ::testing::TestWithParam<testing::Drawn> {};

TEST_P(RandomFamilyPlans, AgreeBitForBitInExact) {
  testing::verify_random_family_plans(GetParam(), 40, property_seed() + 50000, ops::Format::exact);
}

TEST_P(RandomFamilyPlans, AgreeWithinRounding) {
  testing::verify_random_family_plans(GetParam(), 20, property_seed() + 60000, ops::Format::bf16);
  testing::verify_random_family_plans(GetParam(), 20, property_seed() + 70000, ops::Format::fp32);
  testing::verify_random_family_plans(GetParam(), 10, property_seed() + 80000, ops::Format::fp64);
}

// Whatever is run in which step, in which blocks, beside whom: every tensor is that of the whole sequence.
TEST(RandomServingPlans, AgreeBitForBitInExact) {
  testing::verify_random_serving_plans(210, property_seed() + 90000, ops::Format::exact);
}

TEST(RandomServingPlans, AgreeWithinRounding) {
  testing::verify_random_serving_plans(70, property_seed() + 91000, ops::Format::bf16);
  testing::verify_random_serving_plans(70, property_seed() + 92000, ops::Format::fp32);
  testing::verify_random_serving_plans(42, property_seed() + 93000, ops::Format::fp16);
  testing::verify_random_serving_plans(42, property_seed() + 94000, ops::Format::fp64);
}

INSTANTIATE_TEST_SUITE_P(Architectures, RandomFamilyPlans, ::testing::ValuesIn(testing::kDrawn),
                         [](const auto& parameter) { return to_string(parameter.param); });

}  // namespace
}  // namespace shardproof
