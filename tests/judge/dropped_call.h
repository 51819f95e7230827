// A fault that tests of the judge share.
#pragma once

#include "emu/run/fault.h"
#include "emu/run/op.h"

namespace shardproof::testing {

/// Drops a call of a layer, on every rank.
class DroppedCall final : public FaultInjector {
 public:
  DroppedCall(Op op, int layer) : op_(op), layer_(layer) {}
  bool before_call(const Rank& /*rank*/, internal::Call& call) noexcept override {
    return !(is_call_of(call.tag, op_) && call.tag.layer == layer_);
  }

 private:
  Op op_;
  int layer_;
};

}  // namespace shardproof::testing
