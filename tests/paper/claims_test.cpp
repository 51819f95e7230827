#include "emu/paper/claims.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "emu/paper/expression.h"
#include "emu/paper/figures.h"
#include "emu/timeline/projection.h"
#include "tests/support/shipped_plans.h"

namespace shardproof {
namespace {

using ::testing::HasSubstr;
using V = ClaimVerdict;

struct Expected {
  const char* text;  ///< the claim's words begin so
  ClaimVerdict verdict;
  std::string arithmetic;
};

/// On the hardware that the plan's claims are judged on.
Projection projected(const std::string& name) {
  const Plan plan = testing::shipped_plan(name);
  return project(plan, choose_hardware(built_in_hardware(), plan.hardware, {}),
                 {format_of(plan.model), weight_format_of(plan.model)});
}

/// Every claim of the plan that begins with the words comes out so.
void expect_claims(const char* name, std::initializer_list<Expected> expected) {
  const Plan plan = testing::shipped_plan(name);
  const Quantities quantities(plan);
  std::vector<Problem> problems;
  const std::vector<JudgedClaim> judged = judge_claims(quantities, problems);
  for (const Problem& problem : problems) ADD_FAILURE() << problem.field << ": " << problem.message;
  EXPECT_EQ(judged.size(), plan.claims.size());
  for (const Expected& row : expected) {
    bool found = false;
    for (const JudgedClaim& claim : judged) {
      if (!claim.claim.text.starts_with(row.text)) continue;
      found = true;
      EXPECT_STREQ(to_string(claim.verdict), to_string(row.verdict)) << claim.claim.text << ": " << claim.arithmetic;
      EXPECT_THAT(claim.arithmetic, HasSubstr(row.arithmetic)) << claim.claim.text;
      EXPECT_EQ(claim.arithmetic.find('\n'), std::string::npos);
    }
    EXPECT_TRUE(found) << name << " has no claim \"" << row.text << "\"";
  }
}

TEST(Claims, OfDocument000) {
  expect_claims("tp4_ep4_pp4",
                {{"16 GPUs for TP4", V::holds_if, "EP is folded onto TP"},
                 {"16 GPUs for TP4", V::holds_if, "ep 4 = 64"},
                 {"8 layers of 4 experts", V::holds, "8 layers * 4 experts = 32"},
                 {"2.5 modules", V::holds, "2 layers * (1/4 attention + 1/1 experts) = 2.5; 40 modules / 16 GPUs"},
                 {"variance", V::holds, "variance 0"},
                 {"latency falls", V::fails, "shortens no single request"},
                 {"GPU utilisation", V::fails, "bubble 3/11, at most 72.73 %"},
                 {"GPU utilisation", V::fails, "more than 27 microbatches"},
                 {"throughput rises 3x", V::fails, "experts sliced over etp 4: prefill 1.0"},
                 {"throughput rises 3x", V::fails, "experts replicated, edp 4"},
                 {"every expert is active", V::holds_if, "layer 0: 4 of 4 experts serve a token"},
                 {"every expert is active", V::holds_if, "tokens_per_expert of `shardproof verify`"},
                 {"2 parameters + 4", V::holds, "= 16"},
                 {"about 2 GB of parameters", V::holds, "2.081 GB"},
                 {"about 8 GB of Adam", V::holds, "8.322 GB"},
                 {"gradients", V::fails, "2.081 GB"},
                 {"fp32 master", V::fails, "4.161 GB"},
                 {"under 32 GB", V::holds, "master weights"}});
}

TEST(Claims, OfDocument001) {
  expect_claims("tp2_ep4_pp2_dp2", {{"8 GPUs for TP2", V::holds_if, "tp 2 * cp 1 * dp 2 * pp 2 = 8"},
                                    {"8 GPUs for TP2", V::holds_if, "folded onto TP and DP"},
                                    {"64 experts", V::holds, "64 experts of a layer / ep 4 = 16"},
                                    {"16 layers over 2", V::holds, "16 layers / pp 2 = 8"},
                                    {"8 modules", V::holds, "pp 2 * tp 2 * dp 2 = 8"},
                                    {"stage 0 on GPUs 0-1", V::fails, "4 of 8 GPUs are mapped"}});
}

TEST(Claims, OfDocuments002And004) {
  const std::string step = duration(projected("ep64_tp2").seconds_per_output_token().value) + " (";
  expect_claims("ep64_tp2", {{"128 GPUs for EP64", V::holds, "ep 64 * tp 2 * pp 1 = 128"},
                             {"1 expert per GPU", V::holds, "each split over etp 2 GPUs"},
                             {"8 experts per GPU", V::holds, "16 layers * 1 experts / etp 2 = 8"},
                             {"1,024 expert", V::holds, "16 layers * 64 experts = 1024"},
                             {"embedding on GPUs 0-1", V::fails, "32000 x 1024"},
                             {"about 69 MB", V::fails, "attention 67.11 MB, experts 201.3 MB"},
                             {"0.02 % of the compute", V::fails, "of the peak in prefill"},
                             {"450,000", V::holds_if, "prompt tokens are meant; of output tokens, "},
                             {"450,000", V::holds_if, "link bandwidth, link latency"},
                             {"under 2 ms", V::holds_if, "a decode step of 64 sequences takes " + step},
                             {"under 2 ms", V::holds_if, "holds if the time measured lies where it does within"}});
  expect_claims("ep16_tp2_pp4", {{"pipeline stages begin", V::holds, "tp 2 * cp 1 * dp 16 = 32"}});
}

TEST(Claims, OfDocument003) {
  const std::string prefill = duration(projected("ep4_tp2_pp2_sp").seconds_to_first_token().value) + ",";
  expect_claims("ep4_tp2_pp2_sp", {{"10B", V::fails, "452.3 M"},
                                   {"16 = EP4", V::holds, "ep 4 * tp 2 * pp 2 = 16"},
                                   {"DP 8", V::fails, "16 GPUs / (tp 2 * cp 1 * pp 2) = 4"},
                                   {"87.5 % fewer", V::holds, "0.875"},
                                   {"EP16 leaves", V::fails, "23.44 % at T=2, 99.98 % at T=64"},
                                   {"8 heads", V::holds, "16 heads / tp 2 = 8"},
                                   {"8 layers", V::holds, "16 layers / pp 2 = 8"},
                                   {"4 experts", V::holds, "16 experts of a layer / ep 4 = 4"},
                                   {"at least 30 GB", V::fails, "weights 75.25 MB + reserved key-value cache 2.684 GB"},
                                   {"320 tokens/ms = 16", V::holds, "16 * 20 = 320"},
                                   {"320 tokens/ms in all", V::holds_if, "663552 prompt tokens in "},
                                   {"first token", V::holds, "prefill of 663552 tokens takes " + prefill},
                                   {"first token", V::holds, "uncalibrated"},
                                   {"at least 15 tokens/ms", V::holds_if, "on 16 GPUs = "}});
  const Plan plan = testing::shipped_plan("ep4_tp2_pp2_sp");
  EXPECT_NEAR(Quantities(plan).evaluate("kv_cache_bytes")->value, 42.9e9, 0.1e9);
}

TEST(Claims, OfThePlansThatAreHereLeaveNothingUnverified) {
  for (const char* name : testing::kShippedPlans) {
    const Plan plan = testing::shipped_plan(name);
    std::vector<Problem> problems;
    for (const JudgedClaim& judged : judge_claims(Quantities(plan), problems)) {
      EXPECT_NE(judged.verdict, V::unverified) << name << ": " << judged.claim.text << ": " << judged.arithmetic;
    }
  }
}

TEST(Claims, AreJudgedByTheWholeIntervalOfAProjection) {
  Plan plan = testing::shipped_plan("ep4_tp2_pp2_sp");
  const QuantityValue token = *Quantities(plan).evaluate("seconds_per_output_token");
  const auto verdict = [&](const char* relation, double stated) {
    plan.claims = {{.quantity = "seconds_per_output_token", .relation = relation, .stated = stated, .unit = "s"}};
    std::vector<Problem> problems;
    return judge_claims(Quantities(plan), problems).at(0).verdict;
  };
  ASSERT_TRUE(token.interval);
  ASSERT_LT(token.low, token.value);

  EXPECT_EQ(verdict("<=", token.high * 1.01), V::holds);
  EXPECT_EQ(verdict("<=", token.value), V::holds_if);
  EXPECT_EQ(verdict("<=", token.low * 0.99), V::fails);
  EXPECT_EQ(verdict(">=", token.low * 0.99), V::holds);
  EXPECT_EQ(verdict(">=", token.value), V::holds_if);
  EXPECT_EQ(verdict(">=", token.high * 1.01), V::fails);
  EXPECT_EQ(verdict("~", token.value), V::holds_if);
  EXPECT_EQ(verdict("~", token.high * 2), V::fails);
  EXPECT_EQ(verdict("=", token.low / 2), V::fails);
}

TEST(Claims, SayOnWhichCardsTheyHoldWhereAPlanLeavesItsHardwareOpen) {
  Plan plan = testing::shipped_plan("tp4_ep4_pp4");
  const QuantityValue token = *Quantities(plan).evaluate("seconds_per_output_token");
  double fastest = token.value, slowest = token.value;
  for (const auto& [name, seconds] : token.by_hardware) {
    fastest = std::min(fastest, seconds);
    slowest = std::max(slowest, seconds);
  }
  ASSERT_LT(1.2 * fastest, slowest);
  plan.claims = {{.quantity = "seconds_per_output_token", .relation = "<=", .stated = 0.999 * slowest, .unit = "s"}};
  std::vector<Problem> problems;

  const JudgedClaim judged = judge_claims(Quantities(plan), problems).at(0);

  EXPECT_EQ(judged.verdict, V::holds_if);
  EXPECT_THAT(judged.arithmetic, HasSubstr("b200"));
  EXPECT_THAT(judged.arithmetic, HasSubstr("and not with a100"));
}

TEST(Claims, AreProblemsWhenTheyCannotBeRead) {
  Plan plan = testing::shipped_plan("tp4_ep4_pp4");
  plan.claims = {{.quantity = "wrld", .relation = "="}, {.quantity = "world", .relation = "=", .stated = 16}};
  std::vector<Problem> problems;

  const std::vector<JudgedClaim> judged = judge_claims(Quantities(plan), problems);

  EXPECT_EQ(judged.size(), 1u);
  ASSERT_EQ(problems.size(), 1u);
  EXPECT_EQ(problems[0].field, "claims[0].quantity");
}

TEST(Claims, CompareTheRankThatDecides) {
  Plan plan = testing::shipped_plan("tp4_ep4_pp4");
  const auto verdict = [&](const char* relation, double stated) {
    plan.claims = {{.quantity = "weight_bytes_per_gpu", .relation = relation, .stated = stated, .unit = "GB"}};
    std::vector<Problem> problems;
    return judge_claims(Quantities(plan), problems).at(0).verdict;
  };

  EXPECT_EQ(verdict("<=", 2.1), V::fails);
  EXPECT_EQ(verdict("<=", 2.22), V::holds);
  EXPECT_EQ(verdict(">=", 2.1), V::fails);
  EXPECT_EQ(verdict(">=", 2.08), V::holds);
  EXPECT_EQ(verdict("~", 2.1), V::holds);
  EXPECT_EQ(verdict("~", 1.8), V::fails);
  EXPECT_EQ(verdict("=", 2.1), V::fails);
}

TEST(Expression, ComputesWithQuantities) {
  const Plan plan = testing::shipped_plan("ep64_tp2");
  const Quantities quantities(plan);
  const auto value = [&](const char* text) {
    const ExpressionValue result = evaluate_expression(text, quantities);
    EXPECT_EQ(result.error, "") << text;
    return result.value.value;
  };

  EXPECT_EQ(value("2 + 3 * 4 - 6 / 2"), 11);
  EXPECT_EQ(value("(2 + 3) * 4"), 20);
  EXPECT_EQ(value("world/ep"), 2);
  EXPECT_DOUBLE_EQ(value("active_expert_share(1) * experts"), 2);
  const ExpressionValue rate = evaluate_expression("tokens_per_second / world", quantities);
  EXPECT_TRUE(rate.value.interval);
  EXPECT_NEAR(rate.value.low, quantities.evaluate("tokens_per_second_per_gpu")->low, 1e-6 * rate.value.low);
  EXPECT_LT(rate.value.low, rate.value.high);
  EXPECT_DOUBLE_EQ(evaluate_expression("weight_bytes_per_gpu / 2", quantities).value.max, 168068096.0);
}

TEST(Expression, RefusesWhatItCannotRead) {
  const Plan plan = testing::shipped_plan("tp4_ep4_pp4");
  const Quantities quantities(plan);
  for (const std::string& text :
       {std::string(""), std::string("1 +"), std::string("(1"), std::string("1)"), std::string("1 / 0"),
        std::string("nothing"), std::string("active_expert_share"), std::string("world(1)"), std::string("1e999"),
        std::string("a\nb"), std::string("weight_bytes_per_gpu / adam_bytes_per_gpu"), std::string(400, '('),
        std::string(600, '1')}) {
    EXPECT_NE(evaluate_expression(text, quantities).error, "") << text.substr(0, 40);
  }
}

}  // namespace
}  // namespace shardproof
