#include "emu/timeline/audit.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <set>

#include "emu/input/json_value.h"
#include "emu/plan/mesh.h"
#include "emu/timeline/internal/edges.h"
#include "emu/timeline/internal/node_role.h"

namespace shardproof {
namespace {

using graph_audit::NodeIndex;
using graph_audit::NodeName;
using graph_audit::Role;

/// "3-7, 9 and 12 more": numbers as ranges, the first few.
std::string ranges(const std::vector<std::int64_t>& sorted) {
  std::string text;
  int shown = 0;
  for (std::size_t i = 0; i < sorted.size();) {
    std::size_t end = i + 1;
    while (end < sorted.size() && sorted[end] == sorted[end - 1] + 1) ++end;
    if (++shown > 6) return text + fmt::format(" and {} more", sorted.size() - i);
    text += text.empty() ? "" : ", ";
    text += end - i == 1 ? fmt::format("{}", sorted[i]) : fmt::format("{}-{}", sorted[i], sorted[end - 1]);
    i = end;
  }
  return text;
}

class Auditor {
 public:
  Auditor(const AuditedGraph& graph, const Plan& plan) : graph_(graph), plan_(plan), mesh_(plan.parallel) {
    names_.reserve(graph.nodes.size());
    for (const AuditedNode& node : graph.nodes) {
      names_.emplace_back(node.id);
      roles_.push_back(role_of(node, names_.back()));
    }
  }

  std::vector<Finding> run() {
    check_ids();
    check_gpus();
    check_experts();
    check_reductions();
    check_dispatch();
    check_aggregation();
    check_stages();
    std::ranges::move(graph_audit::edge_findings(graph_, index_), std::back_inserter(findings_));
    check_shapes();
    return std::move(findings_);
  }

 private:
  void find(const char* kind, std::string message) { findings_.push_back({kind, std::move(message)}); }

  bool in_world(std::int64_t gpu) const { return gpu >= 0 && gpu < mesh_.world(); }

  std::string id_of(std::size_t node) const { return in_quotes(graph_.nodes[node].id); }

  /// Every GPU of the plan on which a node with this role stands.
  std::vector<bool> gpus_with(Role role) const {
    std::vector<bool> found(static_cast<std::size_t>(mesh_.world()), false);
    for (std::size_t i = 0; i < graph_.nodes.size(); ++i) {
      if (roles_[i] != role) continue;
      for (const std::int64_t gpu : graph_.nodes[i].gpus) {
        if (in_world(gpu)) found[static_cast<std::size_t>(gpu)] = true;
      }
    }
    return found;
  }

  std::size_t count(Role role) const {
    return static_cast<std::size_t>(std::count(roles_.begin(), roles_.end(), role));
  }

  /// Groups of the axis with no node of the role on any member.
  std::vector<std::int64_t> groups_without(Axis axis, Role role) const {
    const std::vector<bool> found = gpus_with(role);
    std::vector<std::int64_t> missing;
    const auto groups = mesh_.groups(axis);
    for (std::size_t g = 0; g < groups.size(); ++g) {
      const bool any = std::any_of(groups[g].begin(), groups[g].end(),
                                   [&](int rank) { return found[static_cast<std::size_t>(rank)]; });
      if (!any) missing.push_back(static_cast<std::int64_t>(g));
    }
    return missing;
  }

  void check_ids() {
    std::size_t duplicates = 0;
    std::string first;
    for (std::size_t i = 0; i < graph_.nodes.size(); ++i) {
      if (index_.try_emplace(graph_.nodes[i].id, i).second) continue;
      if (duplicates++ == 0) first = id_of(i);
    }
    if (duplicates > 0) {
      find("duplicate_id", fmt::format("{} node{} an id that another has, the first {}", duplicates,
                                       duplicates == 1 ? " has" : "s have", first));
    }
  }

