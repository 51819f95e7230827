// The ops that one rank of a plan runs, each distinct shape once: a fold over its dry run.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "emu/plan/plan.h"
#include "emu/run/dry_run.h"
#include "emu/run/op.h"
#include "ops/format.h"
#include "tools/op_shape.h"

namespace shardproof::tools {

struct CountedOp {
  OpShape shape;
  std::vector<Op> names;   ///< that have the shape, in program order
  std::int64_t count = 0;  ///< in one pass, over all layers and microbatches
};

struct LeftOut {
  Op op{};
  std::int64_t count = 0;
  std::string why;
};

struct RankOps {
  std::vector<CountedOp> ops;  ///< in the order in which they come
  std::vector<LeftOut> left_out;
  std::int64_t calls = 0;  ///< of collectives, which are not among the ops
};

/// The plan must be valid and the rank one of its own. Throws TooManyRecords.
RankOps rank_ops(const Plan& plan, int rank, ops::Format format, DryPass pass);

}  // namespace shardproof::tools
