// Requests over time: an engine's steps, one after another, each as long as the virtual clock says.
//
// Every data-parallel replica schedules its own requests (engine.h); all run a step together, and what has come when it
// begins is in it. Where nobody has anything to do, time passes until the next request. A step is a dry run of what the
// replicas run in it, replayed on the hardware; steps of equal shape are replayed once. The shape of a replica's step
// is each chunk of a prompt, to the token, and how many sequences take a token each, with the mean of what they have
// cached to kCacheGrain tokens. A step of such tokens alone is as long as one of several in a row (a pipeline is full),
// any other takes until its last rank is done.
//
// Time to the first token: from the arrival (the begin of the step that `arrival` names) to the end of the step that
// ends the prompt, and what the engine adds to a request. Time per output token: from the first token to the last, over
// the tokens after the first.
#pragma once

#include <cstdint>
#include <vector>

#include "emu/plan/plan.h"
#include "emu/timeline/projection.h"

namespace shardproof {

constexpr std::int64_t kCacheGrain = 64;

struct RequestTime {
  double arrival = 0;       ///< seconds
  double first_token = -1;  ///< when it is there, without what the engine adds to a request
  double last_token = -1;   ///< when the last of the output is there
  double tokens_after_first = 0;
};

struct RequestTimes {
  std::vector<RequestTime> requests;  ///< by sequence
  std::int64_t steps = 0;
  std::int64_t shapes = 0;  ///< steps that were replayed
  double seconds = 0;       ///< of the last step's end
  double busy = 0;          ///< of these, in steps
  double output_tokens = 0;
  HardwareChoice hardware;

  /// Of that share of the requests (0.99), the one with the longest time.
  Interval first_token(double share) const;
  /// Of the requests with two tokens out or more; zeros where there is none.
  Interval output_token(double share) const;
  /// Output tokens of all requests, over the seconds.
  Interval tokens_per_second() const;
};

/// The plan must be valid, and serve requests. Throws TooManyRecords.
RequestTimes time_requests(const Plan& plan, const HardwareChoice& hardware, const ProjectionOptions& options);

}  // namespace shardproof
