// What a scheme hands in, wrong by itself: lists, groups, integers, steps, dims; and what is then said of it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "emu/judge/digits.h"
#include "emu/judge/scheme.h"

namespace shardproof {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

using Values = std::vector<double>;

ops::MatrixView<const double> view_of(const Values& values, std::int64_t rows) {
  return {values.data(), rows, std::ssize(values) / rows};
}

const Values kRight{3, 30, 5, 70};

ExpectedTaps expected_rows() {
  ExpectedTaps expected;
  expected.add("y", 2, 2, kRight);
  return expected;
}

Cluster::Program handing_in(const std::function<void(Rank&)>& tap) {
  return [tap](Rank& rank) -> Task<> {
    tap(rank);
    co_return;
  };
}

VerifyReport verify_tap(const Parallel& parallel, const Values& values, const Placement& placement) {
  return verify_scheme(parallel, handing_in([&](Rank& rank) { rank.tap<double>("y", view_of(values, 2), placement); }),
                       expected_rows());
}

TEST(SchemeParts, RefuseAListThatIsNotOfItsRows) {
  const std::vector<std::int64_t> twice{0, 0}, outside{0, 2}, fewer{0};
  for (const auto& [list, problem] : {std::pair{&twice, "row 0 is in the list twice"},
                                      {&outside, "row 2 lies outside 2 x 2"},
                                      {&fewer, "a list of 1 rows is placed as 2"}}) {
    Placement placement = Placement::replicate(2, 2);
    placement.row_list = *list;

    const VerifyReport report = verify_tap({.tp = 1}, kRight, placement);

    EXPECT_EQ(report.verdict, Verdict::mismatch);
    EXPECT_EQ(report.first_divergence->message, problem);
  }
}

TEST(SchemeParts, AreDiagnosedWhereTheirRowsAreListed) {
  const std::vector<std::int64_t> list{1, 0};

  const VerifyReport right = verify_tap({.tp = 1}, {5, 70, 3, 30}, Placement::listed(2, 2, list, {0, 2}));
  const VerifyReport wrong = verify_tap({.tp = 1}, kRight, Placement::listed(2, 2, list, {0, 2}));

  EXPECT_EQ(right.verdict, Verdict::pass);
  EXPECT_EQ(wrong.verdict, Verdict::mismatch);
  EXPECT_EQ(wrong.first_divergence->cause->name, "rows_permuted");
}

TEST(SchemeParts, AreNoPartialSumsWhereEveryMemberHandsInTheWhole) {
  const VerifyReport report = verify_tap({.tp = 2}, kRight, Placement::partial_sum(2, 2, Axis::tp));

  ASSERT_EQ(report.verdict, Verdict::mismatch);
  EXPECT_EQ(report.first_divergence->cause->name, "counted_n_times");
  EXPECT_THAT(report.first_divergence->cause->evidence, HasSubstr("ranks 0, 1 each handed in the whole"));
}

TEST(SchemeParts, AddUpOverRanksOfAList) {
  const std::vector<int> group{2, 0};
  const auto program = [&](double first) {
    return handing_in([&group, first](Rank& rank) {
      const Values part = to_int(rank.id()) == 0 ? Values{first, 0, 0, 0} : Values{2, 30, 5, 70};
      if (to_int(rank.id()) != 1) rank.tap<double>("y", view_of(part, 2), Placement::partial_sum(2, 2, group));
    });
  };

  const VerifyReport wrong = verify_scheme({.tp = 3}, program(7), expected_rows());

  EXPECT_EQ(verify_scheme({.tp = 3}, program(1), expected_rows()).verdict, Verdict::pass);
  EXPECT_EQ(wrong.verdict, Verdict::mismatch);
  EXPECT_THAT(wrong.first_divergence->ranks, ElementsAre(0, 2));
}

TEST(SchemeParts, RefuseAListOfRanksThatIsNoGroup) {
  const std::vector<int> twice{0, 0}, outside{0, 5}, negative{0, -1}, without{1};
  for (const std::vector<int>* list : {&twice, &outside, &negative, &without}) {
    const VerifyReport report =
        verify_scheme({.tp = 2}, handing_in([list](Rank& rank) {
                        if (to_int(rank.id()) != 0) return;
                        rank.tap<double>("y", view_of(kRight, 2), Placement::partial_sum(2, 2, *list));
                      }),
                      expected_rows());

    EXPECT_EQ(report.verdict, Verdict::mismatch);
    EXPECT_THAT(report.first_divergence->message, HasSubstr("each is one of 0 to 1, once"));
  }
}

TEST(SchemeParts, AreEitherPartialSumsOrTheBlock) {
  const auto program = handing_in([](Rank& rank) {
    const Values half{1.5, 15, 2.5, 35};
    const bool whole = rank.at().dp == 0;
    rank.tap<double>("y", view_of(whole ? kRight : half, 2),
                     whole ? Placement::replicate(2, 2) : Placement::partial_sum(2, 2, Axis::tp));
  });

  const VerifyReport report = verify_scheme({.tp = 2, .dp = 2}, program, expected_rows());

  EXPECT_EQ(report.verdict, Verdict::mismatch);
  EXPECT_THAT(report.first_divergence->message, HasSubstr("some ranks handed in partial sums, and others the block"));
  EXPECT_THAT(report.first_divergence->ranks, ElementsAre(2, 3));
}

TEST(SchemeParts, AreTheSameTapWhenAPartialSumComesTwiceWithTheSameBits) {
  const auto program = [](double more) {
    return handing_in([more](Rank& rank) {
      const Values half{1.5, 15, 2.5, 35}, again{1.5 + more, 15, 2.5, 35};
      rank.tap<double>("y", view_of(half, 2), Placement::partial_sum(2, 2, Axis::tp));
      rank.tap<double>("y", view_of(again, 2), Placement::partial_sum(2, 2, Axis::tp));
    });
  };

  const VerifyReport other = verify_scheme({.tp = 2}, program(1e-9), expected_rows(), {.bound = 0.5});

  EXPECT_EQ(verify_scheme({.tp = 2}, program(0), expected_rows()).verdict, Verdict::pass);
  EXPECT_EQ(other.verdict, Verdict::mismatch);
  EXPECT_THAT(other.first_divergence->message, HasSubstr("two partial sums, with different bits"));
}

/// Some declare more replicas than others: all of them are missed, whoever came last.
TEST(SchemeParts, AreMissedWhoeverDeclaresThem) {
  const auto program = handing_in([](Rank& rank) {
    if (rank.at().dp == 1) return;
    Placement placement = Placement::replicate(2, 2);
    placement.replicas = rank.at().tp == 0 ? Axes{Axis::tp} : Axes{Axis::tp, Axis::dp};
    rank.tap<double>("y", view_of(kRight, 2), placement);
  });
  for (std::uint64_t seed = 1; seed <= 10; ++seed) {
    const VerifyReport report = verify_scheme({.tp = 2, .dp = 2}, program, expected_rows(), {.schedule = seed});

    ASSERT_EQ(report.verdict, Verdict::mismatch) << seed;
    EXPECT_EQ(report.first_divergence->verdict, TapVerdict::missing) << seed;
    EXPECT_THAT(report.first_divergence->ranks, ElementsAre(2, 3)) << seed;
  }
}

TEST(SchemeParts, HoldNoIntegersThatAreNotToldApart) {
  ExpectedTaps expected;
  expected.add("ids", 1, 2, {0x1p53, 1});
  const auto program = handing_in([](Rank& rank) {
    const std::vector<std::int64_t> ids{(std::int64_t{1} << 53) + 1, 1};
    rank.tap<std::int64_t>("ids", {ids.data(), 1, 2}, Placement::replicate(1, 2));
  });

  const VerifyReport report = verify_scheme({.tp = 2}, program, expected);

  EXPECT_EQ(report.verdict, Verdict::mismatch);
  EXPECT_THAT(report.first_divergence->message, HasSubstr("9007199254740993 is an integer of more than 53 bits"));
}

TEST(SchemeParts, AreOfTheStepThatTheyAreTappedIn) {
  ExpectedTaps expected;
  for (int step = 0; step < 3; ++step) expected.add("loss", 1, 2, {9.0 - step, 1}, {.step = step});
  const auto program = [](int late) {
    return handing_in([late](Rank& rank) {
      for (int step = 0; step < 3; ++step) {
        const Values loss{9.0 - (step == late ? step - 1 : step), 1};
        rank.tap<double>("loss", view_of(loss, 1), Placement::replicate(1, 2), step);
      }
    });
  };

  const VerifyReport wrong = verify_scheme({.tp = 2}, program(2), expected);

  EXPECT_EQ(verify_scheme({.tp = 2}, program(-1), expected).verdict, Verdict::pass);
  EXPECT_EQ(wrong.verdict, Verdict::mismatch);
  EXPECT_EQ(wrong.first_divergence->tap, "step.2.loss");
  EXPECT_EQ(wrong.taps.front().kind, "loss");
}

TEST(SchemeParts, HaveANameAndAStep) {
  ExpectedTaps expected;

  EXPECT_THROW(expected.add("", 1, 1, {1}), std::invalid_argument);
  EXPECT_THROW(expected.add("y", 1, 1, {1}, {.step = -2}), std::invalid_argument);
  EXPECT_THROW(verify_scheme({.tp = 1}, handing_in([](Rank& rank) {
                               rank.tap<double>("", view_of(kRight, 2), Placement::replicate(2, 2));
                             }),
                             expected_rows()),
               RankError);
  EXPECT_THROW(Placement::shard(2, 2, 2, {0, 1}), std::invalid_argument);
}

TEST(FoldedRows, AreThoseOfAPartOfADim) {
  EXPECT_THAT(folded_rows({2, 3, 4}, 1, {1, 2}), ElementsAre(1, 2, 4, 5));
  EXPECT_THAT(folded_rows({2, 3, 4}, 0, {1, 1}), ElementsAre(3, 4, 5));
  EXPECT_THAT(folded_rows({2, 2, 2, 5}, 1, {1, 1}), ElementsAre(2, 3, 6, 7));
  EXPECT_THAT(folded_rows({2, 3, 4}, 1, {3, 0}), IsEmpty());
  EXPECT_THAT(folded_rows({0, 3, 4}, 1, {0, 3}), IsEmpty());
}

TEST(FoldedRows, RefuseWhatIsNoPartOfATensor) {
  const std::int64_t most = std::numeric_limits<std::int64_t>::max();

  EXPECT_THROW(folded_rows({2, -3, 4}, 1, {0, 1}), std::invalid_argument);
  EXPECT_THROW(folded_rows({most, 2, 4}, 1, {0, 1}), std::invalid_argument);
  EXPECT_THROW(folded_rows({2, 3, 4}, 2, {0, 1}), std::invalid_argument);
  EXPECT_THROW(folded_rows({2, 3, 4}, -1, {0, 1}), std::invalid_argument);
  EXPECT_THROW(folded_rows({2, 3, 4}, 1, {most, 1}), std::invalid_argument);
  EXPECT_THROW(folded_rows({2, 3, 4}, 1, {2, 2}), std::invalid_argument);
  EXPECT_THROW(folded_rows({}, 0, {0, 0}), std::invalid_argument);
}

/// Heads, the middle dim, are split over tp.
TEST(FoldedRows, PlaceAShardOfAMiddleDim) {
  ExpectedTaps expected;
  Values values(2 * 4 * 3);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<double>(i % 7);
  expected.add("k", {2, 4, 3}, values);
  const auto program = [&](int odd) {
    return handing_in([&values, odd](Rank& rank) {
      const std::vector<std::int64_t> rows = folded_rows({2, 4, 3}, 1, {2 * rank.at().tp, 2});
      Values mine;
      for (const std::int64_t row : rows)
        mine.insert(mine.end(), values.begin() + row * 3, values.begin() + row * 3 + 3);
      if (rank.at().tp == odd) mine.back() += 1;
      rank.tap<double>("k", view_of(mine, 4), Placement::listed(8, 3, rows, {0, 3}));
    });
  };

  const VerifyReport wrong = verify_scheme({.tp = 2}, program(1), expected);

  EXPECT_EQ(verify_scheme({.tp = 2}, program(-1), expected).verdict, Verdict::pass);
  EXPECT_EQ(wrong.verdict, Verdict::mismatch);
  EXPECT_THAT(wrong.first_divergence->message, HasSubstr("at index [1, 3, 2]"));
}

TEST(SchemeCauses, SayNoMoreThanHolds) {
  const VerifyReport all = verify_tap({.tp = 2}, {6, 60, 10, 140}, Placement::replicate(2, 2));
  const VerifyReport one_row = verify_tap({.tp = 2}, {3, 30, 10, 140}, Placement::replicate(2, 2));

  EXPECT_THAT(all.first_divergence->cause->evidence, HasSubstr("every value on ranks 0, 1 is 2 times"));
  EXPECT_THAT(all.first_divergence->cause->evidence, HasSubstr("the size of tp"));
  EXPECT_THAT(one_row.first_divergence->cause->evidence, HasSubstr("every wrong value on ranks 0, 1 is 2 times"));
  EXPECT_THAT(one_row.first_divergence->cause->evidence, Not(HasSubstr("the size of")));
}

TEST(SchemeCauses, NameARowThatIsInAllOnceTooOften) {
  const VerifyReport report = verify_tap({.tp = 2}, {4, 37, 6, 77}, Placement::replicate(2, 2));

  EXPECT_EQ(report.first_divergence->cause->name, "constant_offset");
  EXPECT_THAT(report.first_divergence->cause->evidence, HasSubstr("off by the same row, [1, 7]"));
}

TEST(SchemeStalls, ExplainWhatNeverCameAndNothingElse) {
  const auto program = [](double wrong) -> Cluster::Program {
    return [wrong](Rank& rank) -> Task<> {
      const Values half{1.5, 15, 2.5, 35}, late{3 + wrong, 30, 5, 70};
      if (wrong != 0) rank.tap<double>("late", view_of(late, 2), Placement::replicate(2, 2));
      if (rank.at().tp == 1) co_await rank.tp().barrier();
      rank.tap<double>("y", view_of(half, 2), Placement::partial_sum(2, 2, Axis::tp));
    };
  };
  ExpectedTaps expected = expected_rows();
  expected.add("late", 2, 2, kRight);

  const VerifyReport right = verify_scheme({.tp = 2}, program(0), expected);
  const VerifyReport wrong = verify_scheme({.tp = 2}, program(1), expected);

  EXPECT_EQ(right.verdict, Verdict::deadlock);
  EXPECT_FALSE(right.first_divergence.has_value());
  EXPECT_EQ(wrong.verdict, Verdict::deadlock);
  ASSERT_TRUE(wrong.first_divergence.has_value());
  EXPECT_EQ(wrong.first_divergence->tap, "late");
  EXPECT_THAT(wrong.notes,
              ElementsAre("late was wrong on rank 1 before the call that the run stalled in: it came first"));
}

TEST(SchemeSchedules, SayWhatDiffersAndUnderWhichSeed) {
  const auto runs = std::make_shared<std::atomic<int>>(0);
  const Cluster::Program steady =
      handing_in([](Rank& rank) { rank.tap<double>("y", view_of(kRight, 2), Placement::replicate(2, 2)); });

  const VerifyReport report = verify_scheme({.tp = 2}, steady, expected_rows(), {.schedules = 20});
  EXPECT_EQ(report.verdict, Verdict::pass);
  EXPECT_EQ(report.schedules, 20);
  EXPECT_FALSE(report.schedule_dependent.has_value());
  const Cluster::Program drifting = [runs](Rank& rank) -> Task<> {
    Values y = kRight;
    if (rank.at().tp == 0 && runs->fetch_add(1) == 3) y[3] += 1e-9;  // in the fourth run
    if (rank.at().tp == 0) rank.tap<double>("y", view_of(y, 2), Placement::replicate(2, 2));
    co_return;
  };
  const VerifyReport differs = verify_scheme({.tp = 2}, drifting, expected_rows(), {.bound = 0.5, .schedules = 20});

  ASSERT_EQ(differs.verdict, Verdict::mismatch);
  EXPECT_EQ(differs.schedule_dependent, 3U);
  EXPECT_EQ(differs.schedules, 3);
  EXPECT_EQ(differs.first_divergence->tap, "y");
  EXPECT_THAT(differs.first_divergence->ranks, ElementsAre(0));
  EXPECT_EQ(differs.first_divergence->cause->name, "schedule_dependent");
  EXPECT_THAT(differs.first_divergence->message, HasSubstr("rank 0 has 70.000000001 at row 1, column 1, and had 70"));
  EXPECT_EQ(differs.taps.front().verdict, TapVerdict::mismatch);
}

TEST(SchemeSchedules, NameTheSeedThatAProgramThrowsUnder) {
  const auto runs = std::make_shared<std::atomic<int>>(0);
  const auto program = handing_in([runs](Rank& rank) {
    rank.tap<double>("y", view_of(kRight, 2), Placement::replicate(2, 2));
    if (runs->fetch_add(1) == 2) throw std::out_of_range("no such token");
  });

  try {
    verify_scheme({.tp = 1}, program, expected_rows(), {.schedules = 5});
    FAIL();
  } catch (const RankError& error) {
    EXPECT_THAT(error.what(), HasSubstr("no such token (under the schedule of seed 2)"));
    EXPECT_THROW(error.rethrow_nested(), std::out_of_range);
  }
}

TEST(Digits, AreAsManyAsItTakes) {
  using Pair = std::pair<std::string, std::string>;
  EXPECT_EQ(told_apart(6, -5), Pair("6", "-5"));
  EXPECT_EQ(told_apart(0.3, 0.1 + 0.2), Pair("0.29999999999999999", "0.30000000000000004"));
  EXPECT_EQ(told_apart(2.4815, 2.4812, 3), Pair("2.482", "2.481"));
  const double next = std::numeric_limits<double>::max();
  EXPECT_NE(told_apart(next, std::nextafter(next, 0)).first, told_apart(next, std::nextafter(next, 0)).second);
}

}  // namespace
}  // namespace shardproof
