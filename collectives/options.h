// Options of the collectives. Trivially copyable and destructible, so that they may be written in place
// inside a co_await expression.
#pragma once

#include <span>
#include <string_view>

#include "collectives/algorithm.h"
#include "collectives/types.h"

namespace shardproof {

/// A numeric format as a rounding given by the caller: this folder knows no formats. Values stay float or double in
/// memory; after rounding they are values of the format. The default rounds nothing: the element type itself.
struct Rounding {
  const char* name = "native";                        ///< for messages; two ranks must agree on it
  int bytes = 0;                                      ///< bytes of an element on the wire; 0: sizeof the element type
  void (*round_float)(std::span<float>) = nullptr;    ///< in place; null: no rounding
  void (*round_double)(std::span<double>) = nullptr;  ///< in place; null: no rounding
};

/// `wire`: the format of the data at rest and on the way. Inputs are rounded to it on entry, partial sums wherever the
/// algorithm sends them, and the result. `accumulate`: the format of each single addition between two hops; one of 8
/// bytes makes float data be added in double.
struct ReduceOptions {
  Reduction reduction = Reduction::sum;
  Algorithm algorithm = Algorithm::rank_order;
  Rounding wire = {};
  Rounding accumulate = {};
  int gpus_per_node = 8;  ///< hierarchical: the global ranks of a node are k * gpus_per_node, and so on
};

using AllReduceOptions = ReduceOptions;
using ReduceScatterOptions = ReduceOptions;

/// How all_gather and all_to_all move; the result does not depend on it, the record of bytes does.
struct MoveOptions {
  Algorithm algorithm = Algorithm::rank_order;  ///< rank_order: direct. Also: ring (all_gather), hierarchical
  int gpus_per_node = 8;
};

/// The defaults, as objects: a call that names no options refers to these and builds nothing.
inline constexpr ReduceOptions kSumInRankOrder{};
inline constexpr MoveOptions kMoveDirectly{};

}  // namespace shardproof
