#include "collectives/call_info.h"

#include <fmt/format.h>

namespace shardproof {

std::string CallInfo::operation_name() const {
  return (issued ? "i" : "") + std::string(shardproof::to_string(operation)) + (counts_given ? "_v" : "");
}

std::string CallInfo::to_string() const {
  std::string text = fmt::format("rank {}: {} #{} in {}", to_int(rank), operation_name(), sequence, group);
  if (operation != Operation::barrier) text += fmt::format(" of {} {}", elements, shardproof::to_string(type));
  if (peer >= 0) {
    const char* role = operation == Operation::send   ? "to rank"
                       : operation == Operation::recv ? "from rank"
                       : is_point_to_point(operation) ? "with rank"
                                                      : "root rank";
    text += fmt::format(" {} {}", role, peer);
  }
  const bool reduces =
      operation == Operation::all_reduce || operation == Operation::reduce || operation == Operation::reduce_scatter;
  if (reduces) {
    text += fmt::format(" ({}, {}", shardproof::to_string(reduction), shardproof::to_string(algorithm));
    if (algorithm == Algorithm::hierarchical) text += fmt::format(", gpus_per_node {}", gpus_per_node);
    if (wire != "native") text += fmt::format(", wire {}", wire);
    if (accumulate != "native") text += fmt::format(", accumulate {}", accumulate);
    text += ")";
  }
  return text + fmt::format(" at {}:{}", where.file_name(), where.line());
}

}  // namespace shardproof
