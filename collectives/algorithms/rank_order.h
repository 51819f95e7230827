// rank_order, the direct algorithm: the owner of a chunk receives every other rank's part of it and adds in rank order.
//
// Steps: 2 (all parts at once to their owners; all results at once to everybody). Bytes sent per rank: 2 (P-1)/P S.
// Order: ((in[0] + in[1]) + in[2]) + ...; nothing is sent between the additions, so only the accumulation format
// rounds.
#pragma once

#include "collectives/algorithms/order.h"

namespace shardproof {

void append_rank_order(int ranks, Order& order);

}  // namespace shardproof
