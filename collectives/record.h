// What a rank communicated, call by call.
#pragma once

#include <cstdint>
#include <string_view>

#include "collectives/algorithm.h"
#include "collectives/call_tag.h"
#include "collectives/group.h"
#include "collectives/types.h"

namespace shardproof {

/// One completed call of one rank; of an exchange, each of its messages. Tests and reports read these: which calls were
/// made, in which group, with how many bytes, and what for.
struct CollectiveRecord {
  Operation operation;
  ElementType type;
  Algorithm algorithm;
  GroupId group;
  std::string_view axis;  ///< lives as long as the World
  std::int32_t group_index;
  std::int32_t group_size;
  std::int32_t peer;       ///< root of broadcast and reduce, the other rank of send and recv (GroupRank); else -1
  std::uint64_t elements;  ///< elements of this rank's input (of its output for recv)
  std::uint64_t bytes;     ///< bytes that this rank sends under the algorithm (see ALGORITHMS.md)
  CallTag tag;             ///< as the call carried it
};

}  // namespace shardproof
