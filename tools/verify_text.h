// A verification for people.
#pragma once

#include <string>

#include "emu/verify/report.h"

namespace shardproof::tools {

/// The plan with its rank table. `scale` says how the run was made smaller ("auto", "full", ...).
std::string plan_text(const Plan& plan, const Plan& original, const std::string& scale);

/// The table of taps (one line a kind, the worst of its layers; every tap when `all_taps`), routing, collectives,
/// verdict.
std::string report_text(const VerifyReport& report, bool all_taps);

}  // namespace shardproof::tools
