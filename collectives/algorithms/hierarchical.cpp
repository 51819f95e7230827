#include "collectives/algorithms/hierarchical.h"

#include <algorithm>

#include "collectives/algorithms/ring.h"

namespace shardproof {

int node_parts(std::span<const NodeMembers> nodes) {
  for (const NodeMembers& node : nodes) {
    if (node.size() != nodes.front().size()) return 1;
  }
  return nodes.empty() ? 1 : static_cast<int>(nodes.front().size());
}

void append_hierarchical(std::span<const NodeMembers> nodes, std::size_t chunk, Order& order) {
  const std::size_t part = chunk / nodes.size();
  const std::size_t last = chunk % nodes.size();
  for (std::size_t i = 1; i <= nodes.size(); ++i) {
    append_ring(nodes[(last + i) % nodes.size()], static_cast<int>(part), order);
    order.back().hop = true;  // the reduce-scatter has stored the node's sum
    if (i > 1) order.push_back({Step::Kind::merge, true, -1});
  }
}

std::size_t hierarchical_elements(std::span<const NodeMembers> nodes, int rank, std::size_t count) {
  const std::size_t nodes_count = nodes.size();
  std::size_t node = 0;
  std::size_t place = 0;
  for (std::size_t i = 0; i < nodes_count; ++i) {
    const auto found = std::find(nodes[i].begin(), nodes[i].end(), rank);
    if (found == nodes[i].end()) continue;
    node = i;
    place = static_cast<std::size_t>(found - nodes[i].begin());
  }
  const bool even =
      std::all_of(nodes.begin(), nodes.end(), [&](const NodeMembers& n) { return n.size() == nodes[0].size(); });
  const auto parts = static_cast<std::size_t>(node_parts(nodes));
  // Of part `part`, the chunks [first, last).
  const auto elements = [&](std::size_t part, std::size_t first, std::size_t last) {
    const std::size_t chunks = parts * nodes_count;
    return chunk_begin(count, chunks, part * nodes_count + last) -
           chunk_begin(count, chunks, part * nodes_count + first);
  };
  const auto across = [&](std::size_t part) {
    const std::size_t next = (node + 1) % nodes_count;
    return 2 * elements(part, 0, nodes_count) - elements(part, node, node + 1) - elements(part, next, next + 1);
  };
  if (even) {
    return count - elements(place, 0, nodes_count) + across(place) +
           (count - elements((place + 1) % parts, 0, nodes_count));
  }
  // Down the chain to the leader, around the leaders, and back up the chain.
  const std::size_t members = nodes[node].size();
  return (place > 0 ? count : across(0)) + (place + 1 < members ? count : 0);
}

std::vector<std::size_t> hierarchical_all_to_all_elements(
    std::span<const NodeMembers> nodes, const std::function<std::size_t(std::size_t, std::size_t)>& count) {
  std::size_t ranks = 0;
  for (const NodeMembers& node : nodes) ranks += node.size();
  std::vector<std::size_t> sent(ranks, 0);
  for (const NodeMembers& here : nodes) {
    for (const NodeMembers& there : nodes) {
      for (std::size_t place = 0; place < there.size(); ++place) {
        const auto to = static_cast<std::size_t>(there[place]);
        const auto through = static_cast<std::size_t>(here[place % here.size()]);
        for (const int member : here) {
          const auto from = static_cast<std::size_t>(member);
          if (from != through) sent[from] += count(from, to);
          if (through != to) sent[through] += count(from, to);
        }
      }
    }
  }
  return sent;
}

}  // namespace shardproof
