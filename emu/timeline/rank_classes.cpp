#include "emu/timeline/internal/rank_classes.h"

#include <algorithm>
#include <map>
#include <set>
#include <tuple>
#include <utility>

#include "emu/run/cluster.h"
#include "emu/timeline/clock.h"

namespace shardproof::timeline {
namespace {

/// What a group looks like: its axis, its shape, and its members' classes.
using Look = std::tuple<int, int, int, int, std::vector<int>>;

struct AxisGroups {
  int axis = 0;
  bool ordered = false;  ///< places count: messages go over the axis
  std::vector<std::vector<int>> groups;
  std::vector<GroupShape> shapes;
};

/// Of the axes over which calls go.
std::vector<AxisGroups> groups_in_use(const DryTraces& traces, const Mesh& mesh, int gpus_per_node) {
  std::array<bool, kAxes.size()> used{}, ordered{};
  const RankTrace* before = nullptr;
  for (const auto& trace : traces.ranks) {
    if (trace.get() == before) continue;
    before = trace.get();
    for (const OpRecord& record : trace->ops) {
      if (!record.call) continue;
      used[static_cast<std::size_t>(record.axis)] = true;
      if (is_point_to_point(record.operation)) ordered[static_cast<std::size_t>(record.axis)] = true;
    }
  }
  std::vector<AxisGroups> all;
  for (std::size_t axis = 0; axis < kAxes.size(); ++axis) {
    if (!used[axis]) continue;
    AxisGroups& groups = all.emplace_back();
    groups.axis = static_cast<int>(axis);
    groups.ordered = ordered[axis];
    groups.groups = mesh.groups(kAxes[axis]);
    for (const auto& group : groups.groups) groups.shapes.push_back(shape_of(group, gpus_per_node));
  }
  return all;
}

Look look_of(const AxisGroups& axis, std::size_t group, const std::vector<int>& colour) {
  std::vector<int> members;
  for (const int rank : axis.groups[group]) members.push_back(colour[static_cast<std::size_t>(rank)]);
  if (!axis.ordered) std::ranges::sort(members);
  const GroupShape& shape = axis.shapes[group];
  return {axis.axis, shape.ranks, shape.nodes, shape.per_node, std::move(members)};
}

/// Colours by first appearance.
template <class Key>
std::vector<int> coloured(const std::vector<Key>& keys) {
  std::map<Key, int> known;
  std::vector<int> colour;
  for (const Key& key : keys) colour.push_back(known.try_emplace(key, static_cast<int>(known.size())).first->second);
  return colour;
}

/// One round: what a rank is, and what its groups look like.
std::vector<int> refined(const std::vector<AxisGroups>& axes, const std::vector<int>& colour) {
  std::vector<std::vector<int>> keys;
  for (const int one : colour) keys.push_back({one});
  std::map<Look, int> looks;
  for (const AxisGroups& axis : axes) {
    for (std::size_t g = 0; g < axis.groups.size(); ++g) {
      const int look = looks.try_emplace(look_of(axis, g, colour), static_cast<int>(looks.size())).first->second;
      for (const int rank : axis.groups[g]) keys[static_cast<std::size_t>(rank)].push_back(look);
    }
  }
  return coloured(keys);
}

int count_of(const std::vector<int>& colour) {
  return *std::ranges::max_element(colour) + 1;
}

}  // namespace

RankClasses rank_classes(const DryTraces& traces, const Mesh& mesh, int gpus_per_node) {
  std::vector<const RankTrace*> lists;
  for (const auto& trace : traces.ranks) lists.push_back(trace.get());
  const std::vector<AxisGroups> axes = groups_in_use(traces, mesh, gpus_per_node);
  std::vector<int> colour = coloured(lists);
  for (;;) {
    std::vector<int> next = refined(axes, colour);
    const bool stable = count_of(next) == count_of(colour);
    colour = std::move(next);
    if (stable) break;
  }
  RankClasses classes;
  classes.class_of_rank = colour;
  const auto count = static_cast<std::size_t>(count_of(colour));
  classes.ranks.assign(count, 0);
  classes.first_rank.assign(count, -1);
  classes.group_of.resize(count);
  for (auto& groups : classes.group_of) groups.fill(-1);
  for (std::size_t rank = 0; rank < colour.size(); ++rank) {
    const auto at = static_cast<std::size_t>(colour[rank]);
    if (classes.ranks[at]++ == 0) classes.first_rank[at] = static_cast<int>(rank);
  }
  std::map<Look, int> known;
  for (const AxisGroups& axis : axes) {
    for (std::size_t g = 0; g < axis.groups.size(); ++g) {
      Look look = look_of(axis, g, colour);
      const auto [at, is_new] = known.try_emplace(look, static_cast<int>(known.size()));
      if (is_new) {
        std::vector<int> members = std::get<4>(look);
        const std::size_t distinct = std::set(members.begin(), members.end()).size();
        classes.groups.push_back({std::move(members), distinct, axis.shapes[g]});
      }
      for (const int rank : axis.groups[g]) {
        classes.group_of[static_cast<std::size_t>(colour[static_cast<std::size_t>(rank)])]
                        [static_cast<std::size_t>(axis.axis)] = at->second;
      }
    }
  }
  return classes;
}

}  // namespace shardproof::timeline
