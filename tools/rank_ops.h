// The ops that one rank of a plan runs, each distinct shape once: a fold over its dry run.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "emu/plan/plan.h"
#include "emu/run/dry_run.h"
#include "emu/run/op.h"
#include "ops/cost.h"
#include "ops/format.h"

namespace shardproof::tools {

/// The function of ops/ that computes it.
enum class Kernel { embed, rms_norm, linear, rope, attention, add, route, gather_rows, expert, combine };
const char* to_string(Kernel kernel);

/// What a call of a kernel depends on; what does not apply is 0.
struct OpShape {
  Kernel kernel{};
  std::int64_t rows = 0;                ///< of the result
  std::int64_t cols = 0;                ///< of the result
  std::int64_t inner = 0;               ///< that a product sums over; an expert's intermediate size; the table's rows;
                                        ///< the experts to choose from; the slots of a token
  std::int64_t head_dim = 0;            ///< of rope and attention
  std::int64_t kv_heads = 0;            ///< of attention
  bool normalise = false;               ///< of route
  std::vector<std::int64_t> sequences;  ///< lengths, of attention

  friend bool operator==(const OpShape&, const OpShape&) = default;
};

/// "m 256, n 2048, k 8192".
std::string describe(const OpShape& shape);
/// Floating-point operations and bytes, from the op's own formula.
ops::Cost cost_of(const OpShape& shape, int bytes_per_element);

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
