// Holds anybody's deployment graph to a plan.
//
// The graph is JSON: {"nodes": [{id, type: compute|comm|agg, gpu, shape, comp, style}], "edges": [{from, to}, ...]};
// edges may also be [from, to] or {source, target}. A node may name all of its GPUs in `gpus`. Other keys mean nothing
// here.
//
// What a node does is read from its type, comp and id: an expert's id holds "expert_N"; a TP all-reduce is a comm node
// whose id holds "allreduce" or "reducescatter" (with or without '_') and not "ep" or "etp"; a comm node that is no
// reduction, gather, or pipeline transfer counts as an all-to-all.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "emu/plan/plan.h"

namespace shardproof {

inline constexpr std::uintmax_t kMaxGraphBytes = 1u << 29;

struct AuditedNode {
  std::string id;
  std::string type;
  std::string comp;
  std::vector<std::int64_t> gpus;  ///< `gpu` and `gpus`
  std::vector<double> shape;
};

struct AuditedGraph {
  std::vector<AuditedNode> nodes;
  std::vector<std::pair<std::string, std::string>> edges;
};

/// `graph` is empty exactly when `problems` is not.
struct LoadedGraph {
  std::optional<AuditedGraph> graph;
  std::vector<Problem> problems;
};

LoadedGraph load_graph(const std::filesystem::path& path);
LoadedGraph parse_graph(std::string_view text, std::string_view name);

/// One thing that is wrong with a graph, seen from the plan.
struct Finding {
  std::string kind;     ///< "unused_gpus", "gpus_beyond_plan", "experts_without_nodes", "missing_tp_allreduce",
                        ///< "single_alltoall", "single_aggregation", "missing_stage", "missing_p2p", "cycle",
                        ///< "dangling_edge", "impossible_shape", "duplicate_id"
  std::string message;  ///< with counts, and the first few names
};

/// Empty for a graph that fits. The plan must be valid.
std::vector<Finding> audit(const AuditedGraph& graph, const Plan& plan);

}  // namespace shardproof
