#include "collectives/algorithms/recursive_doubling.h"

#include <bit>

namespace shardproof {

namespace {

struct Fold {
  int extra;  // R
};

// The sum of participants [begin, begin + size), sent on unless it is the whole.
void append_range(const Fold& fold, int begin, int size, bool hop, Order& order) {
  if (size == 1) {
    if (begin < fold.extra) {
      order.push_back({Step::Kind::load, false, 2 * begin + 1});
      order.push_back({Step::Kind::add, hop, 2 * begin});
    } else {
      order.push_back({Step::Kind::load, hop, begin + fold.extra});
    }
    return;
  }
  append_range(fold, begin, size / 2, true, order);
  const int second = begin + size / 2;
  if (size == 2 && second >= fold.extra) {
    order.push_back({Step::Kind::add, hop, second + fold.extra});
    return;
  }
  append_range(fold, second, size / 2, true, order);
  order.push_back({Step::Kind::merge, hop, -1});
}

}  // namespace

void append_recursive_doubling(int ranks, Order& order) {
  const int participants = static_cast<int>(std::bit_floor(static_cast<unsigned>(ranks)));
  append_range({ranks - participants}, 0, participants, false, order);
}

}  // namespace shardproof
