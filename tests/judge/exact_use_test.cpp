// What `exact` rests on: sums within the bits of a double, data that uses the grid, choices that cannot be ambiguous.
#include "emu/judge/exact_use.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cfenv>
#include <cmath>
#include <limits>
#include <stdexcept>

#include "emu/judge/collector.h"
#include "emu/judge/judge.h"
#include "emu/judge/prepared.h"
#include "emu/judge/verify.h"
#include "emu/reference/budget.h"
#include "emu/report/json.h"
#include "ops/linear.h"
#include "tests/judge/dropped_call.h"
#include "tests/support/small_plan.h"

namespace shardproof {
namespace {

using ::testing::Contains;
using testing::DroppedCall;
using ::testing::Each;
using testing::EditedWeights;
using ::testing::Field;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Le;
using ::testing::Not;
using ::testing::SizeIs;
using testing::small_plan;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

TEST(BitsNeeded, CountTheStepsOfTheBound) {
  using reference::bits_needed;

  EXPECT_EQ(bits_needed(0, 1), 0);
  EXPECT_EQ(bits_needed(1, 1), 1);
  EXPECT_EQ(bits_needed(4, 1), 3);
  EXPECT_EQ(bits_needed(7.5, 0.5), 4);
  EXPECT_EQ(bits_needed(0x1p53 - 1, 1), 53);
  EXPECT_EQ(bits_needed(0x1p53, 1), 54);
  EXPECT_EQ(bits_needed(kInfinity, 1), reference::kUnboundedBits);
  EXPECT_EQ(bits_needed(kNan, 1), reference::kUnboundedBits);
}

TEST(Magnitudes, KeepWhatIsNoNumber) {
  const std::vector<double> values{1, -3, kNan, 2, 5, 0};

  EXPECT_TRUE(std::isnan(reference::largest_magnitude(values)));
  EXPECT_TRUE(std::isnan(reference::largest_row_sum(values, 3)));
  EXPECT_EQ(reference::largest_magnitude(std::vector<double>{1, -3, 2}), 3);
  EXPECT_EQ(reference::largest_row_sum(std::vector<double>{1, -3, 2, 1, 1, 1, 1, 1, 0, 0}, 5), 8);
}

/// Whether x w^T of one row rounds anywhere, by the processor's own flag.
bool rounds(const ops::Matrix<double>& x, const ops::Matrix<double>& w) {
  ops::Matrix<double> y(1, 1);
  std::feclearexcept(FE_INEXACT);
  ops::linear<double>(x, w, y);
  return std::fetestexcept(FE_INEXACT) != 0;
}

int bits_of(const ops::Matrix<double>& x, const ops::Matrix<double>& w) {
  int needed = 0;
  const reference::SumRecorder recorder([&](const reference::TapName&, std::string_view, int bits) { needed = bits; });
  reference::Tensor row(1, x.cols());
  std::ranges::copy(x.span(), row.values.begin());
  recorder.linear({.name = "y"}, "x W^T", row, w.span());
  return needed;
}

TEST(BitBudget, HoldsExactlyTheLinearSumsThatNeverRound) {
  // Odd multiples of both steps, and an odd number of products, so that no bit of the sum is zero for certain.
  ops::Matrix<double> x(1, 61), w(1, 61);
  std::ranges::fill(x.span(), 0x1p14 - 0x1p-10);
  for (const int exponent : {5, 6}) {
    std::ranges::fill(w.span(), std::ldexp(1, exponent) - 0x1p-16);

    EXPECT_EQ(bits_of(x, w), 24 + 16 + exponent + 6);
    EXPECT_FALSE(rounds(x, w));
  }

  std::ranges::fill(w.span(), 0x1p8 - 0x1p-16);

  EXPECT_GT(bits_of(x, w), kSumBudget);
  EXPECT_TRUE(rounds(x, w));
}

TEST(BitBudget, RefusesWeightsOffTheGrid) {
  const reference::SumRecorder recorder([](const reference::TapName&, std::string_view, int) {});
  const reference::Tensor x(1, 2);

  EXPECT_THROW(recorder.linear({.name = "y"}, "x W^T", x, std::vector<double>{0.5, 0x1p-17}), std::invalid_argument);
}

TEST(BitBudget, IsReportedForEverySumOfEveryKindOfTap) {
  const VerifyReport report = verify(small_plan({.tp = 2, .dp = 2, .ep = 4}), {.format = ops::Format::exact});

  ASSERT_EQ(report.verdict, Verdict::pass);
  ASSERT_TRUE(report.exact_use.has_value());
  const ExactUse& use = *report.exact_use;
  EXPECT_THAT(use.sums, SizeIs(22));
  EXPECT_THAT(use.sums, Each(Field(&SumBits::bits, Le(kSumBudget))));
  for (const char* sum : {"x W^T", "q . k", "p over the keys", "p v over the keys", "x^2 over the width",
                          "x cos - y sin of RoPE", "1 + exp(-gate)", "h W^T of an MLP's down", "exp over the experts",
                          "weight * output over the experts of a token", "x + y"}) {
    EXPECT_THAT(use.sums, Contains(Field(&SumBits::sum, sum)));
  }
  EXPECT_EQ(use.widest->bits, std::ranges::max(use.sums, {}, &SumBits::bits).bits);
}

/// The generator's weights, those of one name multiplied.
EditedWeights scaled_weight(const Plan& plan, std::string name, double factor) {
  return {plan.workload.seed,
          [name = std::move(name), factor](const WeightSpec& spec, std::int64_t, std::int64_t, double value) {
            return spec.name == name ? value * factor : value;
          }};
}

constexpr const char* kWideWeight = "model.layers.1.self_attn.v_proj.weight";

TEST(BitBudget, MakesAPassInconclusiveAndNamesTheSum) {
  const Plan plan = small_plan({.tp = 2, .edp = 2});
  const EditedWeights weights = scaled_weight(plan, kWideWeight, 0x1p26);

  const VerifyReport report = verify(plan, {.format = ops::Format::exact, .weights = &weights});

  EXPECT_EQ(report.verdict, Verdict::inconclusive);
  ASSERT_THAT(report.problems, Not(IsEmpty()));
  EXPECT_EQ(report.problems.front().field, "layer.1.attention.v");
  EXPECT_THAT(report.problems.front().message, HasSubstr("its sum x W^T needs "));
  EXPECT_THAT(report.problems.front().message, HasSubstr("a double has 53"));
  EXPECT_THAT(report.problems.front().message, HasSubstr("use smaller weights"));
}

TEST(BitBudget, LetsADifferenceBeforeTheWideSumStand) {
  const Plan plan = small_plan({.tp = 2, .edp = 2});
  const EditedWeights weights = scaled_weight(plan, kWideWeight, 0x1p26);
  DroppedCall before(Op::attention_reduce, 0);
  DroppedCall after(Op::attention_reduce, 1);

  const VerifyReport certain = verify(plan, {.format = ops::Format::exact, .weights = &weights, .fault = &before});
  const VerifyReport uncertain = verify(plan, {.format = ops::Format::exact, .weights = &weights, .fault = &after});

  EXPECT_EQ(certain.verdict, Verdict::mismatch);
  EXPECT_EQ(certain.first_divergence->tap, "layer.0.attention.output");
  EXPECT_EQ(uncertain.verdict, Verdict::inconclusive);
}

TEST(Verify, IsInconclusiveWhenTheReferenceIsNotFinite) {
  const Plan plan = small_plan({.tp = 2, .edp = 2});
  const EditedWeights weights = scaled_weight(plan, kWideWeight, kNan);

  for (const ops::Format format : {ops::Format::exact, ops::Format::fp32}) {
    const VerifyReport report = verify(plan, {.format = format, .weights = &weights});

    EXPECT_EQ(report.verdict, Verdict::inconclusive) << ops::to_string(format);
    EXPECT_THAT(report.problems, Contains(Field(&Problem::message, HasSubstr("not finite"))));
  }
}

TEST(Verify, IsInconclusiveWhenTheFormatOverflows) {
  const Plan plan = small_plan({.tp = 2, .edp = 2});
  const EditedWeights weights = scaled_weight(plan, kWideWeight, 0x1p16);

  const VerifyReport narrow = verify(plan, {.format = ops::Format::fp16, .weights = &weights});
  const VerifyReport wide = verify(plan, {.format = ops::Format::fp32, .weights = &weights});

  EXPECT_EQ(narrow.verdict, Verdict::inconclusive);
  EXPECT_THAT(narrow.problems,
              Contains(Field(&Problem::message, HasSubstr("beyond the format's largest value, 65504"))));
  EXPECT_EQ(wide.verdict, Verdict::pass);
}

TEST(Verify, RefusesAReferenceOfAnotherFormat) {
  const Plan plan = small_plan({.tp = 2, .edp = 2});
  const PreparedReference prepared = prepare_reference(plan, ops::Format::fp64);

  EXPECT_THROW(verify(plan, {.format = ops::Format::exact, .prepared = &prepared}), std::invalid_argument);
}

TEST(GridUse, CountsWhatIsThere) {
  ExpectedTaps expected;
  expected.add(TapId{.layer = 0, .kind = TapKind::attention_q}, 2, 4, {0, 0, 0, 0.5, -0.5, 0x1p-10, 0.5, 1});
  expected.add(TapId{.layer = 1, .kind = TapKind::attention_q}, 1, 4, {1, 2, 3, 4});
  expected.add("far", 1, 3, {0, 0x1p30, 0x1p40});

  const ExactUse use = exact_use(expected, {});

  ASSERT_THAT(use.grid, SizeIs(2));
  EXPECT_EQ(use.grid[0].tap, "attention.q");
  EXPECT_EQ(use.grid[0].tensors, 2);
  EXPECT_EQ(use.grid[0].least_nonzero, 0.625);
  EXPECT_EQ(use.grid[0].most_nonzero, 1);
  EXPECT_EQ(use.grid[0].distinct, 4);
  EXPECT_EQ(use.grid[0].bits, 13);
  EXPECT_EQ(use.grid[1].distinct, 3);
  EXPECT_EQ(use.grid[1].bits, 51);
}

TEST(GridUse, WarnsOfTapsThatSayLittle) {
  ExpectedTaps expected;
  std::vector<double> two_valued(512);
  for (std::size_t i = 0; i < two_valued.size(); ++i) two_valued[i] = i % 3 == 0 ? 1 : -1;
  std::vector<double> sparse(100);
  sparse[7] = 1;
  expected.add("two_valued", 16, 32, two_valued);
  expected.add(TapId{.layer = 0, .kind = TapKind::moe_output}, 10, 10, sparse);
  expected.add(TapId{.layer = 1, .kind = TapKind::moe_output}, 10, 10, sparse);

  const ExactUse use = exact_use(expected, {});

  ASSERT_THAT(use.weak, SizeIs(2));
  EXPECT_EQ(use.weak[0].field, "two_valued");
  EXPECT_THAT(use.weak[0].message, HasSubstr("512 values take 2 different"));
  EXPECT_EQ(use.weak[1].field, "layer.0.moe.output");
  EXPECT_THAT(use.weak[1].message, HasSubstr("only 1.0 %"));
}

TEST(GridUse, WarnsOfWeightsThatCollapse) {
  const Plan plan = small_plan({.tp = 2, .edp = 2});
  const EditedWeights weights = scaled_weight(plan, "model.layers.2.self_attn.v_proj.weight", 0x1p-11);

  const VerifyReport report = verify(plan, {.format = ops::Format::exact, .weights = &weights});

  ASSERT_TRUE(report.exact_use.has_value());
  EXPECT_THAT(report.exact_use->weak, Contains(Field(&Problem::field, "layer.2.attention.v")));
  EXPECT_THAT(to_json(report), HasSubstr("that they agree says little"));
}

TEST(ExactRouting, GivesATieToTheLowerExpert) {
  const Plan plan = small_plan({.tp = 2, .dp = 2, .ep = 4});
  // Experts 1 and 2 have the same router row, so that their logits are equal for every token.
  const GeneratedWeights generated(plan.workload.seed);
  const EditedWeights weights(plan.workload.seed,
                              [&](const WeightSpec& spec, std::int64_t row, std::int64_t col, double value) {
                                if (!spec.name.ends_with("gate.weight") || row != 2) return value;
                                double twin = 0;
                                generated.read(spec, {1, 1}, {col, 1}, {&twin, 1, 1});
                                return twin;
                              });
  const PreparedReference reference = prepare_reference(plan, ops::Format::exact, &weights);

  const VerifyReport report = verify(plan, {.format = ops::Format::exact, .prepared = &reference});

  EXPECT_EQ(report.verdict, Verdict::pass);
  int ties = 0;
  for (const ExpectedTap& tap : reference.expected.all()) {
    if (!tap.traits.ids) continue;
    for (std::int64_t row = 0; row < tap.rows; ++row) {
      const bool one = tap.at(row, 0) == 1 || tap.at(row, 1) == 1;
      const bool two = tap.at(row, 0) == 2 || tap.at(row, 1) == 2;
      EXPECT_FALSE(two && !one) << tap.name << " row " << row;
      ties += one ? 1 : 0;
    }
  }
  EXPECT_GT(ties, 0);
}

/// A run that chose these of four experts, two of which have equal logits, where the reference chose 0 and 1.
std::optional<Divergence> judged_choice(std::int32_t first, std::int32_t second) {
  ExpectedTaps expected;
  expected.add(TapId{.layer = 0, .kind = TapKind::router_choice}, 1, 2, {0, 1}, {.ids = true});
  const Mesh mesh(Parallel{});
  TapCollector collector(expected, mesh, {.ordered_ids = true});
  ops::Matrix<std::int32_t> choice(1, 2);
  choice(0, 0) = first;
  choice(0, 1) = second;
  collector.tap(GlobalRank{0}, {.id = {.layer = 0, .kind = TapKind::router_choice}}, Placement::replicate(1, 2),
                std::as_const(choice).view());
  const std::vector<TapOutcome> outcomes = collector.finish();
  VerifyReport report;
  judge({.expected = expected, .sums = {}, .outcomes = outcomes, .problems = {}, .unexpected = {}, .remedy = {}},
        report);
  return report.first_divergence;
}

TEST(ExactRouting, NeverExcusesAnotherChoiceAmongEqualLogits) {
  EXPECT_FALSE(judged_choice(0, 1).has_value());
  for (const auto& [first, second] : {std::pair{0, 2}, std::pair{1, 0}, std::pair{0, 0}}) {
    const auto divergence = judged_choice(first, second);
    ASSERT_TRUE(divergence.has_value());
    EXPECT_EQ(divergence->tap, "layer.0.moe.router_choice");
  }
}

}  // namespace
}  // namespace shardproof
