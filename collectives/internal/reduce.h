// The evaluator of orders: reduces a range of elements in one pass, block by block.
#pragma once

#include <cstddef>
#include <span>

#include "collectives/algorithms/order.h"
#include "collectives/options.h"
#include "collectives/types.h"

namespace shardproof::internal {

struct Reducer {
  ElementType type{};
  const ReduceOptions* options = nullptr;
  int ranks = 0;
  const void* const* inputs = nullptr;  // by group rank
  bool stream = false;                  // write the results past the caches
};

/// Elements [begin, end) of every input, reduced in the order given, go to elements [begin - shift, ...) of each
/// output. An output may be one of the inputs at the same place: a block is written after all inputs of it have been
/// read.
void reduce_range(const Reducer& reducer, const Order& order, std::size_t begin, std::size_t end,
                  std::span<void* const> outputs, std::size_t shift);

}  // namespace shardproof::internal
