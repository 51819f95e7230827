// Steps of every algorithm, and the bandwidth factors of nccl-tests; in traffic.cpp also the bytes, which records hold.
// Written there once; records, benchmarks and reports call these. ALGORITHMS.md explains them.
//
// P ranks, N elements, S bytes: of the vector for all_reduce, reduce and broadcast, of the whole (all parts together)
// for all_gather, reduce_scatter and all_to_all (there: of what one rank sends, its own part included).
#pragma once

#include <cstdint>

#include "collectives/algorithm.h"
#include "collectives/call.h"
#include "collectives/types.h"

namespace shardproof {

/// busbw = factor * algbw, with algbw = S / time: what a link must carry at least, whatever the algorithm.
double bus_bandwidth_factor(Operation operation, int ranks);

/// Communication steps on the critical path. `nodes` is read by hierarchical only.
int steps(Operation operation, Algorithm algorithm, int ranks, int nodes = 1);

}  // namespace shardproof
