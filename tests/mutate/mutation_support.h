// Plans to mutate, and what went wrong, for messages.
#pragma once

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <string>
#include <vector>

#include "emu/judge/verify.h"
#include "emu/mutate/mutation.h"
#include "tests/support/random_plan.h"

namespace shardproof::testing {

/// So many generated plans that pass: a tensor that proves nothing (all zero, say) proves nothing of a mutation either.
/// Of a handful of values none need leave its bound by one rounding more.
inline std::vector<Plan> mutable_plans(int count, int max_world) {
  std::vector<Plan> plans;
  for (std::uint64_t seed = property_seed(); static_cast<int>(plans.size()) < count; ++seed) {
    Plan plan = random_plan(seed, max_world);
    if (plan.world() < 2 || plan.workload.tokens() * plan.model.hidden_size < 32) continue;
    const VerifyReport clean = verify(plan, {.format = ops::Format::exact, .diagnose = false});
    if (clean.verdict == Verdict::pass) plans.push_back(std::move(plan));
  }
  return plans;
}

/// The mutations that were not detected, placed and named rightly.
inline std::string report_of(const MutationScore& score) {
  std::string text;
  for (const MutationResult& result : score.results) {
    const Mutation& m = result.mutation;
    if (result.outcome == MutationResult::Outcome::equivalent || (result.tap_right && result.cause_right)) continue;
    text += fmt::format("{}: layer {} ranks {}: {} at '{}' (expected '{}'): {} (expected {}): {}\n", m.kind, m.layer,
                        fmt::join(m.ranks, " "),
                        result.outcome == MutationResult::Outcome::missed ? "MISSED" : to_string(result.verdict),
                        result.tap, m.tap, result.cause.name, fmt::join(m.causes, "|"), result.cause.evidence);
  }
  return text.empty() ? text : describe(score.plan) + "\n" + text;
}

}  // namespace shardproof::testing
