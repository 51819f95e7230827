// What `shardproof search` prints for people.
#pragma once

#include <cstdint>
#include <string>

#include "emu/report/search_run.h"

namespace shardproof::tools {

/// What was searched; then the best `top` layouts, each with its reason, and those of the Pareto front behind them;
/// then where the plan that was given stands.
std::string search_text(const SearchRun& run, std::int64_t top);

}  // namespace shardproof::tools
