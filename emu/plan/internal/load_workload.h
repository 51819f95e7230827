// Reads the `workload` of a plan file (load.h).
#pragma once

#include <vector>

#include "emu/input/json_value.h"
#include "emu/input/problem.h"
#include "emu/plan/plan.h"

namespace shardproof {

/// `value` null: a sequence of 128 tokens for each replica. What does not fit together is for validate() to say.
Workload read_workload(const JsonValue* value, int dp, std::vector<Problem>& problems);

}  // namespace shardproof
