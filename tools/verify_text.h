// A verification for people.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "emu/judge/report.h"
#include "emu/report/baseline.h"

namespace shardproof::tools {

/// The plan with its rank table. `scale` says how the run was made smaller ("auto", "full", ...).
std::string plan_text(const Plan& plan, const Plan& original, const std::string& scale);

/// The table of taps (one line a kind, the worst of its layers; every tap when `all_taps`), routing, collectives,
/// verdict.
std::string report_text(const VerifyReport& report, bool all_taps);

/// The table of `--all-reduce all`.
std::string orders_text(const std::vector<OrderReport>& orders);

/// What a comparison with a baseline found.
std::string baseline_text(const std::optional<BaselineChange>& change);

}  // namespace shardproof::tools
