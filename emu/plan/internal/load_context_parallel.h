// How keys and values come over cp, as a plan's `parallel` says.
#pragma once

#include <vector>

#include "emu/input/object_reader.h"
#include "emu/plan/parallel.h"

namespace shardproof {

/// Of `cp_comm` and `cp_sizes`; the degrees are read.
void read_cp_comm(ObjectReader& reader, Parallel& parallel, std::vector<Problem>& problems);

}  // namespace shardproof
