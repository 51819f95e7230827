#include <gtest/gtest.h>

#include <cmath>

#include "emu/judge/judge.h"
#include "emu/judge/verify.h"

namespace shardproof {
namespace {

constexpr double kUnsharded = 1e-6;
constexpr auto kFormat = ops::Format::fp32;

TEST(ErrorBound, IsZeroInExact) {
  EXPECT_EQ(error_bound({.unsharded = kUnsharded, .values = 100, .width = 10}, ops::Format::exact), 0);
}

TEST(ErrorBound, IsAFewRoundingsWhereTheUnshardedRunHitsByLuck) {
  EXPECT_EQ(error_bound({.unsharded = 0, .values = 100, .width = 10}, kFormat),
            kRoundoffFloor * ops::unit_roundoff(kFormat));
}

TEST(ErrorBound, NearsTheAmplificationBoundWithTheNumberOfErrorsSeen) {
  EXPECT_DOUBLE_EQ(error_bound({.unsharded = kUnsharded, .values = 6400, .width = 64}, kFormat),
                   kAmplificationBound * (1 + kSmallSample / 80) * kUnsharded);
}

// A row that is badly conditioned, four elements wide: its errors in the unsharded run are all small once in a while.
TEST(ErrorBound, IsWideForANarrowModelHoweverManyTokens) {
  const double narrow = error_bound({.unsharded = kUnsharded, .values = 4000000, .width = 4}, kFormat);

  EXPECT_DOUBLE_EQ(narrow, kUsualRatio * std::pow(kSmallByChance, -0.25) * kUnsharded);
  EXPECT_GT(narrow, 10 * error_bound({.unsharded = kUnsharded, .values = 4000000, .width = 64}, kFormat));
}

TEST(ErrorBound, IsWideForATapOfFewValuesInAWideModel) {
  EXPECT_EQ(error_bound({.unsharded = kUnsharded, .values = 4, .width = 1024}, kFormat),
            error_bound({.unsharded = kUnsharded, .values = 4, .width = 4}, kFormat));
}

TEST(ErrorBound, LetsNoRowOfZerosPassForTheModelIsNarrow) {
  EXPECT_EQ(error_bound({.unsharded = 0.05, .values = 4000000, .width = 4}, ops::Format::bf16), kLargestByChance);
}

}  // namespace
}  // namespace shardproof
