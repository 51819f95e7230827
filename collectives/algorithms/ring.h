// The ring: reduce-scatter, then all-gather, around rank 0 -> 1 -> ... -> P-1 -> 0 (Patarasuk and Yuan, 2009; NCCL's
// ring).
//
// Steps: 2 (P-1). Bytes sent per rank: 2 (P-1)/P S; each half alone: P-1 steps, (P-1)/P S.
// Order: the partial sum of chunk c starts at rank c+1 and ends at its owner, rank c, each rank adding its own input to
// what it received: ((in[c+1] + in[c+2]) + ...) + in[c], ranks modulo P, rounded to the wire format at every hop.
#pragma once

#include "collectives/algorithms/order.h"

namespace shardproof {

void append_ring(int ranks, int chunk, Order& order);
/// The same among some ranks only, from members[(position + 1) % size] around to members[position].
void append_ring(std::span<const int> members, int position, Order& order);

}  // namespace shardproof
