#include "collectives/algorithms/order.h"

#include <algorithm>
#include <map>

#include "collectives/algorithms/hierarchical.h"
#include "collectives/algorithms/rank_order.h"
#include "collectives/algorithms/recursive_doubling.h"
#include "collectives/algorithms/ring.h"
#include "collectives/algorithms/tree.h"

namespace shardproof {

std::vector<NodeMembers> split_into_nodes(std::span<const int> global_ranks, int gpus_per_node) {
  std::map<int, NodeMembers> nodes;
  for (std::size_t i = 0; i < global_ranks.size(); ++i) {
    nodes[global_ranks[i] / gpus_per_node].push_back(static_cast<int>(i));
  }
  std::vector<NodeMembers> result;
  for (auto& [node, members] : nodes) result.push_back(std::move(members));
  return result;
}

std::size_t chunk_count(Algorithm algorithm, int ranks, std::span<const NodeMembers> nodes) {
  switch (algorithm) {
    case Algorithm::rank_order:
    case Algorithm::recursive_doubling:
      return 1;
    case Algorithm::ring:
      return static_cast<std::size_t>(ranks);
    case Algorithm::tree:
      return 2;
    case Algorithm::hierarchical:
      return static_cast<std::size_t>(node_parts(nodes)) * nodes.size();
  }
  return 1;
}

void append_order(Algorithm algorithm, int ranks, std::span<const NodeMembers> nodes, std::size_t chunk, Order& order) {
  switch (algorithm) {
    case Algorithm::rank_order:
      return append_rank_order(ranks, order);
    case Algorithm::ring:
      return append_ring(ranks, static_cast<int>(chunk), order);
    case Algorithm::tree:
      return append_tree(ranks, static_cast<int>(chunk), order);
    case Algorithm::recursive_doubling:
      return append_recursive_doubling(ranks, order);
    case Algorithm::hierarchical:
      return append_hierarchical(nodes, chunk, order);
  }
}

}  // namespace shardproof
