// Ranks that cannot be told apart by their records and by the company that they keep.
#pragma once

#include <array>
#include <cstddef>
#include <vector>

#include "emu/plan/mesh.h"
#include "emu/run/dry_run.h"
#include "emu/timeline/collective_time.h"

namespace shardproof::timeline {

/// A group as its members' classes see it: every real group that looks so.
struct ClassGroup {
  std::vector<int> classes;  ///< by place; of axes without messages sorted
  std::size_t distinct = 0;  ///< how many of them differ
  GroupShape shape;
};

struct RankClasses {
  std::vector<int> class_of_rank;
  std::vector<int> ranks;       ///< of each class, how many
  std::vector<int> first_rank;  ///< of each class
  /// [class][axis]: which of `groups` the class is in; -1 where no call goes over the axis.
  std::vector<std::array<int, kAxisCount>> group_of;
  std::vector<ClassGroup> groups;
};

RankClasses rank_classes(const DryTraces& traces, const Mesh& mesh, int gpus_per_node);

}  // namespace shardproof::timeline
