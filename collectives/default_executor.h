// The executor that a run takes when nobody chooses one.
#pragma once

#if defined(__SANITIZE_THREAD__)
#include "collectives/thread_executor.h"
#else
#include "collectives/tbb_executor.h"
#endif

namespace shardproof {

#if defined(__SANITIZE_THREAD__)
/// oneTBB is shipped without instrumentation, and its reuse of task memory then looks like a race.
using DefaultExecutor = ThreadExecutor;
#else
using DefaultExecutor = TbbExecutor;
#endif

}  // namespace shardproof
