// The executor for a number of threads, or for a schedule.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>

#include "collectives/executor.h"

namespace shardproof {

/// A DefaultExecutor of `threads` threads; with 0, of as many as the process may use (available_threads). With a
/// schedule: a SeededExecutor, one thread in the order of that seed whatever `threads` says.
std::unique_ptr<Executor> make_executor(int threads, std::optional<std::uint64_t> schedule = {});

}  // namespace shardproof