  void check_gpus() {
    std::vector<bool> used(static_cast<std::size_t>(mesh_.world()), false);
    std::set<std::int64_t> beyond;
    std::size_t homeless = 0;
    for (const AuditedNode& node : graph_.nodes) {
      if (node.gpus.empty()) ++homeless;
      for (const std::int64_t gpu : node.gpus) {
        if (in_world(gpu)) {
          used[static_cast<std::size_t>(gpu)] = true;
        } else if (gpu >= 0 && beyond.size() < 10000) {
          beyond.insert(gpu);
        } else if (gpu < 0) {
          ++homeless;
        }
      }
    }
    std::vector<std::int64_t> unused;
    for (std::size_t gpu = 0; gpu < used.size(); ++gpu) {
      if (!used[gpu]) unused.push_back(static_cast<std::int64_t>(gpu));
    }
    if (!unused.empty()) {
      find("unused_gpus", fmt::format("{} of {} GPUs are used; never used: {}", used.size() - unused.size(),
                                      used.size(), ranges(unused)));
    }
    if (!beyond.empty()) {
      find("gpus_beyond_plan", fmt::format("the plan has GPUs 0-{}; the graph also uses {}", mesh_.world() - 1,
                                           ranges({beyond.begin(), beyond.end()})));
    }
    if (homeless > 0) {
      find("gpus_beyond_plan",
           fmt::format("{} node{} no GPU that could exist", homeless, homeless == 1 ? " has" : "s have"));
    }
  }

  void check_experts() {
    std::set<std::int64_t> experts;
    for (std::size_t i = 0; i < graph_.nodes.size(); ++i) {
      if (roles_[i] == Role::expert) experts.insert(expert_number(names_[i]));
    }
    const std::vector<bool> found = gpus_with(Role::expert);
    const int degree = plan_.parallel.ep;
    std::vector<bool> held(static_cast<std::size_t>(degree), false);
    for (std::size_t rank = 0; rank < found.size(); ++rank) {
      if (found[rank]) held[static_cast<std::size_t>(mesh_.coordinates(static_cast<int>(rank)).ep)] = true;
    }
    std::vector<std::int64_t> missing;
    for (int i = 0; i < degree; ++i) {
      if (!held[static_cast<std::size_t>(i)]) missing.push_back(i);
    }
    std::vector<std::int64_t> absent;
    for (std::int64_t e = 0; e < plan_.model.experts().num_experts; ++e) {
      if (!experts.contains(e)) absent.push_back(e);
    }
    if (!missing.empty() || !absent.empty()) {
      find("experts_without_nodes",
           fmt::format(
               "{} expert node{}; {} of {} expert-parallel groups have none{}, and {} of {} experts appear nowhere{}",
               count(Role::expert), count(Role::expert) == 1 ? "" : "s", missing.size(), degree,
               missing.empty() ? "" : fmt::format(" (ep {})", ranges(missing)), absent.size(),
               plan_.model.experts().num_experts, absent.empty() ? "" : fmt::format(" ({})", ranges(absent))));
    }
  }

  void check_reductions() {
    if (plan_.parallel.tp == 1) return;
    const auto missing = groups_without(Axis::tp, Role::tp_reduction);
    if (missing.empty()) return;
    const int groups = mesh_.world() / plan_.parallel.tp;
    find("missing_tp_allreduce",
         fmt::format("tp {} leaves partial sums on the GPUs of each of {} groups; {} of them have no TP all-reduce (or "
                     "reduce-scatter) node: groups {}",
                     plan_.parallel.tp, groups, missing.size(), ranges(missing)));
  }

  void check_dispatch() {
    if (plan_.parallel.ep == 1) return;
    const auto missing = groups_without(Axis::ep, Role::alltoall);
    const std::size_t nodes = count(Role::alltoall);
    const auto groups = static_cast<std::size_t>(mesh_.world() / plan_.parallel.ep);
    if (missing.empty() && (nodes > 1 || groups == 1)) return;
    find("single_alltoall", fmt::format("{} all-to-all node{} for {} group{} of {} GPUs; groups without one: {}", nodes,
                                        nodes == 1 ? "" : "s", groups, groups == 1 ? "" : "s", plan_.parallel.ep,
                                        missing.empty() ? "none" : ranges(missing)));
  }

  void check_aggregation() {
    const std::vector<bool> found = gpus_with(Role::aggregation);
    const auto with = static_cast<std::size_t>(std::count(found.begin(), found.end(), true));
    if (with == found.size()) return;
    const std::size_t nodes = count(Role::aggregation);
    find("single_aggregation", fmt::format("{} aggregation node{} on {} of {} GPUs; every GPU combines its own tokens",
                                           nodes, nodes == 1 ? "" : "s", with, found.size()));
  }

  int stage_of(std::int64_t gpu) const { return in_world(gpu) ? mesh_.coordinates(static_cast<int>(gpu)).pp : -1; }

