// A call as errors and wait-for graphs show it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "collectives/call_tag.h"
#include "collectives/group.h"
#include "collectives/options.h"
#include "collectives/source_location.h"
#include "collectives/types.h"

namespace shardproof {

struct CallInfo {
  GlobalRank rank{};
  Operation operation{};
  bool counts_given = false;  ///< the v variant, with a count per rank
  bool issued = false;        ///< the i-variant, awaited by its handle
  std::string group;          ///< "tp[3]"
  int group_size = 0;
  std::uint64_t sequence = 0;  ///< how many calls of its kind (collective, point-to-point) the rank made there before
  ElementType type{};
  std::uint64_t elements = 0;  ///< of the input; of the output for recv
  int peer = -1;               ///< global rank of the root or of the other side; -1 where there is none
  Reduction reduction{};
  Algorithm algorithm{};
  int gpus_per_node = 0;        ///< where the algorithm asks for it
  std::string_view wire;        ///< name of the wire format
  std::string_view accumulate;  ///< name of the accumulation format
  CallTag tag;
  SourceLocation where{};

  /// "rank 5: all_reduce #3 in tp[1] of 1024 f32 (sum, ring) at layer.cpp:40".
  std::string to_string() const;
  /// "all_reduce", "all_gather_v", "iall_reduce", ...
  std::string operation_name() const;
};

}  // namespace shardproof
