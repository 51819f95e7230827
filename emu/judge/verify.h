// The verifier: runs a plan on virtual ranks and holds every tap to the unsharded float64 reference.
//
// In `exact`, two runs of the same model on the same weights and tokens:
//   reference   float64, unsharded, written independently of the program (reference.h)
//   sharded     the program on the plan's ranks
// and every tap must be the reference's, bit for bit. In a float format one: the sharded one, each of whose taps is
// held to the float64 result of its own op on the inputs that the run itself had, within the forward error bound of the
// format, element by element (rounding/op_rules.h). Nothing accumulates with depth and nothing is statistical. A
// router's choice must be that of the run's own logits. Replicas must agree bit for bit, and the parts must cover the
// tensor.
//
// A verdict is inconclusive rather than wrong: when an expected tap is zero, constant or not finite; when a sum in
// `exact` may need more bits than a double has, from the tap that it goes into on (reference/budget.h); when a feature
// of the model, a window say, leaves every bit in `exact` as it would be without it; when a float format overflows.
//
// How far rounding carries from end to end is reported where it is asked for (amplification.h), beside the verdicts.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "collectives/algorithm.h"
#include "emu/judge/report.h"
#include "emu/plan/plan.h"
#include "emu/plan/runnable.h"
#include "emu/weights/store.h"
#include "ops/format.h"

namespace shardproof {

class FaultInjector;
class TapSink;
struct PreparedReference;

/// Where a verification stands.
struct Progress {
  const char* run = "";  ///< "reference", "unsharded", "sharded"
  int layer = 0;         ///< the layer that is complete
  int layers = 0;
};

struct VerifyOptions {
  ops::Format format = ops::Format::fp32;
  int threads = 0;                               ///< of a run's ranks; 0: as many as the process may use
  std::optional<std::uint64_t> schedule = {};    ///< run on one thread in the order this seed gives
  const WeightSource* weights = nullptr;         ///< default: GeneratedWeights of the workload's seed
  Algorithm all_reduce = Algorithm::rank_order;  ///< the order in which partial sums are added
  /// What partial sums are rounded to on the way and after each addition, in float formats; default: the run's scalar.
  std::optional<ops::Format> wire = {};
  std::optional<ops::Format> accumulate = {};
  TapSink* taps = nullptr;         ///< also gets the taps of the sharded run, inner ones where it takes them
  FaultInjector* fault = nullptr;  ///< injected into the sharded run only (mutation.h)
  /// The plan's reference in this format, made before (prepared.h); then `weights` is not used.
  const PreparedReference* prepared = nullptr;
  /// The same of `exact`, for the cause of a divergence in a float format.
  const PreparedReference* prepared_exact = nullptr;
  bool amplification = false;                    ///< prove() also measures rounding from end to end
  std::optional<double> max_amplification = {};  ///< and holds it to this limit
  bool diagnose = true;  ///< name the cause of a divergence, at the price of another run, in a float format of two
  /// In `exact`: a feature of the model that no token shows makes a verdict inconclusive
  /// (emu/diagnose/idle_features.h).
  bool require_features = true;
  std::function<void(const Progress&)> progress = {};  ///< called from any thread, one call at a time
};

/// Never throws for what the plan's run does wrong: that is the report.
VerifyReport verify(const RunnablePlan& plan, const VerifyOptions& options = {});
/// A plan that make_runnable() refuses gives Verdict::invalid, with its problems.
VerifyReport verify(const Plan& plan, const VerifyOptions& options = {});

/// First the algebra in `exact`, with no tolerance; then, when it is right and options.format is a float format, the
/// rounding in that; then, where it is asked for, its amplification. Several threads run what needs nothing of each
/// other side by side: the sharded run in the format, while the reference of the algebra is made.
Proof prove(const RunnablePlan& plan, const VerifyOptions& options = {});
/// As verify() does of a plan.
Proof prove(const Plan& plan, const VerifyOptions& options = {});

/// What prove() will need at its peak, in bytes: weights, expected taps and the ranks' activations. `threads` as
/// VerifyOptions has them.
double estimated_bytes(const Plan& plan, ops::Format format, int threads = 0);

}  // namespace shardproof
