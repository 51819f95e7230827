// Where time goes: each second of each rank has one cause.
//
// Between two moments of a replay a rank is within the engine (overhead), computes an op, moves the data of a call,
// waits for the others of a call's group, or has nothing to do because of the pipeline (bubble: it waits for a stage,
// or is done before the last rank). Hence the causes of a span add up to it, on every rank.
#pragma once

#include <compare>
#include <cstdint>
#include <map>
#include <string>

#include "emu/timeline/clock.h"

namespace shardproof {

struct TimeCause {
  enum class Kind : std::int8_t { overhead, computing, moving, waiting, bubble };
  Kind kind{};
  Op op{};      ///< of computing
  Axis axis{};  ///< of moving and waiting; so the next
  Operation operation{};
  auto operator<=>(const TimeCause&) const = default;
};

/// "moe.expert computing", "all_to_all over ep", "waiting for others of ep (all_to_all)", "bubble", "engine".
std::string describe(const TimeCause& cause);

/// Seconds between begin and end, the mean over ranks.
using CauseSeconds = std::map<TimeCause, double>;
CauseSeconds seconds_by_cause(const Replay& replay, double begin, double end);

}  // namespace shardproof
