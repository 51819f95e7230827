#include "emu/timeline/internal/edges.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>

#include "emu/input/json_value.h"

namespace shardproof::graph_audit {
namespace {

using Successors = std::vector<std::vector<std::uint32_t>>;

/// Follows predecessors that are never ready until one repeats.
std::string cycle_text(const AuditedGraph& graph, const Successors& next, const std::vector<std::uint32_t>& waiting,
                       std::size_t stuck) {
  std::vector<std::uint32_t> before(waiting.size(), UINT32_MAX);
  std::uint32_t at = 0;
  for (std::uint32_t i = 0; i < waiting.size(); ++i) {
    if (waiting[i] == 0) continue;
    for (const std::uint32_t to : next[i]) {
      if (waiting[to] > 0) before[to] = i;
    }
    at = i;
  }
  std::vector<std::uint32_t> path;
  std::vector<bool> visited(waiting.size(), false);
  while (!visited[at]) {
    visited[at] = true;
    path.push_back(at);
    at = before[at];
  }
  path.erase(path.begin(), std::find(path.begin(), path.end(), at));
  std::reverse(path.begin(), path.end());
  std::string text;
  const std::size_t shown = std::min<std::size_t>(path.size(), 6);
  for (std::size_t i = 0; i < shown; ++i) text += in_quotes(graph.nodes[path[i]].id) + " -> ";
  if (shown < path.size()) text += fmt::format("... ({} nodes) -> ", path.size());
  return fmt::format("{} nodes can never start; one cycle: {}{}", stuck, text, in_quotes(graph.nodes[path[0]].id));
}

/// Takes away what can be ordered, and counts it: a cycle is in what still waits.
std::size_t order(const Successors& next, std::vector<std::uint32_t>& waiting) {
  std::vector<std::uint32_t> ready;
  for (std::uint32_t i = 0; i < waiting.size(); ++i) {
    if (waiting[i] == 0) ready.push_back(i);
  }
  std::size_t ordered = 0;
  while (!ready.empty()) {
    const std::uint32_t at = ready.back();
    ready.pop_back();
    ++ordered;
    for (const std::uint32_t to : next[at]) {
      if (--waiting[to] == 0) ready.push_back(to);
    }
  }
  return ordered;
}

}  // namespace

std::vector<Finding> edge_findings(const AuditedGraph& graph, const NodeIndex& index) {
  std::vector<Finding> findings;
  Successors next(graph.nodes.size());
  std::vector<std::uint32_t> waiting(graph.nodes.size(), 0);
  std::size_t dangling = 0;
  std::string first;
  for (const auto& [from, to] : graph.edges) {
    const auto a = index.find(from);
    const auto b = index.find(to);
    if (a == index.end() || b == index.end()) {
      if (dangling++ == 0) {
        first = fmt::format("{} -> {}, where {} does not exist", in_quotes(from), in_quotes(to),
                            in_quotes(a == index.end() ? from : to));
      }
      continue;
    }
    next[a->second].push_back(static_cast<std::uint32_t>(b->second));
    ++waiting[b->second];
  }
  if (dangling > 0) {
    findings.push_back({"dangling_edge", fmt::format("{} edge{} to or from nodes that do not exist, the first {}",
                                                     dangling, dangling == 1 ? " leads" : "s lead", first)});
  }
  const std::size_t ordered = order(next, waiting);
  if (ordered < graph.nodes.size()) {
    findings.push_back({"cycle", cycle_text(graph, next, waiting, graph.nodes.size() - ordered)});
  }
  return findings;
}

}  // namespace shardproof::graph_audit
