// The verifier: runs a plan on virtual ranks and holds every tap to the unsharded float64 reference.
//
// Three runs of the same model on the same weights and tokens:
//   reference   float64, unsharded, written independently of the program (reference.h)
//   unsharded   the program on one rank, in the run's format: how much this format rounds
//   sharded     the program on the plan's ranks, in the run's format
// A tap of the sharded run passes when the error of its worst row is at most
//   bound = max(kAmplificationBound * (1 + kSmallSample / sqrt(N)) * e, kRoundoffFloor * u, chance)
//   chance = min(kUsualRatio * kSmallByChance ^ (-1 / D) * e, kLargestByChance)
// e the unsharded run's worst error of that kind of tap in this or an earlier layer, N the values of the tap, u the
// unit roundoff of the format; in `exact` the bound is zero. The fewer errors were seen, the likelier all of them are
// small by chance. In a badly conditioned row D errors are independent, at most N and the width of the first tap (the
// hidden size): all of them are below a fraction f of their usual size with a chance of f^D. Replicas must agree bit
// for bit, and the parts must cover the tensor.
//
// A verdict is inconclusive rather than wrong: when an expected tap is zero, constant or not finite; when a sum in
// `exact` may need more bits than a double has, from the tap that it goes into on (reference/budget.h); when a float
// format is so far off on one rank that its bound would let anything pass.
//
// Router choices that differ from the reference's: when any does, the unsharded and the sharded run are repeated with
// the reference's choices replayed (ids and slots; weights stay the run's own), so that each layer is judged on an
// equal history. A choice that differs then is a bug when the reference's logits of the experts in question lie further
// apart than twice the bound of the router's logits; within, rounding may decide, and the choice counts as ambiguous.
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
struct PreparedReference;

inline constexpr double kAmplificationBound = 4;
inline constexpr double kSmallSample = 8;
inline constexpr double kUsualRatio = 3;         ///< that the errors of two right runs in a row rarely exceed
inline constexpr double kSmallByChance = 1e-7;   ///< how likely a right run may be called wrong for it
inline constexpr double kLargestByChance = 0.5;  ///< of a row's scale
inline constexpr double kRoundoffFloor = 16;
/// From here on a bound lets anything pass: a row of zeros is off by about this much. The verdict is inconclusive.
inline constexpr double kLargestBound = 1;

/// Where a verification stands.
struct Progress {
  const char* run = "";  ///< "reference", "unsharded", "sharded"
  int layer = 0;         ///< the layer that is complete
  int layers = 0;
};

struct VerifyOptions {
  ops::Format format = ops::Format::fp32;
  int threads = 0;                               ///< of a run's ranks; 0: as many as the process may use
  std::optional<std::uint64_t> schedule;         ///< run on one thread in the order this seed gives
  const WeightSource* weights = nullptr;         ///< default: GeneratedWeights of the workload's seed
  Algorithm all_reduce = Algorithm::rank_order;  ///< the order in which partial sums are added
  /// What partial sums are rounded to on the way and after each addition, in float formats; default: the run's scalar.
  std::optional<ops::Format> wire;
  std::optional<ops::Format> accumulate;
  FaultInjector* fault = nullptr;  ///< injected into the sharded run only (mutation.h)
  /// The plan's reference in this format, made before (prepared.h); then `weights` is not used.
  const PreparedReference* prepared = nullptr;
  bool diagnose = true;                           ///< name the cause of a divergence, at the price of another run
  std::function<void(const Progress&)> progress;  ///< called from any thread, one call at a time
};

/// Never throws for what the plan's run does wrong: that is the report.
VerifyReport verify(const RunnablePlan& plan, const VerifyOptions& options = {});
/// A plan that make_runnable() refuses gives Verdict::invalid, with its problems.
VerifyReport verify(const Plan& plan, const VerifyOptions& options = {});

/// First the algebra in `exact`, with no tolerance; then, when it is right and options.format is a float format, the
/// rounding in that. Several threads run what needs nothing of each other side by side: the two references, then the
/// unsharded and the sharded run in the format.
Proof prove(const RunnablePlan& plan, const VerifyOptions& options = {});
/// As verify() does of a plan.
Proof prove(const Plan& plan, const VerifyOptions& options = {});

/// What prove() will need at its peak, in bytes: weights, expected taps and the ranks' activations.
double estimated_bytes(const Plan& plan, ops::Format format);

}  // namespace shardproof
