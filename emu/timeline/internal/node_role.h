// What a node of somebody's graph does, as its type, comp and id tell (audit.h says how).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "emu/timeline/audit.h"

namespace shardproof::graph_audit {

enum class Role { other, expert, tp_reduction, alltoall, aggregation };

/// The words between '_', '.' and other marks, lower case, and the whole without them.
struct NodeName {
  std::vector<std::string> words;
  std::string joined;

  explicit NodeName(std::string_view id);
  bool has(std::string_view word) const;
};

/// The number after "expert" in the id, or -1.
std::int64_t expert_number(const NodeName& name);

Role role_of(const AuditedNode& node, const NodeName& name);

}  // namespace shardproof::graph_audit