  void check_stages() {
    const int stages = plan_.parallel.pp;
    if (stages == 1) return;
    std::vector<bool> seen(static_cast<std::size_t>(stages), false);
    for (const AuditedNode& node : graph_.nodes) {
      for (const std::int64_t gpu : node.gpus) {
        if (in_world(gpu)) seen[static_cast<std::size_t>(stage_of(gpu))] = true;
      }
    }
    std::vector<std::int64_t> missing;
    for (int s = 0; s < stages; ++s) {
      if (!seen[static_cast<std::size_t>(s)]) missing.push_back(s);
    }
    if (!missing.empty()) {
      find("missing_stage",
           fmt::format("{} of {} pipeline stages have no node: stages {}", missing.size(), stages, ranges(missing)));
    }
    std::vector<bool> crossed(static_cast<std::size_t>(stages), false);
    for (const auto& [from, to] : graph_.edges) {
      const auto a = index_.find(from);
      const auto b = index_.find(to);
      if (a == index_.end() || b == index_.end()) continue;
      const auto& from_gpus = graph_.nodes[a->second].gpus;
      const auto& to_gpus = graph_.nodes[b->second].gpus;
      if (from_gpus.empty() || to_gpus.empty()) continue;
      const int before = stage_of(from_gpus.front());
      for (const std::int64_t gpu : to_gpus) {
        const int after = stage_of(gpu);
        if (before >= 0 && after == before + 1) crossed[static_cast<std::size_t>(after)] = true;
      }
    }
    std::vector<std::int64_t> apart;
    for (int s = 1; s < stages; ++s) {
      if (!crossed[static_cast<std::size_t>(s)]) apart.push_back(s);
    }
    if (!apart.empty()) {
      find("missing_p2p", fmt::format("no edge brings activations to stage{} {} from the stage before",
                                      apart.size() == 1 ? "" : "s", ranges(apart)));
    }
  }

  void check_shapes() {
    std::size_t impossible = 0;
    std::size_t whole = 0;
    std::string first;
    std::string first_whole;
    const auto width = static_cast<double>(plan_.model.experts().intermediate_size);
    const double part = width / plan_.parallel.etp;
    for (std::size_t i = 0; i < graph_.nodes.size(); ++i) {
      const std::vector<double>& shape = graph_.nodes[i].shape;
      bool sound = true;
      for (std::size_t d = 0; d < shape.size(); ++d) {
        // No rows are possible: a rank or an expert without a token.
        sound = sound && std::isfinite(shape[d]) && shape[d] == std::floor(shape[d]) && shape[d] >= (d == 0 ? 0 : 1) &&
                shape[d] < 1e12;
      }
      if (!sound && impossible++ == 0) first = fmt::format("{} of {}", shape_text(shape), id_of(i));
      if (roles_[i] == Role::expert && plan_.parallel.etp > 1 && shape.size() > 1 && shape.back() == width &&
          shape.back() > part && plan_.model.hidden_size != plan_.model.experts().intermediate_size && whole++ == 0) {
        first_whole = fmt::format("{} of {}", shape_text(shape), id_of(i));
      }
    }
    if (impossible > 0) {
      find("impossible_shape", fmt::format("{} node{} a shape that cannot be, the first {}", impossible,
                                           impossible == 1 ? " has" : "s have", first));
    }
    if (whole > 0) {
      find("impossible_shape",
           fmt::format("{} expert node{} the whole width {}, but etp {} leaves a GPU {:.6g}: the first {}", whole,
                       whole == 1 ? " has" : "s have", plan_.model.experts().intermediate_size, plan_.parallel.etp,
                       part, first_whole));
    }
  }

  static std::string shape_text(const std::vector<double>& shape) {
    std::string text = "[";
    for (const double dim : shape) text += fmt::format("{}{:.10g}", text.size() > 1 ? ", " : "", dim);
    return text + "]";
  }

  const AuditedGraph& graph_;
  const Plan& plan_;
  Mesh mesh_;
  std::vector<NodeName> names_;
  std::vector<Role> roles_;
  NodeIndex index_;
  std::vector<Finding> findings_;
};

}  // namespace

std::vector<Finding> audit(const AuditedGraph& graph, const Plan& plan) {
  return Auditor(graph, plan).run();
}

}  // namespace shardproof
