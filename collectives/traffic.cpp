#include "collectives/traffic.h"

#include <bit>
#include <numeric>

#include "collectives/algorithms/hierarchical.h"
#include "collectives/algorithms/tree.h"
#include "collectives/internal/state.h"

namespace shardproof {

namespace {

int ceil_log2(int ranks) {
  return static_cast<int>(std::bit_width(static_cast<unsigned>(ranks - 1)));
}

}  // namespace

double bus_bandwidth_factor(Operation operation, int ranks) {
  const double n = ranks;
  switch (operation) {
    case Operation::all_reduce:
      return 2 * (n - 1) / n;
    case Operation::all_gather:
    case Operation::reduce_scatter:
    case Operation::all_to_all:
      return (n - 1) / n;
    default:
      return 1;
  }
}

int steps(Operation operation, Algorithm algorithm, int ranks, int nodes) {
  if (ranks == 1) return 0;
  const int per_node = ranks / nodes;
  const bool power_of_two = std::has_single_bit(static_cast<unsigned>(ranks));
  switch (operation) {
    case Operation::all_reduce:
      switch (algorithm) {
        case Algorithm::rank_order:
          return 2;
        case Algorithm::ring:
          return 2 * (ranks - 1);
        case Algorithm::tree:
          return 2 * ceil_log2(ranks);
        case Algorithm::recursive_doubling:
          return power_of_two ? ceil_log2(ranks) : ceil_log2(ranks) - 1 + 2;
        case Algorithm::hierarchical:
          return 2 * (per_node - 1) + 2 * (nodes - 1);
      }
      return 0;
    case Operation::all_gather:
    case Operation::reduce_scatter:
    case Operation::reduce:
      return algorithm == Algorithm::ring ? ranks - 1 : 1;
    case Operation::all_to_all:
      return algorithm == Algorithm::hierarchical ? 2 : 1;
    case Operation::broadcast:
    case Operation::barrier:
      return ceil_log2(ranks);
    default:
      return 1;
  }
}

namespace internal {

namespace {

// What the rank sends of an all_reduce of `count` elements, in elements.
std::size_t all_reduce_elements(const Call& call) {
  const GroupState& state = *call.group;
  const int ranks = state.size();
  const int rank = to_int(call.rank);
  const std::size_t count = call.in_count;
  const auto chunk = [&](int c, int chunks) {
    const auto n = static_cast<std::size_t>(chunks);
    const auto i = static_cast<std::size_t>((c % chunks + chunks) % chunks);
    return chunk_begin(count, n, i + 1) - chunk_begin(count, n, i);
  };
  switch (call.options.algorithm) {
    case Algorithm::rank_order:
      // Every other owner's chunk once, and the own chunk's result to every other rank.
      return count - chunk(rank, ranks) + static_cast<std::size_t>(ranks - 1) * chunk(rank, ranks);
    case Algorithm::ring:
      // All chunks but the own in the first half, all but the successor's in the second.
      return 2 * count - chunk(rank, ranks) - chunk(rank + 1, ranks);
    case Algorithm::tree: {
      std::size_t sent = 0;
      for (const int tree : {0, 1}) {
        const TreeNode node = double_tree_node(ranks, tree, rank);
        const int messages = (node.parent >= 0) + (node.first_child >= 0) + (node.second_child >= 0);
        sent += static_cast<std::size_t>(messages) * chunk(tree, 2);
      }
      return sent;
    }
    case Algorithm::recursive_doubling: {
      const int participants = static_cast<int>(std::bit_floor(static_cast<unsigned>(ranks)));
      const int extra = ranks - participants;
      const int doublings = static_cast<int>(std::bit_width(static_cast<unsigned>(participants))) - 1;
      if (rank >= 2 * extra) return static_cast<std::size_t>(doublings) * count;
      return rank % 2 == 0 ? count : static_cast<std::size_t>(doublings + 1) * count;
    }
    case Algorithm::hierarchical:
      return hierarchical_elements(state.movement.nodes, rank, count);
  }
  return 0;
}

}  // namespace

std::uint64_t bytes_sent(const Call& call) {
  const GroupState& state = *call.group;
  const auto ranks = static_cast<std::size_t>(state.size());
  const auto rank = static_cast<std::size_t>(to_int(call.rank));
  const std::size_t width =
      call.options.wire.bytes != 0 ? static_cast<std::size_t>(call.options.wire.bytes) : size_of(call.type);
  const bool ring = call.options.algorithm == Algorithm::ring;
  if (ranks == 1) return 0;
  switch (call.operation) {
    case Operation::all_reduce:
      return all_reduce_elements(call) * width;
    case Operation::reduce_scatter:
      // To every other owner its part; on the ring too each part but the own leaves once.
      return (call.in_count - call.out_count) * width;
    case Operation::all_gather: {
      if (!ring) return (ranks - 1) * call.in_count * width;
      // On the ring every part passes on but the successor's, which it has already.
      const std::size_t successor = (rank + 1) % ranks;
      return (call.out_count - (call.counts_given ? call.counts[successor] : call.in_count)) * width;
    }
    case Operation::all_to_all:
      if (call.options.algorithm == Algorithm::hierarchical) return state.movement.sent[rank] * width;
      return (call.in_count - (call.counts_given ? call.counts[rank] : call.in_count / ranks)) * width;
    case Operation::broadcast: {
      const int distance = (to_int(call.rank) - call.root + state.size()) % state.size();
      return static_cast<std::size_t>(broadcast_children(state.size(), distance)) * call.in_count * width;
    }
    case Operation::reduce:
      return to_int(call.rank) == call.root ? 0 : call.in_count * width;
    case Operation::send:
      return call.in_count * width;
    default:
      return 0;
  }
}

}  // namespace internal
}  // namespace shardproof
