// One verdict a tap: what it is, and that every document prints it.
#include "emu/judge/judge.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "emu/judge/scheme.h"
#include "emu/judge/verify.h"
#include "emu/report/json.h"
#include "emu/report/junit.h"
#include "emu/run/fault.h"
#include "tests/judge/dropped_call.h"
#include "tests/support/small_plan.h"

namespace shardproof {
namespace {

using ::testing::ElementsAre;
using ::testing::Field;
using ::testing::HasSubstr;

using Values = std::vector<double>;

/// What a single rank made: of each expected tap (1 x n), its first values.
VerifyReport judged(const ExpectedTaps& expected, const std::vector<Values>& made) {
  const Mesh mesh(Parallel{});
  TapCollector collector(expected, mesh);
  for (std::size_t i = 0; i < made.size(); ++i) {
    const auto count = std::ssize(made[i]);
    if (count == 0) continue;
    const ops::MatrixView<const double> part{made[i].data(), 1, count};
    const ExpectedTap& tap = expected.all()[i];
    collector.tap(GlobalRank{0}, {.name = tap.name}, Placement::shard(1, 1, tap.cols, {0, count}), part);
  }
  const std::vector<TapOutcome> outcomes = collector.finish();
  VerifyReport report;
  judge({.expected = expected, .sums = {}, .outcomes = outcomes, .problems = {}, .unexpected = {}, .remedy = {}},
        report);
  return report;
}

std::vector<TapVerdict> verdicts(const VerifyReport& report) {
  std::vector<TapVerdict> found;
  for (const TapReport& tap : report.taps) found.push_back(tap.verdict);
  return found;
}

ExpectedTaps three_taps(const Values& first = {1, 2}) {
  ExpectedTaps expected;
  expected.add("a", 1, 2, first);
  expected.add("b", 1, 2, {3, 4});
  expected.add("c", 1, 2, {5, 6});
  return expected;
}

TEST(Judge, TellsApartRightWrongAndMissingTaps) {
  const VerifyReport report = judged(three_taps(), {{1, 2}, {3, 9}, {}});

  EXPECT_THAT(verdicts(report), ElementsAre(TapVerdict::pass, TapVerdict::mismatch, TapVerdict::missing));
  EXPECT_EQ(report.verdict, Verdict::mismatch);
  EXPECT_EQ(report.first_divergence->tap, "b");
  EXPECT_EQ(report.first_divergence->verdict, TapVerdict::mismatch);
}

TEST(Judge, CallsATapMissingThatOnlyLacksElementsAndMismatchedWhenTheRestIsWrongToo) {
  const VerifyReport right = judged(three_taps(), {{1, 2}, {3}, {5, 6}});
  const VerifyReport wrong = judged(three_taps(), {{1, 2}, {7}, {5, 6}});

  EXPECT_THAT(verdicts(right), ElementsAre(TapVerdict::pass, TapVerdict::missing, TapVerdict::pass));
  EXPECT_EQ(right.first_divergence->verdict, TapVerdict::missing);
  EXPECT_THAT(right.first_divergence->message, HasSubstr("1 of 2 elements"));
  EXPECT_EQ(right.verdict, Verdict::mismatch);
  EXPECT_EQ(wrong.taps[1].verdict, TapVerdict::mismatch);
}

TEST(Judge, HoldsAgreementWithAConstantInconclusiveUnlessItIsOneByNature) {
  ExpectedTaps by_nature;
  by_nature.add("a", 1, 2, {1, 1}, {.constant_by_nature = true});

  const VerifyReport chance = judged(three_taps({1, 1}), {{1, 1}, {3, 4}, {5, 6}});
  const VerifyReport nature = judged(by_nature, {{1, 1}});

  EXPECT_THAT(verdicts(chance), ElementsAre(TapVerdict::inconclusive, TapVerdict::pass, TapVerdict::pass));
  EXPECT_EQ(chance.verdict, Verdict::inconclusive);
  EXPECT_THAT(chance.problems, ElementsAre(Field(&Problem::field, "a")));
  EXPECT_THAT(verdicts(nature), ElementsAre(TapVerdict::pass));
  EXPECT_EQ(nature.verdict, Verdict::pass);
}

TEST(Judge, DrawsNothingFromADifferenceAfterWhatIsNotFiniteButThatATapIsMissing) {
  const VerifyReport report = judged(three_taps({1, std::numeric_limits<double>::quiet_NaN()}), {{1, 2}, {3, 9}, {}});

  EXPECT_THAT(verdicts(report), ElementsAre(TapVerdict::inconclusive, TapVerdict::inconclusive, TapVerdict::missing));
  EXPECT_EQ(report.verdict, Verdict::inconclusive);
  EXPECT_EQ(report.first_divergence->tap, "a");
}

/// The tap reads missing in every document, and passes in none.
void expect_missing(const VerifyReport& report, const std::string& name) {
  const auto tap = std::ranges::find(report.taps, name, &TapReport::name);
  ASSERT_NE(tap, report.taps.end());
  EXPECT_EQ(tap->verdict, TapVerdict::missing);
  EXPECT_THAT(to_json(report),
              HasSubstr("\"name\": \"" + name + "\",\n      \"verdict\": \"missing\",\n      \"max_error\": \"inf\""));
  const JunitSuite suite = junit_suite(report);
  const auto test = std::ranges::find(suite.cases, name, &JunitCase::name);
  EXPECT_EQ(test->outcome, JunitCase::Outcome::failure);
  EXPECT_EQ(test->type, "missing");
}

TEST(MissingTaps, OfASchemeReadMissingEverywhere) {
  const auto program = [](Rank& rank) -> Task<> {
    const Values first{1, 2};
    rank.tap<double>("a", {first.data(), 1, 2}, Placement::replicate(1, 2));
    co_return;
  };

  const VerifyReport report = verify_scheme({.tp = 2}, program, three_taps());

  EXPECT_EQ(report.verdict, Verdict::mismatch);
  EXPECT_EQ(report.first_divergence->message, "no rank produced it");
  expect_missing(report, "b");
  expect_missing(report, "c");
}

class NonexistentExpert final : public FaultInjector {
 public:
  void edit_routing(const Rank& /*rank*/, const FaultSite& site, ops::MatrixView<const double> /*logits*/,
                    ops::MatrixView<std::int32_t> ids, ops::MatrixView<double> /*weights*/) override {
    if (site.layer == 1 && ids.rows > 0) ids(0, 0) = 99;
  }
};

/// In the second layer tokens are sent to an expert that there is not, after a sum of the first was not taken.
class DroppedAndFailed final : public FaultInjector {
 public:
  bool before_call(const Rank& rank, internal::Call& call) noexcept override {
    return dropped_.before_call(rank, call);
  }
  void edit_routing(const Rank& rank, const FaultSite& site, ops::MatrixView<const double> logits,
                    ops::MatrixView<std::int32_t> ids, ops::MatrixView<double> weights) override {
    failed_.edit_routing(rank, site, logits, ids, weights);
  }

