// A plan worked out: who holds which tokens and weights, and who does what when.
#pragma once

#include <vector>

#include "emu/plan/layout.h"
#include "emu/plan/timetable.h"
#include "emu/plan/token_map.h"

namespace shardproof {

struct Deployment {
  TokenMap tokens;
  std::vector<Layout> layouts;  ///< by rank
  Timetable timetable;
};

/// A forward over whole sequences. The plan must be valid (validate.h).
Deployment deploy(const ModelConfig& model, const Parallel& parallel, const Workload& workload);

}  // namespace shardproof
