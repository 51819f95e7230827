// A search as it is reported: what was asked, what was found, and what was proven of it.
#pragma once

#include <optional>
#include <vector>

#include "emu/judge/report.h"
#include "emu/search/search.h"

namespace shardproof {

struct SearchRun {
  SearchSpace space;
  SearchOptions options;
  SearchReport report;
  std::optional<Placed> given;  ///< the plan that was searched from
  std::vector<Verdict> proven;  ///< of the best ones, in order
};

}  // namespace shardproof
