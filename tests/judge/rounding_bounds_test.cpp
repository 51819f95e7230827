// The formulas of the bounds, and that what they bound stays within them.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

#include "emu/judge/rounding/bounds.h"

namespace shardproof::rounding {
namespace {

std::vector<int> ranks_to(int count) {
  std::vector<int> ranks(static_cast<std::size_t>(count));
  std::iota(ranks.begin(), ranks.end(), 0);
  return ranks;
}

TEST(Gamma, IsTheSumOfUnitsAndALittleMore) {
  EXPECT_EQ(gamma(0, 0x1p-24), 0);
  EXPECT_EQ(gamma(2, 0.25), 1);
  EXPECT_GT(gamma(1000, 0x1p-24), 1000 * 0x1p-24);
  EXPECT_LT(gamma(1000, 0x1p-24), 1001 * 0x1p-24);
  EXPECT_TRUE(std::isinf(gamma(4, 0.25)));
}

TEST(Gamma, OfTwoUnitsTogetherCoversBothApart) {
  for (const double count : {1.0, 100.0, 1e6}) {
    EXPECT_GE(gamma(count, 0x1p-24 + 0x1p-30), gamma(count, 0x1p-24) + gamma(count, 0x1p-30));
  }
}

TEST(StoredError, IsHalfAUnitInTheLastPlaceAndHalfASubnormal) {
  const Profile profile = profile_of(ops::Format::bf16);

  EXPECT_EQ(stored_error(profile, 1, 0), 0x1p-8 + 0x1p-134);
  EXPECT_EQ(stored_error(profile, -2, 0.5), 0.5 + 2.5 * 0x1p-8 + 0x1p-134);
  EXPECT_EQ(stored_error(profile_of(ops::Format::fp32), 1, 0.25), 0.25);
}

/// Every format's store errs by no more than its unit says, down to its subnormals, and by nearly as much somewhere.
TEST(StoredError, IsReachedAndKeptByEveryFormat) {
  std::mt19937_64 random(7);
  for (const ops::Format format : {ops::Format::bf16, ops::Format::fp16}) {
    const Profile profile = profile_of(format);
    double worst = 0;
    for (int i = 0; i < 200000; ++i) {
      const auto value = static_cast<float>(std::ldexp(std::uniform_real_distribution(-2.0, 2.0)(random),
                                                       std::uniform_int_distribution(-30, 10)(random)));
      const double error = std::abs(static_cast<double>(ops::stored(value, format)) - static_cast<double>(value));
      const double bound = stored_error(profile, static_cast<double>(value), 0);
      ASSERT_LE(error, bound) << value;
      worst = std::max(worst, error / bound);
    }
    EXPECT_GT(worst, 0.95) << ops::to_string(format);
  }
}

TEST(ReductionPath, IsTheLongestWayOfAnInput) {
  const auto path = [](Algorithm algorithm, int ranks, int per_node = 8) {
    const ReductionPath longest = reduction_path({.algorithm = algorithm, .gpus_per_node = per_node}, ranks_to(ranks));
    return std::pair{longest.additions, longest.hops};
  };

  EXPECT_EQ(path(Algorithm::rank_order, 5).first, 4);
  EXPECT_EQ(path(Algorithm::ring, 4).first, 3);
  EXPECT_GE(path(Algorithm::ring, 4).second, 3);
  EXPECT_EQ(path(Algorithm::recursive_doubling, 16).first, 4);
  EXPECT_LT(path(Algorithm::tree, 64).first, 63);
  EXPECT_EQ(path(Algorithm::rank_order, 1).first, 0);
}

TEST(ReductionError, GrowsWithTheFormatsOnTheWay) {
  const Profile profile = profile_of(ops::Format::fp32);
  const ReductionPath path{.additions = 3, .hops = 3};
  const auto error = [&](const char* wire, const char* accumulate) {
    ReduceOptions options;
    if (wire != nullptr) options.wire.name = wire;
    if (accumulate != nullptr) options.accumulate.name = accumulate;
    return reduction_error(profile, options, path, 1);
  };

  EXPECT_NEAR(error(nullptr, nullptr), 3 * 0x1p-24, 1e-12);
  EXPECT_NEAR(error("bf16", nullptr), 5 * 0x1p-8, 1e-3);
  EXPECT_NEAR(error(nullptr, "fp16"), 3 * 0x1p-11, 1e-5);
  EXPECT_EQ(error("fp32", "fp32"), error(nullptr, nullptr));
}

TEST(RoundingProfiles, RoundInsideAnOpOnlyWhereTheySay) {
  const Profile ours = profile_of(ops::Format::bf16), fused = profile_of(ops::Format::bf16, RoundingProfile::fused),
                eager = profile_of(ops::Format::bf16, RoundingProfile::eager);

  EXPECT_EQ(step_error(ours, 3, 1, 0.5), 0.5);
  EXPECT_EQ(step_error(fused, 3, 1, 0.5), 0.5);
  EXPECT_GE(step_error(eager, 3, 1, 0), 3 * 0x1p-8);
  EXPECT_LT(step_error(eager, 3, 1, 0), 3.1 * 0x1p-8);
  EXPECT_EQ(ours.probability.relative, 0);
  EXPECT_EQ(fused.probability.relative, 0x1p-8);
  for (const RoundingProfile kind : {RoundingProfile::ours, RoundingProfile::fused, RoundingProfile::eager}) {
    EXPECT_EQ(parse_rounding_profile(to_string(kind)), kind);
    // Where nothing is narrower than the scalar, nothing is rounded twice.
    EXPECT_EQ(step_error(profile_of(ops::Format::fp32, kind), 3, 1, 0.5), 0.5);
  }
  EXPECT_FALSE(parse_rounding_profile("best").has_value());
}

}  // namespace
}  // namespace shardproof::rounding
