#pragma once

#include <string_view>

#include "emu/run/fault.h"

namespace shardproof::testing {

/// Drops the all-reduce that follows an op of a layer, on every rank.
class DroppedAllReduce final : public FaultInjector {
 public:
  DroppedAllReduce(std::string_view op, int layer) : op_(op), layer_(layer) {}
  bool before_call(const Rank& rank, internal::Call& call) noexcept override {
    const OpRecord& last = rank.trace().ops.back();
    return !(call.operation == Operation::all_reduce && last.op == op_ && last.layer == layer_);
  }

 private:
  std::string_view op_;
  int layer_;
};

}  // namespace shardproof::testing