 private:
  testing::DroppedCall dropped_{Op::attention_reduce, 0};
  NonexistentExpert failed_;
};

TEST(WrongTaps, BeforeARankErrorHaveTheirOwnCause) {
  DroppedAndFailed fault;

  const VerifyReport report =
      verify(testing::small_plan({.tp = 2, .edp = 2}), {.format = ops::Format::exact, .fault = &fault});

  EXPECT_EQ(report.verdict, Verdict::mismatch);
  EXPECT_EQ(report.first_divergence->tap, "layer.0.attention.output");
  EXPECT_EQ(report.first_divergence->cause->name, "reduction_dropped");
  ASSERT_FALSE(report.problems.empty());
  EXPECT_NE(report.problems.front().message.find("expert 99"), std::string::npos) << report.problems.front().message;
}

TEST(MissingTaps, AfterARankErrorReadMissingEverywhere) {
  NonexistentExpert fault;

  const VerifyReport report =
      verify(testing::small_plan({.tp = 2, .edp = 2}), {.format = ops::Format::exact, .fault = &fault});

  EXPECT_EQ(report.verdict, Verdict::mismatch);
  EXPECT_EQ(report.taps.front().verdict, TapVerdict::missing);  // of the second microbatch
  EXPECT_EQ(report.first_divergence->cause->name, "rank_error");
  expect_missing(report, "layer.2.attention.q");
  expect_missing(report, "logits");
}

}  // namespace
}  // namespace shardproof
