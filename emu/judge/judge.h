// From outcomes to verdicts: bounds, which router choices are ambiguous, one verdict a tap and one on the run.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "emu/judge/collector.h"
#include "emu/judge/exact_use.h"
#include "emu/judge/expected.h"
#include "emu/judge/report.h"

namespace shardproof {

/// What the bound of a tap goes by.
struct ErrorsSeen {
  double unsharded = 0;     ///< the worst error of its kind of tap in the unsharded run so far
  std::int64_t values = 0;  ///< elements of the tap
  std::int64_t width = 0;   ///< elements of a row of the first tap
};

/// The largest error that a tap may have in the sharded run (verify.h).
double error_bound(const ErrorsSeen& seen, ops::Format format);

/// The bounds of all expected taps; zero for ids, which have no size of error.
std::vector<double> error_bounds(const ExpectedTaps& expected, std::span<const TapOutcome> unsharded,
                                 ops::Format format);

/// Judges the router choices of the sharded run. A choice within the bound is struck from the outcome's errors, so that
/// what is left there is a bug. In `exact` nothing is excused: the logits are the same bits and a tie goes to the lower
/// expert, so any other choice, or the same experts in another order, is a bug.
RoutingReport judge_routing(const ExpectedTaps& expected, std::span<const double> bounds,
                            std::vector<TapOutcome>& sharded, ops::Format format);

/// Whether any router choice of the outcomes differs from the expected ones.
bool any_choice_differs(const ExpectedTaps& expected, std::span<const TapOutcome> outcomes);

/// What a verdict rests on: runs that have ended, and what they are held to. What is given for each tap is in the order
/// of `expected`.
struct Evidence {
  const ExpectedTaps& expected;
  ops::Format format = ops::Format::exact;
  std::span<const SumBits> sums;  ///< in `exact`: what the reference's sums need
  std::span<const double> bounds;
  bool bounds_hold = true;                ///< false when the unsharded run, which they go by, did not end
  std::span<const TapOutcome> unsharded;  ///< what amplification is measured by
  std::span<const TapOutcome> sharded;
  std::vector<Problem> problems;            ///< of the runs themselves: what a rank threw
  std::span<const std::string> unexpected;  ///< taps that nothing is expected of
  std::string_view remedy;                  ///< what would make the reference prove something, after "; "
};

/// Fills in the report's taps, first divergence, problems and verdict. A tap that differs is a mismatch, or missing;
/// where the difference may have another reason than a wrong run (from the first sum that its budget does not hold, or
/// the first value that is not finite), and where agreement would prove nothing, it is inconclusive. A missing tap
/// stays missing. The run is a mismatch when its first divergence proves that; it passes when every tap does and there
/// is no problem.
void judge(const Evidence& evidence, VerifyReport& report);

}  // namespace shardproof
