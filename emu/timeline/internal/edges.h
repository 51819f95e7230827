// Whether the edges of somebody's graph lead between its nodes, and leave an order in which all of them can start.
#pragma once

#include <cstddef>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "emu/timeline/audit.h"

namespace shardproof::graph_audit {

/// id -> place in AuditedGraph::nodes, of the first node that has it.
using NodeIndex = std::unordered_map<std::string_view, std::size_t>;

/// "dangling_edge" and "cycle".
std::vector<Finding> edge_findings(const AuditedGraph& graph, const NodeIndex& index);

}  // namespace shardproof::graph_audit
