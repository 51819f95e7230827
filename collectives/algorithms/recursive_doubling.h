// Recursive doubling (Thakur, Rabenseifner and Gropp, 2005), as MPICH runs it.
//
// Steps: log2 P for a power of two; otherwise, with Q the power of two below P and R = P - Q, two more. Bytes sent per
// rank: S log2 P for a power of two; else the first 2R ranks pair up: an even one sends S, its odd neighbour
// S (log2 Q + 1), the others S log2 Q.
// Order: with R > 0 the odd rank of each of the first R pairs adds its neighbour's input to its own and takes part for
// both; then neighbours at distance 1, 2, 4, ... exchange their sums and both add them (addition commutes, so both have
// the same bits): a balanced tree over the Q participants in rank order.
#pragma once

#include "collectives/algorithms/order.h"

namespace shardproof {

void append_recursive_doubling(int ranks, Order& order);

}  // namespace shardproof
