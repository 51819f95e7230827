#include "collectives/algorithms/rank_order.h"

namespace shardproof {

void append_rank_order(int ranks, Order& order) {
  order.push_back({Step::Kind::load, false, 0});
  for (int rank = 1; rank < ranks; ++rank) order.push_back({Step::Kind::add, false, rank});
}

}  // namespace shardproof
