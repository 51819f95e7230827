// From outcomes to a verdict: bounds, amplification, the first divergence, and which router choices are ambiguous.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "emu/judge/collector.h"
#include "emu/judge/expected.h"
#include "emu/judge/report.h"

namespace shardproof {

/// The largest error that a tap of `values` elements may have in the sharded run (verify.h): `unsharded` is the worst
/// of its kind in the unsharded run so far, `width` the elements of a row of the first tap.
double error_bound(double unsharded, std::int64_t values, std::int64_t width, ops::Format format);

/// "layer.3.attention.q" -> "attention.q"; a name without a layer is its own kind.
std::string tap_kind(const std::string& name);

/// One entry for each expected tap. `unsharded` and `sharded` are in the order of `expected`.
std::vector<TapReport> report_taps(const ExpectedTaps& expected, const std::vector<TapOutcome>& unsharded,
                                   const std::vector<TapOutcome>& sharded, ops::Format format);

/// Judges the router choices of the sharded run. A choice within the bound is struck from the outcome's errors, so that
/// what is left there is a bug. In `exact` nothing is excused: the logits are the same bits and a tie goes to the lower
/// expert, so any other choice, or the same experts in another order, is a bug.
RoutingReport judge_routing(const ExpectedTaps& expected, const std::vector<TapReport>& taps,
                            std::vector<TapOutcome>& sharded, ops::Format format);

/// The first tap in program order that is wrong, if any.
std::optional<Divergence> first_divergence(const std::vector<TapReport>& taps, const std::vector<TapOutcome>& sharded);

/// Whether any router choice of the outcomes differs from the expected ones.
bool any_choice_differs(const ExpectedTaps& expected, const std::vector<TapOutcome>& outcomes);

}  // namespace shardproof
