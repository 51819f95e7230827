#include "ops/internal/math.h"

#include <limits>

#include "ops/internal/exact_exp.h"
#include "ops/swiglu.h"
#include "tests/ops/oracle.h"

namespace shardproof::ops {
namespace {

template <class T>
T exponential(T x) {
  return simd::exponential<T>(simd::broadcast(x))[0];
}

TEST(Exponential, IsWithinTwoUlpInFloat) {
  for (double x = -86; x < 88; x += 0.000731) {
    const auto argument = static_cast<float>(x);
    const double expected = std::exp(static_cast<double>(argument));
    ASSERT_NEAR(static_cast<double>(exponential(argument)), expected, 2 * 0x1p-24 * expected) << x;
  }
}

TEST(Exponential, IsWithinTwoUlpInDouble) {
  for (double x = -707; x < 709; x += 0.00231) {
    const double expected = std::exp(x);
    ASSERT_NEAR(exponential(x), expected, 2 * 0x1p-53 * expected) << x;
  }
}

TEST(Exponential, HoldsItsEnds) {
  EXPECT_EQ(exponential(0.0F), 1.0F);
  EXPECT_EQ(exponential(0.0), 1.0);
  EXPECT_EQ(exponential(-1000.0F), 0.0F);
  EXPECT_EQ(exponential(-std::numeric_limits<double>::infinity()), 0.0);
  EXPECT_GT(exponential(1000.0F), 1e38F);
  EXPECT_TRUE(std::isfinite(exponential(1000.0F)));
  EXPECT_GT(exponential(1000.0), 1e307);
  EXPECT_TRUE(std::isfinite(exponential(1000.0)));
  EXPECT_TRUE(std::isnan(exponential(std::numeric_limits<float>::quiet_NaN())));
  EXPECT_TRUE(std::isnan(exponential(std::numeric_limits<double>::quiet_NaN())));
}

TEST(Exponential, IsNothingBelowItsLowestAndHeldAboveItsHighest) {
  constexpr float kInfinite = std::numeric_limits<float>::infinity();
  EXPECT_EQ(exponential(std::nextafter(-86.6F, -kInfinite)), 0.0F);
  EXPECT_GT(exponential(-86.6F), std::numeric_limits<float>::min());
  EXPECT_EQ(exponential(kInfinite), exponential(88.3F));
  EXPECT_GT(exponential(88.3F), exponential(std::nextafter(88.0F, 0.0F)));
  EXPECT_EQ(exponential(std::nextafter(-708.0, -1000.0)), 0.0);
  EXPECT_GT(exponential(-708.0), std::numeric_limits<double>::min());
  EXPECT_EQ(exponential(1e300), exponential(709.4));
}

template <class T, std::size_t kVectors>
void expect_each_alone(T x) {
  simd::Vec<T> together[kVectors];
  for (std::size_t v = 0; v < kVectors; ++v) together[v] = simd::broadcast(x / static_cast<T>(v + 1));
  simd::exponentials<T>(together);
  for (std::size_t v = 0; v < kVectors; ++v) EXPECT_EQ(together[v][0], exponential(x / static_cast<T>(v + 1))) << x;
}

TEST(Exponential, OfSeveralVectorsIsThatOfEach) {
  for (int i = -900; i < 900; i += 7) {
    expect_each_alone<float, 2>(static_cast<float>(i) / 9);
    expect_each_alone<float, 4>(static_cast<float>(i) / 9);
    expect_each_alone<double, 2>(i);
    expect_each_alone<double, 4>(i);
  }
}

// The same bits on every instruction set and compiler: golden checksums.
TEST(Exponential, HasTheSameBitsOnEveryBuild) {
  std::uint64_t floats = 0, doubles = 0;
  for (int i = -20000; i <= 20000; ++i) {
    floats = floats * 31 + std::bit_cast<std::uint32_t>(exponential(static_cast<float>(i) * 0x1.37p-8F));
    doubles = doubles * 31 + std::bit_cast<std::uint64_t>(exponential(static_cast<double>(i) * 0x1.37p-5));
  }
  EXPECT_EQ(floats, 9677082777083814858U);
  EXPECT_EQ(doubles, 10956174661575008191U);
}

TEST(ExactExponential, SoftmaxTermsEqualRoundedStdExpOnTheWholeGrid) {
  // Below -15 both are zero: exp(-15) < kExpStep / 2.
  for (Index i = 0; i <= Index{40} * 1024; ++i) {
    const double x = -static_cast<double>(i) * kActivationStep;
    const double got = simd::softmax_term<double, true>(simd::broadcast(x))[0];
    ASSERT_EQ(got, oracle::to_multiple(std::exp(x), kExpStep)) << x;
  }
}

TEST(ExactExponential, SiluTermsEqualRoundedStdExpOnTheWholeGrid) {
  const ExactExponential exponential;
  for (Index i = Index{-60} * 1024; i <= Index{40} * 1024; ++i) {
    const double x = static_cast<double>(i) * kActivationStep;
    ASSERT_EQ(exponential(x), oracle::to_multiple(std::exp(std::min(x, kSiluExponentMax)), kExpStep)) << x;
  }
  EXPECT_EQ(exponential(0.1), oracle::to_multiple(std::exp(0.1), kExpStep)) << "off the grid";
}

TEST(Reductions, FoldEveryLengthInAFixedOrder) {
  for (Index count = 0; count < 200; ++count) {
    std::vector<double> values(static_cast<std::size_t>(count));
    std::iota(values.begin(), values.end(), 1.0);

    EXPECT_EQ(simd::sum_of<double>(
                  count, [](auto v) { return v; }, values.data()),
              static_cast<double>(count * (count + 1) / 2));
    EXPECT_EQ(simd::largest_of<double>(count, values.data()),
              count == 0 ? -std::numeric_limits<double>::infinity() : static_cast<double>(count));
  }
}

}  // namespace
}  // namespace shardproof::ops
