#include "collectives/algorithms/ring.h"

namespace shardproof {

void append_ring(int ranks, int chunk, Order& order) {
  for (int i = 1; i <= ranks; ++i) {
    const int rank = chunk + i < ranks ? chunk + i : chunk + i - ranks;
    order.push_back({i == 1 ? Step::Kind::load : Step::Kind::add, i < ranks, rank});
  }
}

void append_ring(std::span<const int> members, int position, Order& order) {
  const std::size_t begin = order.size();
  append_ring(static_cast<int>(members.size()), position, order);
  for (std::size_t i = begin; i < order.size(); ++i) order[i].rank = members[static_cast<std::size_t>(order[i].rank)];
}

}  // namespace shardproof
