// One rank's projected prefill as PyTorch's profiler (Kineto) would have recorded it: what Holistic Trace Analysis
// reads.
//
// Kernels of computing on stream 7, of communicating on stream 13, called as NCCL's are; each with the launch that its
// correlation joins it to. What a rank waits for inside a call is part of the call's kernel, as on a GPU. One profiler
// step. The line with the rank stands by itself, with a blank after its colon: readers look for it there. Microseconds,
// to the nanosecond.
#pragma once

#include <string>

#include "emu/plan/plan.h"
#include "emu/timeline/projection.h"

namespace shardproof {

std::string kineto_trace(const PassTiming& pass, const Plan& plan, int rank);

}  // namespace shardproof
