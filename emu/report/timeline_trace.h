// A projected pass as a timeline that one can look at: Chrome's JSON, which Perfetto opens.
//
// A process for each rank ("rank 3 (tp1 dp0 pp0, ep3)"), in it a track of computing and one of communicating. Slices
// are kernels, calls, and what a rank waits for before a call; a flow leads from the rank that came last to each that
// waited for it, and from the sender of a message to its receiver. A counter has the rows that the rank's experts work
// on. Microseconds, to the nanosecond.
#pragma once

#include <string>

#include "emu/plan/plan.h"
#include "emu/timeline/projection.h"

namespace shardproof {

/// Both passes, one after the other: prefill, then the decode step.
std::string chrome_trace(const Projection& projection, const Plan& plan);

}  // namespace shardproof
