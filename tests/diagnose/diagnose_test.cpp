// Each signature on synthetic tensors: recognised where it is, and not where it is not.
#include "emu/diagnose/diagnose.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <iterator>
#include <numeric>

#include "emu/diagnose/recompute.h"
#include "emu/diagnose/signatures.h"
#include "tests/diagnose/family_plans.h"
#include "tests/support/small_plan.h"

namespace shardproof {
namespace {

using ::testing::ElementsAre;
using ::testing::Optional;

/// [rows, cols], no two values in a simple relation.
ExpectedTaps tensor(std::int64_t rows, std::int64_t cols) {
  std::vector<double> values(static_cast<std::size_t>(rows * cols));
  for (std::size_t i = 0; i < values.size(); ++i)
    values[i] = static_cast<double>((i * i * 37 + i * 11 + 5) % 211) - 105;
  ExpectedTaps taps;
  taps.add("t", rows, cols, std::move(values));
  return taps;
}

/// One rank's part, of all rows and the given columns, each value what `change` makes of it.
template <class Change>
TapPart part_of(const ExpectedTap& tap, int rank, Range cols, const Change& change) {
  TapPart part{.tap = tap.id.value_or(TapId{}),
               .rank = rank,
               .placement = {tap.rows, tap.cols, {0, tap.rows}, cols, {}},
               .values = {}};
  for (std::int64_t row = 0; row < tap.rows; ++row) {
    for (std::int64_t col = cols.begin; col < cols.end(); ++col) part.values.push_back(change(row, col));
  }
  return part;
}

TEST(WrongRows, AreThoseWithADifferingElementOnly) {
  const ExpectedTaps taps = tensor(4, 6);
  const ExpectedTap& tap = taps.all().front();
  const std::vector<TapPart> parts{part_of(tap, 3, {2, 4}, [&](std::int64_t row, std::int64_t col) {
    return tap.at(row, col) + (row == 2 && col == 5 ? 1 : 0);
  })};

  const std::vector<WrongRow> wrong = wrong_rows(tap, parts, 0);

  ASSERT_EQ(wrong.size(), 1U);
  EXPECT_EQ(wrong[0].rank, 3);
  EXPECT_EQ(wrong[0].row, 2);
  EXPECT_EQ(wrong[0].col, 2);
  EXPECT_EQ(wrong[0].got.back(), wrong[0].want.back() + 1);
}

TEST(Signatures, RecogniseAConstantRatio) {
  const ExpectedTaps taps = tensor(3, 5);
  const ExpectedTap& tap = taps.all().front();
  const std::vector<TapPart> parts{
      part_of(tap, 0, {0, 5}, [&](std::int64_t row, std::int64_t col) { return 4 * tap.at(row, col); })};
  const std::vector<WrongRow> wrong = wrong_rows(tap, parts, 0);

  EXPECT_THAT(constant_ratio(wrong, std::vector<double>{2, 4, 0.5}, 0), Optional(4.0));
  EXPECT_EQ(constant_ratio(wrong, std::vector<double>{2, 0.5}, 0), std::nullopt);
  EXPECT_EQ(constant_offset(wrong, 0), std::nullopt);
}

TEST(Signatures, RecogniseAConstantOffset) {
  const ExpectedTaps taps = tensor(3, 5);
  const ExpectedTap& tap = taps.all().front();
  const std::vector<TapPart> parts{
      part_of(tap, 0, {0, 5}, [&](std::int64_t row, std::int64_t col) { return tap.at(row, col) + 1.5; })};
  const std::vector<WrongRow> wrong = wrong_rows(tap, parts, 0);

  EXPECT_THAT(constant_offset(wrong, 0), Optional(1.5));
  EXPECT_EQ(constant_ratio(wrong, std::vector<double>{2, 3}, 0), std::nullopt);
}

TEST(Signatures, ReplicasOfOneNumberHaveNoConstantOffset) {
  const ExpectedTaps taps = tensor(1, 1);
  const ExpectedTap& tap = taps.all().front();
  std::vector<TapPart> parts;
  for (const int rank : {0, 1, 2}) {
    parts.push_back(
        part_of(tap, rank, {0, 1}, [&](std::int64_t row, std::int64_t col) { return 4 * tap.at(row, col); }));
  }
  const std::vector<WrongRow> wrong = wrong_rows(tap, parts, 0);

  ASSERT_EQ(wrong.size(), 3U);
  EXPECT_EQ(constant_offset(wrong, 0), std::nullopt);
  EXPECT_THAT(constant_ratio(wrong, std::vector<double>{2, 4}, 0), Optional(4.0));
}

TEST(Signatures, RecogniseZeros) {
  const ExpectedTaps taps = tensor(3, 5);
  const ExpectedTap& tap = taps.all().front();
  const std::vector<TapPart> parts{part_of(tap, 0, {0, 5}, [](std::int64_t, std::int64_t) { return 0.0; })};

  EXPECT_TRUE(all_zero(wrong_rows(tap, parts, 0)));
  EXPECT_FALSE(all_zero({}));
}

TEST(Signatures, FindTheRowsThatOthersHold) {
  const ExpectedTaps taps = tensor(5, 4);
  const ExpectedTap& tap = taps.all().front();
  const std::vector<TapPart> parts{
      part_of(tap, 0, {0, 4}, [&](std::int64_t row, std::int64_t col) { return tap.at(4 - row, col); })};

  const auto sources = row_sources(wrong_rows(tap, parts, 0), tap, 0);

  // The middle row is where it belongs.
  EXPECT_THAT(sources, Optional(ElementsAre(4, 3, 1, 0)));
}

TEST(Signatures, FindTheHeadsThatOthersHold) {
  const ExpectedTaps taps = tensor(3, 8);
  const ExpectedTap& tap = taps.all().front();
  // The rank holds columns 2..5, heads 1 and 2 of width 2, in the other order.
  const std::vector<TapPart> parts{part_of(
      tap, 1, {2, 4}, [&](std::int64_t row, std::int64_t col) { return tap.at(row, col < 4 ? col + 2 : col - 2); })};
  const std::vector<WrongRow> wrong = wrong_rows(tap, parts, 0);

  EXPECT_THAT(block_sources(wrong, tap, 2, 0), Optional(ElementsAre(0, 2, 1, 3)));
  EXPECT_EQ(row_sources(wrong, tap, 0), std::nullopt);
}

/// Four partial sums of one row each, and what a rank gets under a fault.
struct FourPartialSums {
  std::vector<std::vector<double>> values{{1, 7, -3}, {10, -20, 5}, {100, 3, 44}, {-1000, 12, 9}};

