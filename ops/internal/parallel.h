// The loop that ThreadScope spreads over threads.
#pragma once

#include <functional>

#include "ops/matrix.h"

namespace shardproof::ops {

/// Calls f(begin, end) for ranges that cover [0, count), each but the last a multiple of `grain` long; one call for all
/// when the thread has no ThreadScope or there is but one grain.
void parallel_for(Index count, Index grain, const std::function<void(Index, Index)>& f);

}  // namespace shardproof::ops
