// An ordered list of ranks that communicate with one another.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "collectives/rank.h"

namespace shardproof {

/// Names a group of a World; made by World::add_group.
enum class GroupId : int {};

/// The groups of one axis are numbered in the order in which they were added: "tp[3]". One that is named by its members
/// has that name instead: "ranks[3,1]".
struct Group {
  std::string axis;
  int index = 0;
  std::vector<GlobalRank> members;  ///< members[i] is the rank whose GroupRank is i; no rank twice
  std::string own_name = {};        ///< in place of axis and number

  int size() const { return static_cast<int>(members.size()); }
  std::string name() const { return own_name.empty() ? axis + "[" + std::to_string(index) + "]" : own_name; }
  GlobalRank global(GroupRank rank) const { return members[static_cast<std::size_t>(to_int(rank))]; }
};

}  // namespace shardproof
