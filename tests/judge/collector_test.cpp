#include "emu/judge/collector.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace shardproof {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

/// "y" of 4 x 2: row r is {r + 1, -(r + 1)}, so the scale of row r is r + 1.
ExpectedTaps expected_y() {
  ExpectedTaps expected;
  expected.add("y", 4, 2, {1, -1, 2, -2, 3, -3, 4, -4});
  return expected;
}

ops::Matrix<float> rows_of_y(std::int64_t begin, std::int64_t count) {
  ops::Matrix<float> part(count, 2);
  for (std::int64_t i = 0; i < count; ++i) {
    part(i, 0) = static_cast<float>(begin + i + 1);
    part(i, 1) = -part(i, 0);
  }
  return part;
}

void tap(TapCollector& collector, int rank, const ops::Matrix<float>& part, const Placement& placement) {
  collector.tap(GlobalRank{rank}, {.name = "y"}, placement, part.view());
}

TEST(TapCollector, AcceptsRowsInParts) {
  const ExpectedTaps expected = expected_y();
  const Mesh mesh(Parallel{.tp = 2, .edp = 2});
  TapCollector collector(expected, mesh);
  tap(collector, 0, rows_of_y(0, 3), Placement::shard(0, 4, 2, {0, 3}));
  tap(collector, 1, rows_of_y(3, 1), Placement::shard(0, 4, 2, {3, 1}));

  const TapOutcome outcome = collector.finish().front();

  EXPECT_EQ(outcome.worst.error, 0);
  EXPECT_EQ(outcome.problem, "");
  EXPECT_TRUE(outcome.replicas_equal);
}

TEST(TapCollector, GivesItsJudgeNothingOfATapThatIsComplete) {
  struct Counting final : PartJudge {
    void put(std::size_t, const Placement&, const TapValues&) override { ++(complete_at == 0 ? puts : late_puts); }
    void complete(std::size_t) override { complete_at = puts; }
    WorstElement worst_in(std::size_t, const Placement&) const override { return {}; }
    int puts = 0;
    int late_puts = 0;
    int complete_at = 0;
  } judge;
  const ExpectedTaps expected = expected_y();
  const Mesh mesh(Parallel{.tp = 3, .edp = 3});
  TapCollector collector(expected, mesh, {.judge = &judge});
  tap(collector, 0, rows_of_y(0, 3), Placement::shard(0, 4, 2, {0, 3}));
  tap(collector, 1, rows_of_y(3, 1), Placement::shard(0, 4, 2, {3, 1}));
  // A rank without tokens has a block of no rows, which is neither a replica of another nor missing.
  tap(collector, 2, rows_of_y(4, 0), Placement::shard(0, 4, 2, {4, 0}));

  EXPECT_EQ(judge.complete_at, 2);
  EXPECT_EQ(judge.late_puts, 0);
  EXPECT_EQ(collector.finish().front().problem, "");
}

TEST(TapCollector, MeasuresTheWorstElementByItsRow) {
  const ExpectedTaps expected = expected_y();
  const Mesh mesh(Parallel{.tp = 2, .edp = 2});
  TapCollector collector(expected, mesh);
  ops::Matrix<float> wrong = rows_of_y(0, 4);
  wrong(1, 0) += 0.5F;   // a quarter of the row's scale of 2
  wrong(3, 1) += 0.75F;  // less than that of 4
  tap(collector, 1, wrong, Placement::replicate(4, 2));

  const TapOutcome outcome = collector.finish().front();

  EXPECT_EQ(outcome.worst.error, 0.5);
  EXPECT_EQ(outcome.worst.measure, 0.25);
  EXPECT_EQ(outcome.worst.row, 1);
  EXPECT_EQ(outcome.worst.col, 0);
  EXPECT_EQ(outcome.worst.expected, 2);
  EXPECT_EQ(outcome.worst.got, 2.5);
  EXPECT_EQ(outcome.rank_worst.count(0), 0U);
  EXPECT_EQ(outcome.rank_worst.at(1).error, 0.5);
}

TEST(TapCollector, FindsReplicasThatDifferInABit) {
  const ExpectedTaps expected = expected_y();
  const Mesh mesh(Parallel{.tp = 3, .edp = 3});
  TapCollector collector(expected, mesh);
  ops::Matrix<float> odd = rows_of_y(0, 4);
  odd(2, 1) = std::nextafter(odd(2, 1), 0.0F);
  for (int rank = 0; rank < 3; ++rank) {
    tap(collector, rank, rank == 1 ? odd.copy() : rows_of_y(0, 4), Placement::replicate(4, 2));
  }

  const TapOutcome outcome = collector.finish().front();

  EXPECT_FALSE(outcome.replicas_equal);
  EXPECT_THAT(outcome.odd_replicas, ElementsAre(1));
}

TEST(TapCollector, NamesWhatNoRankProduced) {
  const ExpectedTaps expected = expected_y();
  const Mesh mesh(Parallel{.tp = 2, .edp = 2});
  TapCollector collector(expected, mesh);
  tap(collector, 0, rows_of_y(0, 3), Placement::shard(0, 4, 2, {0, 3}));

  const TapOutcome outcome = collector.finish().front();

  EXPECT_THAT(outcome.problem, HasSubstr("2 of 8 elements"));
  EXPECT_THAT(outcome.problem, HasSubstr("row 3, column 0"));
  EXPECT_EQ(outcome.absent, 2);
}

