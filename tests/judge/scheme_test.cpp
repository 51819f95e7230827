#include "emu/judge/scheme.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <stdexcept>

namespace shardproof {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

ExpectedTaps expected_sum() {
  ExpectedTaps expected;
  expected.add("y", 1, 2, {3, 30});
  return expected;
}

/// Every tp rank has a partial sum of y: 1 and 2 of 3, 10 and 20 of 30; `odd` has another.
Cluster::Program partials(int odd = -1) {
  return [odd](Rank& rank) -> Task<> {
    ops::Matrix<double> partial(1, 2);
    partial(0, 0) = rank.at().tp + 1;
    partial(0, 1) = to_int(rank.id()) == odd ? 0 : 10 * (rank.at().tp + 1);
    rank.tap<double>("y", partial.view(), Placement::partial_sum(1, 2, Axis::tp));
    co_return;
  };
}

TEST(VerifyScheme, SumsThePartialSumsOfEachGroupApart) {
  const VerifyReport report = verify_scheme({.tp = 2, .dp = 3}, partials(), expected_sum());

  EXPECT_EQ(report.verdict, Verdict::pass) << (report.first_divergence ? report.first_divergence->message : "");
}

TEST(VerifyScheme, NamesTheGroupWhosePartialSumsAreWrong) {
  const VerifyReport report = verify_scheme({.tp = 2, .dp = 3}, partials(3), expected_sum());

  ASSERT_EQ(report.verdict, Verdict::mismatch);
  EXPECT_THAT(report.first_divergence->ranks, ElementsAre(2, 3));
  EXPECT_EQ(report.first_divergence->got, 10);
}

TEST(VerifyScheme, ProvesNothingWhenNothingIsExpected) {
  const auto idle = [](Rank&) -> Task<> { co_return; };

  const VerifyReport report = verify_scheme({.tp = 2}, idle, ExpectedTaps());

  EXPECT_EQ(report.verdict, Verdict::inconclusive);
  EXPECT_THAT(report.problems.front().message, HasSubstr("proves nothing"));
}

TEST(VerifyScheme, DoesNotCallADifferenceFromNoNumberAMismatch) {
  ExpectedTaps expected;
  expected.add("y", 1, 2, {3, std::numeric_limits<double>::quiet_NaN()});

  const VerifyReport report = verify_scheme({.tp = 2, .dp = 1}, partials(), expected);

  EXPECT_EQ(report.verdict, Verdict::inconclusive);
}

TEST(VerifyScheme, RefusesABoundThatIsNone) {
  for (const double bound : {-1.0, std::nan(""), std::numeric_limits<double>::infinity()}) {
    EXPECT_THROW(verify_scheme({.tp = 2}, partials(), expected_sum(), {.bound = bound}), std::invalid_argument);
  }
}

}  // namespace
}  // namespace shardproof
