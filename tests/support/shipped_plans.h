// The plans of plans/, for tests.
#pragma once

#include <gtest/gtest.h>

#include <random>
#include <string>

#include "emu/plan/load.h"
#include "emu/plan/plan.h"
#include "tests/support/generate.h"

namespace shardproof::testing {

inline constexpr const char* kShippedPlans[] = {"tp4_ep4_pp4",       "tp2_ep4_pp2_dp2", "ep64_tp2",
                                                "ep16_tp2_pp4",      "ep4_tp2_pp2_sp",  "cp4_tp2_ep4",
                                                "tp8_ep8_all_reduce"};

inline Plan shipped_plan(const std::string& name) {
  LoadedPlan loaded = load_plan(std::string(SHARDPROOF_SOURCE_DIR) + "/plans/" + name + ".json");
  for (const Problem& problem : loaded.problems) ADD_FAILURE() << problem.field << ": " << problem.message;
  return loaded.plan.value_or(Plan{});
}

/// A generated plan that can be run.
inline Plan random_runnable_plan(std::mt19937_64& random, int max_world) {
  Plan plan = random_valid_plan(random, max_world);
  if (plan.model.hidden_size % 2 == 0) plan.parallel.cp_comm = CpComm::all_gather;
  return plan;
}

}  // namespace shardproof::testing
