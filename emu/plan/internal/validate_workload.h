// The rules of a plan's workload (validate.h).
#pragma once

#include <vector>

#include "emu/input/problem.h"
#include "emu/plan/plan.h"

namespace shardproof {

/// What is wrong with the sequences or requests; `degrees`: the plan's are at least 1, and what is laid out by them is
/// looked at too.
void validate_workload(const Plan& plan, bool degrees, std::vector<Problem>& problems);

/// Of a plan whose model is sound.
void validate_routing(const Plan& plan, std::vector<Problem>& problems);

}  // namespace shardproof
