#include "collectives/internal/overlap.h"

#include <algorithm>

namespace shardproof::internal {

namespace {

// The two owners whose buffers reach furthest so far: one of them is not the one that asks.
struct Reach {
  std::uintptr_t end[2] = {0, 0};
  std::size_t owner[2] = {static_cast<std::size_t>(-1), static_cast<std::size_t>(-1)};

  void add(const Interval& interval) {
    if (interval.owner == owner[0]) {
      end[0] = std::max(end[0], interval.end);
    } else if (interval.end > end[0]) {
      end[1] = end[0];
      owner[1] = owner[0];
      end[0] = interval.end;
      owner[0] = interval.owner;
    } else if (interval.end > end[1]) {
      end[1] = interval.end;
      owner[1] = interval.owner;
    }
  }
  // An owner other than the interval's own that reaches beyond its begin; -1 if none.
  std::ptrdiff_t over(const Interval& interval) const {
    const int other = owner[0] == interval.owner ? 1 : 0;
    return end[other] > interval.begin ? static_cast<std::ptrdiff_t>(owner[other]) : -1;
  }
};

}  // namespace

Overlap find_overlap(std::vector<Interval>& intervals) {
  std::sort(intervals.begin(), intervals.end(), [](const Interval& a, const Interval& b) { return a.begin < b.begin; });
  Reach inputs;
  Reach outputs;
  for (const Interval& interval : intervals) {
    if (interval.begin == interval.end) continue;
    std::ptrdiff_t other = outputs.over(interval);
    if (other < 0 && interval.access == Access::written) other = inputs.over(interval);
    if (other >= 0) return {other, static_cast<std::ptrdiff_t>(interval.owner)};
    (interval.access == Access::written ? outputs : inputs).add(interval);
  }
  return {};
}

}  // namespace shardproof::internal
