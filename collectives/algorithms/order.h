// The order in which an algorithm adds one chunk of the data, as a small program over a stack of partial sums.
//
//   ring of 3, chunk 0:   load 1, add 2, add 0        ((in[1] + in[2]) + in[0])
//   tree of 4:            load 0, load 2, add 1, add 3, merge    (in[0] + ((in[2] + in[1]) + in[3]))
//
// Every algorithm is a function that writes such programs; one evaluator runs them (internal/reduce.cpp), block by
// block, in a single pass over the data. `hop` marks the places where the real algorithm sends the partial sum to
// another rank or stores it, hence rounds it to the wire format.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "collectives/algorithm.h"

namespace shardproof {

struct Step {
  enum class Kind : std::uint8_t {
    load,  ///< push the rank's input
    add,   ///< top = top + the rank's input
    merge  ///< pop b; top = top + b
  };
  Kind kind;
  bool hop;  ///< the top is sent or stored after this step
  int rank;  ///< group rank, for load and add
};

using Order = std::vector<Step>;

/// The group ranks on one node, ascending.
using NodeMembers = std::vector<int>;

/// Splits the members (global ranks, by group rank) into nodes of `gpus_per_node` consecutive global ranks.
std::vector<NodeMembers> split_into_nodes(std::span<const int> global_ranks, int gpus_per_node);

/// Where chunk c of `chunks` begins; chunk c ends where c + 1 begins. Sizes differ by at most one.
constexpr std::size_t chunk_begin(std::size_t count, std::size_t chunks, std::size_t chunk) {
  return count / chunks * chunk + count % chunks * chunk / chunks;
}

/// Into how many chunks an all_reduce of `ranks` ranks cuts its data. `nodes` is read by hierarchical only.
std::size_t chunk_count(Algorithm algorithm, int ranks, std::span<const NodeMembers> nodes);
/// Appends the order of that chunk.
void append_order(Algorithm algorithm, int ranks, std::span<const NodeMembers> nodes, std::size_t chunk, Order& order);

}  // namespace shardproof
