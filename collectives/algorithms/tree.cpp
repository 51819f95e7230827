#include "collectives/algorithms/tree.h"

#include <bit>

namespace shardproof {

namespace {

TreeNode binary_tree_node(int ranks, int rank) {
  TreeNode node;
  if (rank == 0) {
    // The root has one child only, the largest power of two below P.
    if (ranks > 1) node.second_child = static_cast<int>(std::bit_floor(static_cast<unsigned>(ranks - 1)));
    return node;
  }
  const int bit = rank & -rank;
  const int above = (rank ^ bit) | (bit << 1);
  node.parent = above < ranks ? above : rank ^ bit;
  int reach = bit >> 1;
  if (reach == 0) return node;
  node.first_child = rank - reach;
  while (reach > 0 && rank + reach >= ranks) reach >>= 1;
  if (reach > 0) node.second_child = rank + reach;
  return node;
}

// Its own input, then each child's subtree. Recursion is as deep as the tree.
void append_subtree(int ranks, int tree, int rank, bool hop, Order& order) {
  const TreeNode node = double_tree_node(ranks, tree, rank);
  const bool leaf = node.first_child < 0 && node.second_child < 0;
  order.push_back({Step::Kind::load, hop && leaf, rank});
  for (const int child : {node.first_child, node.second_child}) {
    if (child < 0) continue;
    const bool sent = hop && (child == node.second_child || node.second_child < 0);
    const TreeNode below = double_tree_node(ranks, tree, child);
    if (below.first_child < 0 && below.second_child < 0) {
      // A leaf sends its input, which is in the wire format already.
      order.push_back({Step::Kind::add, sent, child});
    } else {
      append_subtree(ranks, tree, child, true, order);
      order.push_back({Step::Kind::merge, sent, -1});
    }
  }
}

}  // namespace

TreeNode double_tree_node(int ranks, int tree, int rank) {
  if (tree == 0) return binary_tree_node(ranks, rank);
  const bool mirror = ranks % 2 == 0;
  const auto there = [&](int r) { return mirror ? ranks - 1 - r : (r + ranks - 1) % ranks; };
  const auto back = [&](int r) { return r < 0 ? -1 : mirror ? ranks - 1 - r : (r + 1) % ranks; };
  const TreeNode node = binary_tree_node(ranks, there(rank));
  return {back(node.parent), back(node.first_child), back(node.second_child)};
}

void append_tree(int ranks, int tree, Order& order) {
  const int root = tree == 0 ? 0 : ranks % 2 == 0 ? ranks - 1 : 1 % ranks;
  append_subtree(ranks, tree, root, false, order);
}

int broadcast_children(int ranks, int distance) {
  // A rank that received at step k sends at the later steps: to distance + 2^j for 2^j > distance's highest bit.
  int children = 0;
  for (int bit = distance == 0 ? 1 : static_cast<int>(std::bit_floor(static_cast<unsigned>(distance))) << 1;
       distance + bit < ranks; bit <<= 1) {
    ++children;
  }
  return children;
}

}  // namespace shardproof
