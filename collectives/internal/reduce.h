// The evaluator of orders: reduces a range of elements in one pass, block by block.
#pragma once

#include <cstddef>
#include <span>

#include "collectives/algorithms/order.h"
#include "collectives/internal/copy.h"
#include "collectives/options.h"
#include "collectives/types.h"

namespace shardproof::internal {

/// How the elements are cut into chunks, each summed in an order of its own.
struct Chunks {
  Algorithm algorithm{};
  std::span<const NodeMembers> nodes;
  std::size_t count = 1;
  std::size_t elements = 0;
  std::size_t first = 0;                ///< chunk c has the order of the algorithm's chunk first + c
  std::span<const Order> orders;        ///< of the algorithm's chunks, where they are kept; empty: to be made
  std::span<const std::size_t> bounds;  ///< [count + 1] where they begin; empty: chunk_begin of the elements

  std::size_t begin(std::size_t chunk) const {
    return bounds.empty() ? chunk_begin(elements, count, chunk) : bounds[chunk];
  }
};

/// Who receives the result.
struct Receivers {
  std::span<void* const> outputs;
  std::span<const std::size_t> bounds;  ///< output i receives [bounds[i], bounds[i + 1]); empty: each receives all
};

struct Reducer {
  ElementType type{};
  const ReduceOptions* options = nullptr;
  int ranks = 0;
  const void* const* inputs = nullptr;  // by group rank
  Chunks chunks;
  Receivers receivers;
  CopyMode mode{};
};

/// Reduces elements [begin, end) of every input and writes them to the receivers. An output may be one of the inputs at
/// the same place: a block is written after all inputs of it have been read.
void reduce_range(const Reducer& reducer, std::size_t begin, std::size_t end);

}  // namespace shardproof::internal
