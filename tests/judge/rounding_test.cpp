// The rounding verdict: right runs pass at any depth, close to their bounds, and what rounds more than it says does
// not.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <string>

#include "emu/judge/verify.h"
#include "emu/plan/batch.h"
#include "emu/plan/scale.h"
#include "emu/report/json.h"
#include "tests/support/shipped_plans.h"
#include "tests/support/small_plan.h"

namespace shardproof {
namespace {

using ::testing::HasSubstr;
using testing::small_plan;

constexpr ops::Format kNarrow[] = {ops::Format::bf16, ops::Format::fp16};
constexpr ops::Format kFloats[] = {ops::Format::fp32, ops::Format::bf16, ops::Format::fp16, ops::Format::fp64};

/// The worst share of its bound that an error of each kind of tap has.
std::map<std::string, double> shares(const VerifyReport& report) {
  std::map<std::string, double> worst;
  for (const TapReport& tap : report.taps) {
    if (tap.max_error == 0) continue;
    double& share = worst[tap.kind];
    share = std::max(share, tap.max_error / tap.bound);
  }
  return worst;
}

TEST(Rounding, ComesCloseToItsBoundInSixteenBitsForEveryLinearOp) {
  for (const char* name : testing::kShippedPlans) {
    const Plan plan = scaled(testing::shipped_plan(name), {});
    for (const ops::Format format : kNarrow) {
      const VerifyReport report = verify(plan, {.format = format});

      ASSERT_EQ(report.verdict, Verdict::pass) << name;
      const std::map<std::string, double> worst = shares(report);
      for (const char* kind :
           {"attention.q", "attention.k", "attention.v", "attention.partial", "attention.output", "moe.router_logits",
            "moe.expert_gate", "moe.expert_up", "moe.expert_output", "moe.output", "logits"}) {
        EXPECT_GT(worst.at(kind), 0.2) << name << " " << kind << " " << ops::to_string(format);
        EXPECT_LE(worst.at(kind), 1) << name << " " << kind;
      }
    }
  }
}

TEST(Rounding, PassesAtTheDepthOfTheDeepestMixtureOfExperts) {
  Plan plan = small_plan({.tp = 2, .dp = 2, .ep = 2, .etp = 2, .sp = true});
  const LayerSpec layer = plan.model.layers[0];
  plan.model.layers = LayerList(94, layer);
  for (const ops::Format format : kFloats) {
    const VerifyReport report = verify(plan, {.format = format});

    EXPECT_EQ(report.verdict, Verdict::pass) << ops::to_string(format);
    EXPECT_TRUE(report.problems.empty());
  }
}

TEST(Rounding, HoldsAWeightThatIsOneByNatureForNoLackOfData) {
  Plan plan = small_plan({.tp = 2, .edp = 2});
  plan.model.layers.edit([](LayerSpec& layer) {
    layer.feed_forward.num_experts = layer.feed_forward.top_k = 1;
    layer.feed_forward.norm_topk_prob = false;
  });

  for (const ops::Format format : {ops::Format::exact, ops::Format::bf16}) {
    EXPECT_EQ(verify(plan, {.format = format}).verdict, Verdict::pass) << ops::to_string(format);
  }
}

TEST(Rounding, HoldsAColumnThatAllTokensShareForNoLackOfData) {
  Plan plan = small_plan({.tp = 2, .edp = 2});
  plan.model.vocab_size = 2;
  plan.model.layers.edit([](LayerSpec& layer) { layer.feed_forward.num_experts = layer.feed_forward.top_k = 1; });
  plan.workload.lengths = {1, 1};
  int shared = 0;
  for (plan.workload.seed = 1; plan.workload.seed <= 12; ++plan.workload.seed) {
    const Batch batch(plan.workload, 2);
    shared += batch.tokens()[0] == batch.tokens()[1] ? 1 : 0;
    for (const ops::Format format : {ops::Format::exact, ops::Format::fp32}) {
      EXPECT_EQ(verify(plan, {.format = format}).verdict, Verdict::pass) << plan.workload.seed;
    }
  }
  EXPECT_GT(shared, 0);
  EXPECT_LT(shared, 12);
}

TEST(Rounding, IsTheSameReportWhateverTheScheduleAndTheThreads) {
  const Plan plan = small_plan({.tp = 2, .dp = 2, .ep = 2, .etp = 2});
  const auto taps = [&](const VerifyOptions& options) {
    std::string text;
    for (const TapReport& tap : verify(plan, options).taps) {
      text += fmt::format("{} {:a} {:a} {}\n", tap.name, tap.max_error, tap.bound, tap.bits);
    }
    return text;
  };

  const std::string first = taps({.format = ops::Format::bf16, .threads = 1});

  EXPECT_EQ(taps({.format = ops::Format::bf16, .threads = 2}), first);
  for (const std::uint64_t seed : {1U, 2U, 3U}) EXPECT_EQ(taps({.format = ops::Format::bf16, .schedule = seed}), first);
}

TEST(Rounding, TakesTheStatedFormatsOfAReductionAndNoNarrowerOnes) {
  const Plan plan = small_plan({.tp = 4, .edp = 4});
  for (const Algorithm algorithm : kAlgorithms) {
    const VerifyReport report = verify(plan, {.format = ops::Format::fp32,
                                              .all_reduce = algorithm,
                                              .wire = ops::Format::bf16,
                                              .accumulate = ops::Format::fp16});
    EXPECT_EQ(report.verdict, Verdict::pass) << to_string(algorithm);
  }
}

TEST(Amplification, IsReportedBesideTheVerdictAndGatesOnlyByItsLimit) {
  const Plan plan = small_plan({.tp = 2, .edp = 2});

  const Proof plain = prove(plan, {.format = ops::Format::bf16});
  const Proof measured = prove(plan, {.format = ops::Format::bf16, .amplification = true});
  const Proof limited = prove(plan, {.format = ops::Format::bf16, .max_amplification = 1e-3});

  EXPECT_FALSE(plain.amplification.has_value());
  EXPECT_EQ(measured.verdict(), Verdict::pass);
  ASSERT_TRUE(measured.amplification.has_value());
  EXPECT_GT(measured.amplification->worst()->unsharded, 0);
  EXPECT_THAT(to_json(measured), HasSubstr("\"amplification\": {"));
  EXPECT_EQ(limited.verdict(), Verdict::mismatch);
  EXPECT_EQ(limited.rounding->verdict, Verdict::pass);
}

}  // namespace
}  // namespace shardproof
