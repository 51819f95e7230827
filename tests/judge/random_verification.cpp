#include "tests/judge/random_verification.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <iostream>
#include <iterator>
#include <string>

#include "emu/judge/verify.h"
#include "emu/plan/validate.h"
#include "tests/support/random_plan.h"

namespace shardproof::testing {
std::string explain(const VerifyReport& report) {
  std::string text = to_string(report.verdict);
  if (report.first_divergence) text += ": " + report.first_divergence->tap + ": " + report.first_divergence->message;
  for (const Problem& problem : report.problems) text += "\n" + problem.field + ": " + problem.message;
  return report.stall ? text + report.stall->text : text;
}

namespace {

/// In `exact` some taps of a small model may be vacuous by chance (a tensor of one element), and a window wider than
/// its sequences; agreement is what is asked here. In a float format nothing but an overflow is left open.
bool agrees(const VerifyReport& report) {
  if (report.verdict == Verdict::pass) return true;
  const bool left_open = report.verdict == Verdict::inconclusive && !report.first_divergence;
  if (report.format == ops::Format::exact) return left_open;
  return left_open && std::ranges::all_of(report.problems, [](const Problem& problem) {
           return problem.message.find("beyond the format's largest value") != std::string::npos;
         });
}

/// `draw(seed)` makes a plan.
template <class DrawPlan>
void verify_plans(int count, std::uint64_t first_seed, ops::Format format, const DrawPlan& draw) {
  std::cout << "seeds from " << first_seed << " (SHARDPROOF_TEST_SEED)\n";
  int conclusive = 0;
  for (int i = 0; i < count; ++i) {
    const Plan plan = draw(first_seed + static_cast<std::uint64_t>(i));
    ASSERT_TRUE(validate(plan).empty()) << describe(plan) << "\n" << validate(plan).front().message;

    const VerifyReport report = verify(plan, {.format = format, .require_features = false});

    ASSERT_TRUE(agrees(report)) << describe(plan) << "\n" << explain(report);
    conclusive += report.verdict == Verdict::pass ? 1 : 0;
  }
  EXPECT_GT(conclusive, count * 3 / 4);
}

}  // namespace

void verify_random_plans(int count, std::uint64_t first_seed, ops::Format format) {
  verify_plans(count, first_seed, format, [](std::uint64_t seed) { return random_plan(seed); });
}

void verify_random_family_plans(Drawn drawn, int count, std::uint64_t first_seed, ops::Format format) {
  verify_plans(count, first_seed, format, [&](std::uint64_t seed) { return random_family_plan(seed, drawn); });
}

void verify_random_serving_plans(int count, std::uint64_t first_seed, ops::Format format) {
  verify_plans(count, first_seed, format, [&](std::uint64_t seed) {
    const std::uint64_t turn = seed - first_seed;
    if (turn % 2 == 0) return serving(random_plan(seed, 16), seed);
    return serving(random_family_plan(seed, kDrawn[turn / 2 % std::size(kDrawn)], 16), seed);
  });
}

}  // namespace shardproof::testing
