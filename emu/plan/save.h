// Writes a plan back as the JSON that load.h reads.
#pragma once

#include <string>

#include "emu/plan/plan.h"

namespace shardproof {

/// The plan with every default and derived value written out; parse_plan of it gives the same plan. `lengths` becomes
/// `batch` and `sequence` where all sequences are equally long.
std::string plan_json(const Plan& plan, int indent = 2);

}  // namespace shardproof
