#include "emu/plan/timetable.h"

namespace shardproof {

Timetable forward_timetable(std::span<const Layout> layouts, std::int64_t microbatches, std::int64_t of_step) {
  Timetable timetable;
  for (const Layout& layout : layouts) {
    std::vector<WorkItem>& items = timetable.emplace_back();
    const bool pairs = layout.parallel.overlap == Overlap::two_batch;
    for (std::int64_t m = 0; m < microbatches; m += pairs ? 2 : 1) {
      items.push_back({.step = static_cast<int>(m / of_step),
                       .microbatch = m,
                       .layers = layout.layers,
                       .beside = pairs ? m + 1 : -1});
    }
  }
  return timetable;
}

}  // namespace shardproof
