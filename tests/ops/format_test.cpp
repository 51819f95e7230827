#include "ops/format.h"

#include <bit>
#include <limits>

#include "tests/ops/oracle.h"

namespace shardproof::ops {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// Nearest value of a binary format by the definition: the step at the value's own exponent, ties to even.
double nearest(double value, int digits, int min_exponent, double largest) {
  if (value == 0 || !std::isfinite(value)) return value;
  const int exponent = std::max(std::ilogb(value), min_exponent);
  const double step = std::ldexp(1.0, exponent - digits + 1);
  const double rounded = std::nearbyint(value / step) * step;
  return std::abs(rounded) > largest ? std::copysign(kInfinity, value) : rounded;
}
double nearest_bf16(double value) {
  return nearest(value, 8, -126, 0x1.FEp127);
}
double nearest_fp16(double value) {
  return nearest(value, 11, -14, 65504);
}

TEST(Format, NamesRoundTrip) {
  for (const Format format : {Format::fp64, Format::fp32, Format::bf16, Format::fp16, Format::exact}) {
    EXPECT_EQ(parse_format(to_string(format)), format);
  }
  EXPECT_EQ(parse_format("fp8"), std::nullopt);
}

TEST(Format, RoundsFloatsToTheNearestBf16AndFp16) {
  for (std::uint64_t i = 0; i < 1ULL << 32; i += 9973) {
    const auto value = std::bit_cast<float>(static_cast<std::uint32_t>(i));
    if (std::isnan(value)) continue;

    ASSERT_EQ(stored(value, Format::bf16), nearest_bf16(value)) << value;
    ASSERT_EQ(stored(value, Format::fp16), nearest_fp16(value)) << value;
    ASSERT_EQ(std::signbit(stored(value, Format::fp16)), std::signbit(value)) << value;
  }
}

TEST(Format, RoundsDoublesOnceAndNotByWayOfFloat) {
  oracle::Generator generator(3);
  for (int i = 0; i < 200000; ++i) {
    const double value =
        std::ldexp(static_cast<double>(generator.next() >> 11), static_cast<int>(generator.below(300)) - 200);

    ASSERT_EQ(stored(value, Format::fp16), nearest_fp16(value)) << value;
    ASSERT_EQ(stored(-value, Format::bf16), nearest_bf16(-value)) << value;
    ASSERT_EQ(stored(value, Format::fp32), static_cast<double>(static_cast<float>(value))) << value;
  }
  // Half a bf16 step and a little more: a detour by float would lose the little and round to even.
  EXPECT_EQ(stored(1 + 0x1p-8 + 0x1p-40, Format::bf16), 1 + 0x1p-7);
}

TEST(Format, KeepsTiesLimitsSubnormalsAndNan) {
  EXPECT_EQ(stored(1.0F + 0x1p-8F, Format::bf16), 1.0F);
  EXPECT_EQ(stored(1.0F + 0x3p-8F, Format::bf16), 1.0F + 0x1p-6F);
  EXPECT_EQ(stored(65504.0F, Format::fp16), 65504.0F);
  EXPECT_EQ(stored(65519.0F, Format::fp16), 65504.0F);
  EXPECT_EQ(stored(65520.0F, Format::fp16), static_cast<float>(kInfinity));
  EXPECT_EQ(stored(-70000.0F, Format::fp16), -static_cast<float>(kInfinity));
  EXPECT_EQ(stored(0x1p-25F, Format::fp16), 0.0F);
  EXPECT_EQ(stored(0x1.8p-25F, Format::fp16), 0x1p-24F);
  EXPECT_EQ(stored(std::numeric_limits<float>::max(), Format::bf16), static_cast<float>(kInfinity));
  EXPECT_TRUE(std::isnan(stored(std::numeric_limits<float>::quiet_NaN(), Format::fp16)));
  EXPECT_TRUE(std::isnan(stored(std::numeric_limits<double>::quiet_NaN(), Format::bf16)));
}

TEST(Format, ExactRoundsToTheGridWithTiesToEvenAndOneZero) {
  EXPECT_EQ(stored(1.5 * kActivationStep, Format::exact), 2 * kActivationStep);
  EXPECT_EQ(stored(2.5 * kActivationStep, Format::exact), 2 * kActivationStep);
  EXPECT_FALSE(std::signbit(stored(-kActivationStep / 4, Format::exact)));
  EXPECT_FALSE(std::signbit(stored(-0.0, Format::exact)));
  oracle::Generator generator(5);
  for (int i = 0; i < 200000; ++i) {
    const double value =
        std::ldexp(static_cast<double>(generator.next() >> 11) - 0x1p52, static_cast<int>(generator.below(70)) - 75);
    ASSERT_EQ(stored(value, Format::exact), oracle::exact_stored(value)) << value;
  }
}

TEST(Format, StoreEqualsStoredAtEveryPositionAndLength) {
  for (const Format format : {Format::fp64, Format::fp32, Format::bf16, Format::fp16, Format::exact}) {
    for (std::size_t count = 0; count < 40; ++count) {
      std::vector<float> floats(count, 1.2345678F);
      std::vector<double> doubles(count, -1.23456789012345);

      round_to<float>(floats, format);
      round_to<double>(doubles, format);

      for (const float value : floats) ASSERT_EQ(value, stored(1.2345678F, format));
      for (const double value : doubles) ASSERT_EQ(value, stored(-1.23456789012345, format));
    }
  }
}

TEST(Format, PartialSumsOfExactAreNotRounded) {
  std::vector<double> values{0x1p-30};
  round_partial<double>(values, Format::exact);
  EXPECT_EQ(values[0], 0x1p-30);

  std::vector<float> floats{1.0F + 0x1p-20F};
  round_partial<float>(floats, Format::bf16);
  EXPECT_EQ(floats[0], 1.0F);
}

}  // namespace
}  // namespace shardproof::ops
