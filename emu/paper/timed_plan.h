// A plan's passes in virtual time, on all the hardware that it may mean.
//
// What a plan states of its GPUs holds; what it leaves open is filled from a preset, and a claim is judged over every
// preset that could fill it. A plan that leaves nothing open but what engines add is timed once a preset too: their
// links and launches differ.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "emu/plan/plan.h"
#include "emu/timeline/projection.h"

namespace shardproof {

/// What is kept of a projection: figures, no replay.
struct TimedOn {
  std::string filled_from;  ///< the preset that fills what is open
  Interval first_token;     ///< of the last request
  Interval output_token;
  Interval prompt_rate;  ///< tokens of all GPUs in a second
  Interval output_rate;
  double prefill_mfu = 0, decode_mfu = 0;
  double prefill_seconds = 0, decode_seconds = 0;
  std::string prefill_shares;  ///< "computing 51.5 %, communicating 30.3 %, waiting 1.0 %, bubble 17.2 %"
  std::string decode_shares;
};

struct TimedPlan {
  /// Why nothing can be said; empty when something can.
  std::string unknown;
  HardwareChoice hardware;
  /// The first is the one that `hardware` names; the others fill what is open from the other presets.
  std::vector<TimedOn> on;
};

/// The plan must be valid.
TimedPlan timed_plan(const Plan& plan);

/// Timed when somebody first asks, once. Not for several threads at a time.
class LazyTimedPlan {
 public:
  explicit LazyTimedPlan(const Plan& plan) : plan_(plan) {}
  const TimedPlan& get() const;

 private:
  const Plan& plan_;
  mutable std::unique_ptr<const TimedPlan> timed_;
};

}  // namespace shardproof
