// A verification for people.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "emu/judge/report.h"
#include "emu/plan/runnable.h"
#include "emu/report/baseline.h"

namespace shardproof {
struct Generation;
}

namespace shardproof::tools {

/// The plan as it is run, with its rank table. `scale` says how it was made smaller ("auto", "full", ...).
std::string plan_text(const RunnablePlan& run, const Plan& original, const std::string& scale);

/// How much of the table of taps is shown.
enum class TapLines {
  one_a_kind,  ///< the worst of its layers
  all,
};

/// The tokens that came out, and those that are too close to call.
std::string generation_text(const Generation& generation);
/// Of what was proven last, the table of taps, routing and collectives; then the verdicts.
std::string proof_text(const Proof& proof, TapLines lines);

/// What was found in a dump: the same, and what of it was computed or could not be judged.
std::string dump_text(const VerifyReport& report, TapLines lines);

/// The table of `--all-reduce all`.
std::string orders_text(const std::vector<OrderReport>& orders);

/// What a comparison with a baseline found.
std::string baseline_text(const std::optional<BaselineChange>& change);

}  // namespace shardproof::tools
