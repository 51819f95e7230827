// What people read of a verification.
#include "tools/verify_text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "tests/support/small_plan.h"

namespace shardproof::tools {
namespace {

using ::testing::ContainsRegex;
using ::testing::HasSubstr;
using ::testing::Not;

Proof proof_with_a_missing_tap() {
  Proof proof;
  proof.algebra.verdict = Verdict::mismatch;
  proof.algebra.format = ops::Format::exact;
  proof.algebra.taps = {{.name = "layer.0.attention.q", .kind = "attention.q", .verdict = TapVerdict::pass},
                        {.name = "layer.1.attention.q",
                         .kind = "attention.q",
                         .verdict = TapVerdict::missing,
                         .max_error = std::numeric_limits<double>::infinity()}};
  return proof;
}

TEST(ProofText, SaysThatATapIsMissing) {
  const std::string text = proof_text(proof_with_a_missing_tap(), TapLines::all);

  EXPECT_THAT(text, ContainsRegex("layer.0.attention.q +1 +0 +0 +0 +equal"));
  EXPECT_THAT(text, ContainsRegex("layer.1.attention.q +1 +missing +0 +- +-"));
}

TEST(ProofText, ShowsAKindAsItsWorstTapIs) {
  const std::string text = proof_text(proof_with_a_missing_tap(), TapLines::one_a_kind);

  EXPECT_THAT(text, ContainsRegex(" attention.q +2 +missing .*layer.1.attention.q"));
  EXPECT_THAT(text, Not(HasSubstr("layer.0")));
}

TEST(ProofText, ShowsTheAlgebraBeforeTheRounding) {
  Proof proof;
  proof.algebra.verdict = Verdict::pass;
  proof.algebra.format = ops::Format::exact;
  proof.rounding = VerifyReport{.verdict = Verdict::pass, .format = ops::Format::bf16};

  const std::string text = proof_text(proof, TapLines::all);

  EXPECT_LT(text.find("algebra   pass"), text.find("rounding   pass"));
}

TEST(PlanText, SaysWhatTheLoaderSaysOfTheModel) {
  Plan noted = testing::small_plan({.tp = 2, .ep = 2});
  noted.model_notes = {"2 layers that predict further tokens are left out"};
  const RunnablePlan run = make_runnable(testing::small_plan({.tp = 2, .ep = 2})).plan.value();

  EXPECT_THAT(plan_text(run, noted, "auto"), HasSubstr("  2 layers that predict further tokens are left out\n"));
  EXPECT_THAT(plan_text(run, run.plan(), "auto"), Not(HasSubstr("left out")));
}

TEST(OrdersText, HasALineForEachOrder) {
  const OrderReport ring{.algorithm = Algorithm::ring, .proof = proof_with_a_missing_tap()};

  EXPECT_THAT(orders_text({ring}), ContainsRegex("ring +mismatch +- +exact"));
}

}  // namespace
}  // namespace shardproof::tools