TEST(TapCollector, NamesATapThatNeverCame) {
  const ExpectedTaps expected = expected_y();
  const Mesh mesh(Parallel{.tp = 2, .edp = 2});
  TapCollector collector(expected, mesh);

  const TapOutcome outcome = collector.finish().front();

  EXPECT_EQ(outcome.problem, "no rank produced it");
  EXPECT_EQ(outcome.absent, 8);
}

TEST(TapCollector, RefusesBlocksThatOverlap) {
  const ExpectedTaps expected = expected_y();
  const Mesh mesh(Parallel{.tp = 2, .edp = 2});
  TapCollector collector(expected, mesh);
  tap(collector, 0, rows_of_y(0, 3), Placement::shard(0, 4, 2, {0, 3}));
  tap(collector, 1, rows_of_y(2, 2), Placement::shard(0, 4, 2, {2, 2}));

  EXPECT_THAT(collector.finish().front().problem, HasSubstr("overlap"));
}

TEST(TapCollector, RefusesAnotherShape) {
  const ExpectedTaps expected = expected_y();
  const Mesh mesh(Parallel{.tp = 1, .edp = 1});
  TapCollector collector(expected, mesh);
  tap(collector, 0, rows_of_y(0, 4), Placement::replicate(4, 3));

  const TapOutcome outcome = collector.finish().front();

  EXPECT_THAT(outcome.problem, HasSubstr("4 x 3, expected 4 x 2"));
  EXPECT_THAT(outcome.problem_ranks, ElementsAre(0));
  EXPECT_FALSE(outcome.missing());
}

TEST(TapCollector, AddsPartialSums) {
  const ExpectedTaps expected = expected_y();
  const Mesh mesh(Parallel{.tp = 2, .edp = 2});
  TapCollector collector(expected, mesh);
  ops::Matrix<float> half = rows_of_y(0, 4);
  for (float& value : half.span()) value /= 2;
  tap(collector, 0, half, Placement::partial_sum(4, 2, Axis::tp));
  tap(collector, 1, half, Placement::partial_sum(4, 2, Axis::tp));

  const TapOutcome outcome = collector.finish().front();

  EXPECT_EQ(outcome.worst.error, 0);
  EXPECT_EQ(outcome.problem, "");
}

TEST(TapCollector, TakesAValueThatIsNotFiniteForTheWorstError) {
  const ExpectedTaps expected = expected_y();
  const Mesh mesh(Parallel{.tp = 1, .edp = 1});
  TapCollector collector(expected, mesh);
  ops::Matrix<float> broken = rows_of_y(0, 4);
  broken(2, 0) = std::numeric_limits<float>::quiet_NaN();
  tap(collector, 0, broken, Placement::replicate(4, 2));

  EXPECT_TRUE(std::isinf(collector.finish().front().worst.error));
}

TEST(TapCollector, ReportsATapThatNothingIsExpectedOf) {
  const ExpectedTaps expected = expected_y();
  const Mesh mesh(Parallel{.tp = 1, .edp = 1});
  TapCollector collector(expected, mesh);
  const ops::Matrix<float> part = rows_of_y(0, 4);
  collector.tap(GlobalRank{0}, {.name = "z"}, Placement::replicate(4, 2), part.view());

  EXPECT_THAT(collector.unexpected(), ElementsAre("z"));
}

TEST(TapCollector, ComparesIdsAsSetsUnlessExact) {
  ExpectedTaps expected;
  expected.add("choice", 1, 2, {3, 5}, {.ids = true});
  ops::Matrix<std::int32_t> swapped(1, 2);
  swapped(0, 0) = 5;
  swapped(0, 1) = 3;
  const Mesh mesh(Parallel{.tp = 1, .edp = 1});
  TapCollector loose(expected, mesh);
  TapCollector strict(expected, mesh, {.ordered_ids = true});
  loose.tap(GlobalRank{0}, {.name = "choice"}, Placement::replicate(1, 2), std::as_const(swapped).view());
  strict.tap(GlobalRank{0}, {.name = "choice"}, Placement::replicate(1, 2), std::as_const(swapped).view());

  EXPECT_EQ(loose.finish().front().worst.error, 0);
  EXPECT_GT(strict.finish().front().worst.error, 0);
}

TEST(ExpectedTaps, SayWhatWouldProveNothing) {
  ExpectedTaps expected;
  expected.add("zero", 1, 2, {0, 0});
  expected.add("constant", 2, 1, {3, 3});
  expected.add("infinite", 1, 2, {1, std::numeric_limits<double>::infinity()});
  expected.add("fine", 1, 2, {1, 2});

  EXPECT_EQ(expected.all()[0].vacuous, "zero");
  EXPECT_EQ(expected.all()[1].vacuous, "constant");
  EXPECT_EQ(expected.all()[2].vacuous, "not finite");
  EXPECT_EQ(expected.all()[3].vacuous, "");
  EXPECT_THROW(expected.add("fine", 1, 1, {1}), std::invalid_argument);
  EXPECT_THROW(expected.add("short", 2, 2, {1}), std::invalid_argument);
}

}  // namespace
}  // namespace shardproof
