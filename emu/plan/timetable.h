// Who does what when: the work of every rank, in order.
//
// A pipeline schedule is a timetable, and so is a forward over whole sequences. The program walks its rank's items;
// what passes between stages follows from where an item's layers lie.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "emu/plan/layout.h"
#include "emu/plan/partition.h"

namespace shardproof {

enum class Pass { forward };

/// A microbatch through a chunk of the layers that the rank holds.
struct WorkItem {
  Pass pass = Pass::forward;
  int step = 0;                 ///< engine iteration; 0 in a forward over whole sequences
  std::int64_t microbatch = 0;  ///< counted over all steps
  Range layers;
  std::int64_t beside = -1;  ///< the microbatch that runs interleaved with it (Overlap::two_batch); -1: none
  bool operator==(const WorkItem&) const = default;
};

/// By rank, its items in the order in which it does them.
using Timetable = std::vector<std::vector<WorkItem>>;

/// Every rank takes the microbatches in order, each through all its layers, or two of them interleaved; `of_step` of
/// them are a step's. Layouts are by rank.
Timetable forward_timetable(std::span<const Layout> layouts, std::int64_t microbatches, std::int64_t of_step);

}  // namespace shardproof
