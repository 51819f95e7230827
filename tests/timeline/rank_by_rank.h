// An oracle for the virtual clock: every rank by itself, no classes, round after round until nobody can go on.
#pragma once

#include <vector>

#include "emu/plan/mesh.h"
#include "emu/run/dry_run.h"
#include "emu/timeline/clock.h"

namespace shardproof::testing {

/// When each rank is done with one pass. Records as they stand, experts one by one a kernel of the layer.
std::vector<double> rank_ends(const DryTraces& traces, const Mesh& mesh, const ClockOptions& options);

}  // namespace shardproof::testing
