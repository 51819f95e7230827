#include "emu/judge/scheme.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <functional>
#include <limits>
#include <memory>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

namespace shardproof {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

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

TEST(VerifyScheme, RefusesABoundThatZerosPassUnder) {
  EXPECT_THROW(verify_scheme({.tp = 2}, partials(), expected_sum(), {.bound = 1}), std::invalid_argument);
  EXPECT_NO_THROW(verify_scheme({.tp = 2}, partials(), expected_sum(), {.bound = 0.99}));
}

TEST(VerifyScheme, RefusesDegreesThatMakeNoWorld) {
  for (const Parallel& parallel : {Parallel{.tp = 0}, Parallel{.tp = -2}, Parallel{.dp = 1 << 20, .pp = 1 << 20},
                                   Parallel{.ep = -1}, Parallel{.tp = 2, .ep = 3}}) {
    EXPECT_THROW(verify_scheme(parallel, partials(), expected_sum()), std::invalid_argument);
  }
}

TEST(ExpectedTaps, RefuseShapesThatAreNone) {
  ExpectedTaps expected;

  EXPECT_THROW(expected.add("y", -1, -2, {1, 2}), std::invalid_argument);
  EXPECT_THROW(expected.add("y", std::int64_t{1} << 40, std::int64_t{1} << 40, {}), std::invalid_argument);
  EXPECT_THROW(expected.add("y", {2, -1}, {}), std::invalid_argument);
  EXPECT_THROW(expected.add("y", {2, 2}, {1}), std::invalid_argument);
}

/// One value of each rank, placed so.
Cluster::Program tapping(const std::function<void(Rank&)>& tap) {
  return [tap](Rank& rank) -> Task<> {
    tap(rank);
    co_return;
  };
}

const ops::Matrix<double>& three_and_thirty() {
  static const ops::Matrix<double> kValues = [] {
    ops::Matrix<double> values(1, 2);
    values(0, 0) = 3;
    values(0, 1) = 30;
    return values;
  }();
  return kValues;
}

ops::Matrix<double> changed(std::int64_t col, double by) {
  ops::Matrix<double> values = three_and_thirty().copy();
  values(0, col) += by;
  return values;
}

TEST(VerifyScheme, CallsAPlacementThatReachesOutsideByItsName) {
  const std::int64_t most = std::numeric_limits<std::int64_t>::max();
  for (const Range rows : {Range{most, 1}, Range{-1, 1}, Range{1, 1}}) {
    const VerifyReport report = verify_scheme({.tp = 2}, tapping([&](Rank& rank) {
                                                rank.tap<double>("y", three_and_thirty(), {1, 2, rows, {0, 2}});
                                              }),
                                              expected_sum());

    EXPECT_EQ(report.verdict, Verdict::mismatch);
    EXPECT_THAT(report.first_divergence->message, HasSubstr("reach outside 1 x 2"));
  }
}

TEST(VerifyScheme, TakesTheSameBitsTwiceAndNoOthersUnderAnySchedule) {
  const auto twice = [](double by) {
    return tapping([by](Rank& rank) {
      rank.tap<double>("y", three_and_thirty(), Placement::replicate(1, 2));
      rank.tap<double>("y", changed(1, to_int(rank.id()) == 1 ? by : 0), Placement::replicate(1, 2));
    });
  };
  for (std::uint64_t seed = 1; seed <= 30; ++seed) {
    EXPECT_EQ(verify_scheme({.tp = 3}, twice(0), expected_sum(), {.schedule = seed}).verdict, Verdict::pass) << seed;

    const VerifyReport other = verify_scheme({.tp = 3}, twice(1e-9), expected_sum(), {.bound = 0.5, .schedule = seed});

    ASSERT_EQ(other.verdict, Verdict::mismatch) << seed;
    EXPECT_THAT(other.first_divergence->message, HasSubstr("twice, with different bits")) << seed;
    EXPECT_THAT(other.first_divergence->ranks, ElementsAre(1)) << seed;
  }
}

TEST(VerifyScheme, NamesTheMembersThatHandInNoPartialSumAndBlocksThatAreNone) {
  const VerifyReport silent =
      verify_scheme({.tp = 2}, tapping([](Rank& rank) {
                      if (rank.at().tp == 1) return;
                      rank.tap<double>("y", three_and_thirty(), Placement::partial_sum(1, 2, Axis::tp));
                    }),
                    expected_sum());
  const VerifyReport shards = verify_scheme(
      {.tp = 2}, tapping([](Rank& rank) {
        const int me = rank.at().tp;
        rank.tap<double>("y", three_and_thirty().view().col_range(me, 1), {1, 2, {0, 1}, {me, 1}, Axis::tp});
      }),
      expected_sum());

  EXPECT_EQ(silent.verdict, Verdict::mismatch);
  EXPECT_THAT(silent.first_divergence->message, HasSubstr("never handed in their partial sum"));
  EXPECT_THAT(silent.first_divergence->ranks, ElementsAre(1));
  EXPECT_EQ(shards.verdict, Verdict::mismatch);
  EXPECT_THAT(shards.first_divergence->message, HasSubstr("never handed in their partial sum"));
}

TEST(VerifyScheme, AddsPartialSumsOverSeveralAxes) {
  const auto program = tapping([](Rank& rank) {
    ops::Matrix<double> partial(1, 2);
    partial(0, 0) = rank.at().tp == 1 && rank.at().dp == 1 ? 3 : 0;
    partial(0, 1) = 7.5;
    rank.tap<double>("y", partial, Placement::partial_sum(1, 2, {Axis::tp, Axis::dp}));
  });

  EXPECT_EQ(verify_scheme({.tp = 2, .dp = 2}, program, expected_sum()).verdict, Verdict::pass);
  EXPECT_EQ(verify_scheme({.tp = 2, .dp = 2, .pp = 2}, program, expected_sum()).verdict, Verdict::pass);
}

TEST(VerifyScheme, SaysWhoTappedNothingAndMissesReplicasThatAreDeclared) {
  const auto tapped = [](Axes replicas) {
    return tapping([replicas](Rank& rank) {
      Placement placement = Placement::replicate(1, 2);
      placement.replicas = replicas;
      if (to_int(rank.id()) != 2) rank.tap<double>("y", three_and_thirty(), placement);
    });
  };

  const VerifyReport noted = verify_scheme({.tp = 4}, tapped({}), expected_sum());
  const VerifyReport missed = verify_scheme({.tp = 4}, tapped(Axis::tp), expected_sum());

  EXPECT_EQ(noted.verdict, Verdict::pass);
  EXPECT_THAT(noted.notes, ElementsAre("y: tapped by 3 of 4 ranks; not by 2"));
  EXPECT_EQ(missed.verdict, Verdict::mismatch);
  EXPECT_THAT(missed.first_divergence->message, HasSubstr("replicas never handed in"));
  EXPECT_THAT(missed.first_divergence->ranks, ElementsAre(2));
}

TEST(VerifyScheme, NamesTheOddReplicaWhicheverRankItIsAndWhereItDiffers) {
  for (const int odd : {0, 1, 2}) {
    const VerifyReport report = verify_scheme({.tp = 3}, tapping([odd](Rank& rank) {
                                                rank.tap<double>("y", changed(1, to_int(rank.id()) == odd ? 1e-12 : 0),
                                                                 Placement::replicate(1, 2));
                                              }),
                                              expected_sum(), {.bound = 0.5});

    ASSERT_EQ(report.verdict, Verdict::mismatch);
    EXPECT_THAT(report.first_divergence->ranks, ElementsAre(odd));
    EXPECT_THAT(report.first_divergence->message, HasSubstr("at row 0, column 1"));
    EXPECT_EQ(report.first_divergence->cause->name, "replicas_differ");
  }
}

TEST(VerifyScheme, PrintsValuesWithAsManyDigitsAsTheyDifferBy) {
  const VerifyReport report = verify_scheme(
      {.tp = 1}, tapping([](Rank& rank) { rank.tap<double>("y", changed(0, 0x1p-50), Placement::replicate(1, 2)); }),
      expected_sum());

  EXPECT_THAT(report.first_divergence->message, HasSubstr("expected 3, got 3.0000000000000"));
}

TEST(VerifyScheme, KeepsAWrongTapThatCameBeforeAStallAndTellsTheKindsOfStallsApart) {
  const Cluster::Program waits = [](Rank& rank) -> Task<> {
    rank.tap<double>("y", changed(0, 1), Placement::replicate(1, 2));
    if (rank.at().tp == 0) co_await rank.tp().barrier();
  };
  const Cluster::Program clashes = [](Rank& rank) -> Task<> {
    rank.tap<double>("y", three_and_thirty(), Placement::replicate(1, 2));
    std::vector<double> values(static_cast<std::size_t>(2 + rank.at().tp));
    co_await rank.tp().all_reduce(values);
  };

  const VerifyReport waiting = verify_scheme({.tp = 2}, waits, expected_sum());
  const VerifyReport clash = verify_scheme({.tp = 2}, clashes, expected_sum());

  EXPECT_EQ(waiting.verdict, Verdict::deadlock);
  EXPECT_EQ(waiting.stall->kind, StallKind::deadlock);
  EXPECT_FALSE(waiting.stall->graph->empty());
  ASSERT_TRUE(waiting.first_divergence.has_value());
  EXPECT_EQ(waiting.first_divergence->tap, "y");
  EXPECT_EQ(clash.stall->kind, StallKind::collective_mismatch);
  EXPECT_EQ(clash.stall->calls.size(), 2U);
  EXPECT_EQ(clash.stall->cause.name, "call_arguments");
  EXPECT_FALSE(clash.first_divergence.has_value());
}

TEST(VerifyScheme, TakesAsManyRanksAsALargeClusterHas) {
  constexpr int kRanks = 16384;
  ExpectedTaps expected;
  expected.add("y", 1, 2, {kRanks / 2, 1.5 * kRanks});
  const auto program = [](bool skips) -> Cluster::Program {
    return [skips](Rank& rank) -> Task<> {
      std::vector<double> y{1, 3};
      co_await rank.world().barrier();
      if (skips && rank.at().dp == 77) co_return;
      CallHandle sum = rank.dp().iall_reduce(y);
      co_await rank.tp().barrier();
      co_await sum;
      if (rank.at().dp == 5) rank.tap<double>("y", {y.data(), 1, 2}, Placement::replicate(1, 2));
    };
  };

  const VerifyReport right = verify_scheme({.tp = 2, .dp = kRanks / 2}, program(false), expected);
  const VerifyReport stuck = verify_scheme({.tp = 2, .dp = kRanks / 2}, program(true), expected);

  EXPECT_EQ(right.verdict, Verdict::pass);
  EXPECT_EQ(stuck.verdict, Verdict::deadlock);
  EXPECT_EQ(stuck.stall->cause.name, "call_sequence");
}

TEST(VerifyScheme, FindsTheFirstScheduleUnderWhichARunDiffers) {
  // Who comes first decides: a race.
  const auto arrivals = std::make_shared<std::atomic<int>>(0);
  const Cluster::Program racing = [arrivals](Rank& rank) -> Task<> {
    co_await rank.tp().barrier();
    const int place = arrivals->fetch_add(1) % 2;
    ops::Matrix<double> values = three_and_thirty().copy();
    if (rank.at().tp == 1) values(0, 0) += 1e-9 * place;
    rank.tap<double>("y", values.view().row_range(0, 1), {2, 2, {rank.at().tp, 1}, {0, 2}});
  };
  ExpectedTaps expected;
  expected.add("y", 2, 2, {3, 30, 3, 30});

  const VerifyReport report = verify_scheme({.tp = 2}, racing, expected, {.bound = 0.5, .schedules = 200});

  EXPECT_EQ(report.verdict, Verdict::mismatch);
  ASSERT_TRUE(report.schedule_dependent.has_value());
  EXPECT_THAT(report.problems.front().message, HasSubstr("depends on the schedule: from seed"));
}

TEST(VerifyScheme, TakesIntegersOfSixtyFourBitsAndTensorsOfMoreDims) {
  ExpectedTaps expected;
  expected.add("ids", {2, 2, 2}, {1, 2, 3, 4, 5, 6, 7, 8});
  const auto program = [](std::int64_t last) {
    return tapping([last](Rank& rank) {
      ops::Matrix<std::int64_t> ids(4, 2);
      std::int64_t next = 0;
      for (std::int64_t& id : ids.span()) id = ++next;
      ids(3, 1) = last;
      rank.tap<std::int64_t>("ids", ids.view(), Placement::replicate(4, 2));
    });
  };

  const VerifyReport wrong = verify_scheme({.tp = 2}, program(9), expected);

  EXPECT_EQ(verify_scheme({.tp = 2}, program(8), expected).verdict, Verdict::pass);
  EXPECT_EQ(wrong.verdict, Verdict::mismatch);
  EXPECT_THAT(wrong.first_divergence->message, HasSubstr("expected 8, got 9 at index [1, 1, 1]"));
}

/// Ranks that are odd, and then all, add what they hold.
TEST(VerifyScheme, HasGroupsOfAnyRanksAndOneOfAll) {
  const Cluster::Program program = [](Rank& rank) -> Task<> {
    std::vector<double> y{1, 10};
    if (to_int(rank.id()) % 2 == 1) co_await rank.group(3, 1).all_reduce(y);
    std::vector<double> all = y;
    co_await rank.world().all_reduce(all);
    rank.tap<double>("all", {all.data(), 1, 2}, Placement::replicate(1, 2));
  };
  ExpectedTaps expected;
  expected.add("all", 1, 2, {6, 60});

  EXPECT_EQ(verify_scheme({.tp = 2, .dp = 2}, program, expected, {.schedules = 20}).verdict, Verdict::pass);
}

/// y = 1 + 2 and 10 + 20, summed under way; `early` taps it before it is awaited, `drop` never awaits it.
Cluster::Program sums_under_way(bool early, bool drop) {
  return [early, drop](Rank& rank) -> Task<> {
    const double mine = rank.at().tp + 1;
    std::vector<double> y{mine, 10 * mine}, other{mine, 10 * mine};
    CallHandle sum = rank.tp().iall_reduce(y);
    CallHandle listed = rank.group(1, 0).iall_reduce(other);
    co_await rank.world().barrier();
    co_await listed;
    if (early) rank.tap<double>("y", {y.data(), 1, 2}, Placement::replicate(1, 2));
    if (drop) co_return;
    co_await sum;
    rank.tap<double>("y", {y.data(), 1, 2}, Placement::replicate(1, 2));
    EXPECT_EQ(other, y);
  };
}

TEST(VerifyScheme, RunsCallsUnderWayInEveryKindOfGroupUnderAnySchedule) {
  const VerifyReport report = verify_scheme({.tp = 2}, sums_under_way(false, false), expected_sum(), {.schedules = 20});

  EXPECT_EQ(report.verdict, Verdict::pass);
  EXPECT_EQ(report.schedules, 20);
}

TEST(VerifyScheme, NamesATapThatReadsAnOutputEarly) {
  const VerifyReport report = verify_scheme({.tp = 2}, sums_under_way(true, false), expected_sum(), {.schedules = 5});

  ASSERT_TRUE(report.stall);
  EXPECT_FALSE(report.schedule_dependent);
  EXPECT_EQ(report.stall->cause.name, "invalid_call");
  EXPECT_THAT(report.stall->text, HasSubstr("the tap y reads its output before it is awaited"));
  EXPECT_THAT(report.stall->text, HasSubstr("rank 0: iall_reduce #0 in tp[0]"));
}

TEST(VerifyScheme, NamesACallThatIsNeverAwaited) {
  const VerifyReport report = verify_scheme({.tp = 2}, sums_under_way(false, true), expected_sum());

  ASSERT_TRUE(report.stall);
  EXPECT_THAT(report.stall->text, HasSubstr("its handle was dropped without being awaited"));
  EXPECT_THAT(report.stall->text, HasSubstr("scheme_test.cpp:"));
}

TEST(VerifyScheme, RefusesListsOfRanksThatAreNoGroup) {
  for (const std::vector<int>& list : {std::vector<int>{}, {0, 0}, {0, 9}, {-1, 0}, {1}}) {
    const auto program = tapping([&](Rank& rank) {
      if (to_int(rank.id()) == 0) {
        EXPECT_THROW(rank.group(list), std::invalid_argument);
      }
      rank.tap<double>("y", three_and_thirty(), Placement::replicate(1, 2));
    });
    EXPECT_EQ(verify_scheme({.tp = 2}, program, expected_sum()).verdict, Verdict::pass);
  }
}

TEST(VerifyScheme, SaysThatRanksDisagreeOnWhoIsInAGroup) {
  const Cluster::Program program = [](Rank& rank) -> Task<> {
    std::vector<double> y{1};
    if (rank.at().tp == 0) co_await rank.group(0, 1).all_reduce(y);
    if (rank.at().tp == 1) co_await rank.group(0, 1, 2).all_reduce(y);
    if (rank.at().tp == 2) co_await rank.group(1, 2).all_reduce(y);
  };

  const VerifyReport report = verify_scheme({.tp = 3}, program, expected_sum());

  EXPECT_EQ(report.verdict, Verdict::deadlock);
  EXPECT_THAT(report.stall->text, HasSubstr("they disagree on who is in the group"));
}

TEST(VerifyScheme, NamesListedGroupsByTheirMembersUnderEverySchedule) {
  // Of many groups that wait, which one is made first depends on the schedule.
  const Cluster::Program program = [](Rank& rank) -> Task<> {
    const int me = to_int(rank.id());
    std::vector<double> y{1};
    if (me != 0) co_await rank.group(0, me).all_reduce(y);
  };
  std::set<std::string> texts;

  for (std::uint64_t seed = 0; seed < 30; ++seed) {
    const VerifyReport report = verify_scheme({.tp = 6}, program, expected_sum(), {.schedule = seed});
    ASSERT_TRUE(report.stall);
    texts.insert(report.stall->text);
  }

  ASSERT_EQ(texts.size(), 1u);
  EXPECT_THAT(*texts.begin(), HasSubstr("after 0 collectives in ranks[0,3] and never joins"));
}

TEST(VerifyScheme, BlamesNoListThatBothRanksHaveNamed) {
  const Cluster::Program program = [](Rank& rank) -> Task<> {
    std::vector<double> y{1};
    const Communicator one = rank.group(0, 1), other = rank.group(1, 0);
    const bool first = rank.at().tp == 0;
    co_await (first ? one : other).all_reduce(y);
    co_await (first ? other : one).all_reduce(y);
  };

  const VerifyReport report = verify_scheme({.tp = 2}, program, expected_sum());

  ASSERT_TRUE(report.stall);
  EXPECT_THAT(report.stall->text, Not(HasSubstr("disagree")));
  EXPECT_THAT(report.stall->graph->causes.front(), HasSubstr("ranks 0 and 1 wait for each other"));
}

}  // namespace
}  // namespace shardproof
