// The double binary tree (Sanders, Speck and Traeff, 2009) as NCCL lays it: half of the data goes up and down each
// tree.
//
// Steps: 2 ceil(log2 P) or so. Bytes sent per rank: at most 2 S (an inner node of both trees would send up S/2 and down
// 2 S/2 per tree; a rank is inner in one tree and a leaf in the other).
// First tree: rank 0 is the root; with b the lowest set bit of rank r > 0, the parent is (r - b) with bit 2b set, or r
// - b where that is out of range; odd ranks are leaves. For P = 14:
//
//   0---------------8
//            ______/ \______
//           4               12
//         /   \            /
//       2       6       10
//      / \     / \     /  \                      13 is the second child of 12
//     1   3   5   7   9   11
//
// Second tree: the mirror image (rank r takes the place of P-1-r) for even P, a shift by one for odd P.
// Order at a node: its own input, plus the first child's sum, plus the second child's; the lower child is the first.
#pragma once

#include "collectives/algorithms/order.h"

namespace shardproof {

/// A rank's neighbours in one tree; -1 where there is none.
struct TreeNode {
  int parent = -1;
  int first_child = -1;
  int second_child = -1;
};

/// `tree` is 0 or 1.
TreeNode double_tree_node(int ranks, int tree, int rank);

/// `tree` is also the chunk.
void append_tree(int ranks, int tree, Order& order);

/// The binomial tree of broadcast: how many ranks this one sends to. `distance` is its rank minus the root's, modulo P.
int broadcast_children(int ranks, int distance);

}  // namespace shardproof