  std::optional<PartialSumFault> diagnose(const PartialSumFault& fault, const std::vector<int>& ranks) const {
    std::vector<WrongRow> rows;
    for (const int rank : ranks) {
      rows.push_back({.rank = rank, .row = 0, .col = 0, .got = faulty_sum(fault, values, rank), .want = {}});
    }
    return partial_sum_fault(rows,
                             {.members = 4,
                              .partial = [&](const WrongRow&, int m) { return values[static_cast<std::size_t>(m)]; },
                              .own = [](const WrongRow& row) { return row.rank; },
                              .finish = [](std::vector<double>&) {}},
                             0);
  }
};

TEST(Signatures, TellApartWhatHappenedToASum) {
  const FourPartialSums partials;

  for (const PartialSumFault& fault : partial_sum_faults(4)) {
    const std::optional<PartialSumFault> found = partials.diagnose(fault, {0, 1, 2, 3});

    ASSERT_TRUE(found.has_value());
    EXPECT_EQ(found->kind, fault.kind);
    EXPECT_EQ(found->member, fault.member);
    EXPECT_EQ(found->other, fault.other);
    EXPECT_EQ(found->size, fault.size);
  }
}

TEST(Signatures, DoNotTakeRandomValuesForASum) {
  const FourPartialSums partials;
  const std::vector<WrongRow> rows{{.rank = 0, .row = 0, .col = 0, .got = {17, 4, 2}, .want = {}}};

  const auto fault = partial_sum_fault(
      rows,
      {.members = 4,
       .partial = [&](const WrongRow&, int m) { return partials.values[static_cast<std::size_t>(m)]; },
       .own = [](const WrongRow&) { return 0; },
       .finish = [](std::vector<double>&) {}},
      0);

  EXPECT_EQ(fault, std::nullopt);
}

Plan short_plan() {
  Plan plan = testing::small_plan({.tp = 2, .edp = 2});
  plan.workload = {.lengths = {5}, .microbatches = 1, .seed = 4};
  return plan;
}

TEST(Diagnose, SaysUnknownWhenNoSignatureFits) {
  const Plan plan = short_plan();
  const PreparedReference reference = prepare_reference(plan, ops::Format::exact);
  const ExpectedTaps& taps = reference.expected;

  for (const ExpectedTap& tap : taps.all()) {
    if (tap.traits.ids) continue;
    const std::vector<TapPart> parts{part_of(tap, 0, {0, tap.cols}, [&](std::int64_t row, std::int64_t col) {
      return tap.at(row, col) + (row == 3 ? static_cast<double>(col * col + 1) / 8 : 0);
    })};
    const Divergence divergence{.tap = tap.name};
    if (tap.cols < 2) continue;

    const Cause cause =
        diagnose({.plan = plan, .reference = reference, .divergence = divergence, .parts = parts, .norm_parts = {}});

    EXPECT_EQ(cause.name, "unknown") << tap.name << ": " << cause.evidence;
  }
}

TEST(Diagnose, TakesAnAbsentNormForAMissingLayerByItsVerdictAlone) {
  const Plan plan = short_plan();
  const PreparedReference reference = prepare_reference(plan, ops::Format::exact);
  const ExpectedTap& tap =
      reference.expected.all().at(static_cast<std::size_t>(reference.expected.find("layer.1.attention.norm")));
  // What there is of it is right.
  const std::vector<TapPart> parts{
      part_of(tap, 0, {0, tap.cols}, [&](std::int64_t row, std::int64_t col) { return tap.at(row, col); })};
  const auto cause_of = [&](TapVerdict verdict, const char* message) {
    const Divergence divergence{.tap = tap.name, .verdict = verdict, .message = message};
    return diagnose({.plan = plan, .reference = reference, .divergence = divergence, .parts = parts, .norm_parts = {}});
  };

  EXPECT_EQ(cause_of(TapVerdict::missing, "half of it").name, "layer_missing");
  EXPECT_EQ(cause_of(TapVerdict::mismatch, "no rank is told from its replicas").name, "replicas_differ");
}

TEST(Diagnose, DoesNotRecomputeExpertsThatAreTooLargeForIt) {
  Plan plan = short_plan();
  const PreparedReference reference = prepare_reference(plan, ops::Format::exact);
  const ExpectedTap& tap =
      reference.expected.all().at(static_cast<std::size_t>(reference.expected.find("layer.1.moe.output")));
  const std::vector<TapPart> parts{part_of(tap, 0, {0, tap.cols}, [&](std::int64_t row, std::int64_t col) {
    return tap.at(row, col) + static_cast<double>(col * col + 1) / 8;
  })};
  const Divergence divergence{.tap = tap.name};
  plan.model.layers.kind(0).feed_forward.intermediate_size = 1 << 30;

  const Cause cause =
      diagnose({.plan = plan, .reference = reference, .divergence = divergence, .parts = parts, .norm_parts = {}});

  EXPECT_EQ(cause.name, "unknown");
  EXPECT_NE(cause.evidence.find("--scale"), std::string::npos) << cause.evidence;
}

// Of a float dump each row is held to its own scale, a hypothesis to the largest: the first wrong row may be right
// enough for any.
TEST(Diagnosis, NamesAHeadThatIsWrongWhereTheFirstWrongRowIsBarelySo) {
  const Plan plan = testing::gpt_oss();
  const PreparedReference reference = prepare_whole_model(plan, ops::Format::fp32);
  Recompute model(plan, reference);
  const ExpectedTap& tap = model.tap(1, TapKind::attention_context);
  const AttentionSpec& spec = plan.model.layers[1].attention;
  const auto last = std::prev(tap.scale.end());
  const std::int64_t barely = std::min_element(tap.scale.begin(), last) - tap.scale.begin();
  const double own = tap.scale[static_cast<std::size_t>(barely)], largest = *std::ranges::max_element(tap.scale);
  ASSERT_LT(own, 0.9 * largest);
  const std::vector<TapPart> parts{
      part_of(tap, 0, {0, tap.cols / plan.parallel.tp}, [&](std::int64_t row, std::int64_t col) {
        if (row < barely) return tap.at(row, col);
        if (row == barely) return tap.at(row, col) + 1e-3 * (own + largest) / 2;
        const std::int64_t head = col / spec.value_dim(), position = model.tokens().position(row);
        const HeadPair next{.query = head, .key_value = head / (spec.heads / spec.kv_heads), .sink = head + 1};
        return model.attend(1, row, Range{row - position, position + 1},
                            next)[static_cast<std::size_t>(col % spec.value_dim())];
      })};
  const Divergence divergence{.tap = tap.name};

  const Cause cause = diagnose({plan, reference, divergence, parts, {}});

  EXPECT_EQ(cause.name, "sinks_of_another_head") << cause.evidence;
  EXPECT_EQ(cause.evidence, "query head 0 attends with the sink of head 1 on rank 0");
}

}  // namespace
}  // namespace shardproof
