// Hierarchical: a ring reduce-scatter inside each node, a ring all-reduce across the nodes for every part, a ring
// all-gather inside the node.
//
// With M nodes of G ranks each, P = M G. Steps: 2 (G-1) + 2 (M-1). Bytes sent per rank: 2 (G-1)/G S inside the node and
// 2 (M-1)/M S/G between nodes.
// Order: chunk (g, m): in every node the ring sum that ends at the node's rank number g; then over the nodes the ring
// sum that starts at node m+1 and ends at node m. Where nodes hold different numbers of the group's ranks, the parts
// are not scattered: each node's sum ends at its first rank (G counts as 1 in the chunks), and that leader takes part
// for it.
#pragma once

#include <functional>

#include "collectives/algorithms/order.h"

namespace shardproof {

/// Ranks per node if all nodes have the same number, else 1: the number of parts inside a node.
int node_parts(std::span<const NodeMembers> nodes);

/// Elements that a rank sends in an all_reduce of `count` elements, both halves together.
std::size_t hierarchical_elements(std::span<const NodeMembers> nodes, int rank, std::size_t count);

/// Hierarchical all-to-all: what rank (m, g) has for rank (m', g') goes first to its neighbour (m, g' modulo the node's
/// size), then across. Elements that every rank sends, forwarding included; count(i, j) is what i has for j.
std::vector<std::size_t> hierarchical_all_to_all_elements(
    std::span<const NodeMembers> nodes, const std::function<std::size_t(std::size_t, std::size_t)>& count);

/// chunk = g * M + m.
void append_hierarchical(std::span<const NodeMembers> nodes, std::size_t chunk, Order& order);

}  // namespace shardproof
