// From outcomes to a verdict: bounds, amplification, the first divergence, and which router choices are ambiguous.
#pragma once

#include <optional>
#include <vector>

#include "emu/verify/expected_taps.h"
#include "emu/verify/report.h"
#include "emu/verify/tap_collector.h"

namespace shardproof {

/// The largest error that a tap of the sharded run may have, from the unsharded run's error of the same tap.
double error_bound(double unsharded_error, ops::Format format);

/// One entry for each expected tap. `unsharded` and `sharded` are in the order of `expected`.
std::vector<TapReport> report_taps(const ExpectedTaps& expected, const std::vector<TapOutcome>& unsharded,
                                   const std::vector<TapOutcome>& sharded, ops::Format format);

/// Judges the router choices of the sharded run. A choice within the bound is struck from the outcome's errors, so that
/// what is left there is a bug. Not for `exact`, where a differing choice is never excused.
RoutingReport judge_routing(const ExpectedTaps& expected, const std::vector<TapReport>& taps,
                            std::vector<TapOutcome>& sharded);

/// The first tap in program order that is wrong, if any.
std::optional<Divergence> first_divergence(const std::vector<TapReport>& taps, const std::vector<TapOutcome>& sharded);

/// Whether any router choice of the outcomes differs from the expected ones.
bool any_choice_differs(const ExpectedTaps& expected, const std::vector<TapOutcome>& outcomes);

}  // namespace shardproof
