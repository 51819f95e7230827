// A projected pass as a timeline that one can look at: Chrome's JSON, which Perfetto opens.
//
// A process for each rank ("rank 3 (tp1 dp0 pp0, ep3)"), in it a track of computing, one of communicating, and one for
// each axis over which something is hidden: the part of a call for which its rank did something else. Slices are
// kernels, calls (what is exposed of them), and what a rank waits for before a call; a flow leads from the rank that
// came last to each that waited for it, and from the sender of a message to its receiver. Counters have the rows that
// each of the rank's experts works on, and the memory that weights and cached keys and values take. Microseconds, to
// the nanosecond.
#pragma once

#include <string>

#include "emu/plan/plan.h"
#include "emu/timeline/projection.h"

namespace shardproof {

/// Both passes, one after the other: prefill, then the decode step.
std::string chrome_trace(const Projection& projection, const Plan& plan);

}  // namespace shardproof
