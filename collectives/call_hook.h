// A seam for injecting faults: sees every call of every rank, and may change it, drop it, or send it to another group.
//
// Programs and collectives know nothing of it; a World without a hook pays two tests of a pointer per call.
#pragma once

#include "collectives/call.h"
#include "collectives/communicator.h"

namespace shardproof {

/// Called from the rank's own thread of execution, for different ranks at once. Must not throw.
class CallHook {
 public:
  virtual ~CallHook() = default;

  /// Before the rank arrives. Returns whether the call takes place; if not, the rank goes on at once, its output is as
  /// it was, and nothing is recorded. `call` may be changed: its buffers and counts, or its group (see redirect).
  virtual bool before(GlobalRank rank, internal::Call& call) noexcept = 0;
  /// After the call has taken place or was dropped, before the rank goes on. `call.out` may be written.
  virtual void after(GlobalRank rank, internal::Call& call) noexcept = 0;
};

/// Makes the call one of another group that the same rank belongs to; its tag stays.
void redirect(internal::Call& call, const Communicator& to);

}  // namespace shardproof
