// Two kinds of rank that must never be mistaken for one another.
#pragma once

namespace shardproof {

/// A rank of the whole world, 0..world-1.
enum class GlobalRank : int {};
/// The index of a rank inside one group, 0..size-1.
enum class GroupRank : int {};

constexpr int to_int(GlobalRank rank) {
  return static_cast<int>(rank);
}
constexpr int to_int(GroupRank rank) {
  return static_cast<int>(rank);
}

}  // namespace shardproof
