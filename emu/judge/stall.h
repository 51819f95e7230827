// A run that did not end: its ranks wait for each other for ever, or called collectives that do not match.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "collectives/call.h"
#include "collectives/errors.h"
#include "collectives/wait_graph.h"
#include "emu/judge/cause.h"

namespace shardproof {

enum class StallKind {
  deadlock,             ///< no rank can run again, and some have not finished
  no_progress,          ///< ranks that are threads of their own have neither called nor returned for long: no proof
  collective_mismatch,  ///< calls of one rendezvous do not match, or one is wrong by itself
};

/// "deadlock", "no_progress", "collective_mismatch".
const char* to_string(StallKind kind);

struct Stall {
  StallKind kind = StallKind::deadlock;
  std::string text;                ///< the error's, whole
  std::optional<WaitGraph> graph;  ///< of a deadlock, or of no progress: who waits for whom
  std::vector<CallInfo> calls;     ///< of a mismatch: the two calls; of a call that is wrong by itself: that one
  Cause cause;                     ///< from the calls or the graph: call_sequence, call_arguments, split_sizes, ...
};

Stall stall_of(const CollectiveError& error);

/// The ranks in a call that does not end, ascending.
std::vector<int> stuck_ranks(const Stall& stall);

}  // namespace shardproof
