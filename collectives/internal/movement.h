// Moving the data of a complete collective, once: prepared by the last to arrive, done in pieces by any thread.
#pragma once

#include <atomic>
#include <cstddef>
#include <vector>

#include "collectives/algorithm.h"
#include "collectives/algorithms/order.h"
#include "collectives/internal/copy.h"
#include "collectives/internal/overlap.h"

namespace shardproof::internal {

struct GroupState;

/// The orders of an algorithm's chunks, kept from call to call.
struct KnownOrders {
  Algorithm algorithm{};
  int gpus_per_node = 0;
  std::vector<Order> orders;  // empty where there are none, or more than are worth keeping
};

/// What the last arriver prepares for the pieces of one movement.
struct Movement {
  std::vector<const void*> inputs;   // [n] by rank
  std::vector<void*> outputs;        // of the ranks that receive
  std::vector<std::size_t> offsets;  // [n + 1] of the parts, in elements
  std::vector<NodeMembers> nodes;    // hierarchical, for the gpus_per_node below
  int gpus_per_node = 0;
  KnownOrders known;
  std::vector<std::size_t> sent;  // [n] elements sent, hierarchical all_to_all
  std::vector<Interval> intervals;
  std::vector<Interval> checked_intervals;  // of the last calls whose buffers were found not to overlap
  std::size_t elements = 0;                 // what is split into pieces
  std::size_t pieces = 1;
  CopyMode mode{};
  std::atomic<std::size_t> pieces_left{0};
  std::atomic<bool> failed{false};  // a piece could not be done; nobody is resumed
};

/// Prepares state.movement for the arrived calls; returns the bytes that will be read and written, all together.
std::size_t prepare_movement(GroupState& state);
/// Does one of movement.pieces.
void move_piece(GroupState& state, std::size_t piece);

}  // namespace shardproof::internal
