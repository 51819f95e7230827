#include "emu/timeline/graph.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <unordered_map>

#include "emu/plan/stages.h"
#include "emu/run/dry_run.h"

namespace shardproof {
namespace {

std::string short_name(Operation operation) {
  switch (operation) {
    case Operation::all_reduce:
      return "allreduce";
    case Operation::all_gather:
      return "allgather";
    case Operation::reduce_scatter:
      return "reducescatter";
    case Operation::all_to_all:
      return "alltoall";
    case Operation::send:
    case Operation::recv:
      return "p2p";
    default:
      return std::string(to_string(operation));
  }
}

class Builder {
 public:
  Builder(const Plan& plan, const DryTraces& traces)
      : plan_(plan), traces_(traces), mesh_(plan.parallel), stages_(plan.model, plan.parallel) {}

  DeploymentGraph build() {
    graph_.name = plan_.name;
    graph_.ranks = mesh_.world();
    for (int rank = 0; rank < mesh_.world(); ++rank) walk(rank);
    std::sort(graph_.edges.begin(), graph_.edges.end());
    graph_.edges.erase(std::unique(graph_.edges.begin(), graph_.edges.end()), graph_.edges.end());
    return std::move(graph_);
  }

 private:
  int node(std::string id, const char* type, int gpu, int layer, std::vector<std::int64_t> shape) {
    const auto [at, is_new] = index_.try_emplace(std::move(id), static_cast<int>(graph_.nodes.size()));
    if (is_new) {
      GraphNode made;
      made.id = at->first;
      made.type = type;
      made.gpu = gpu;
      made.layer = layer;
      made.comp = made.type == "comm" ? "communication" : made.type == "agg" ? "data_aggregation" : "computation";
      made.style = made.type == "comm" ? "dashed" : made.type == "agg" ? "dotted" : "solid";
      graph_.nodes.push_back(std::move(made));
    }
    GraphNode& found = graph_.nodes[static_cast<std::size_t>(at->second)];
    // The last op folded into a node gives its result; of a collective's members, the one with the most.
    if (found.type != "comm" || is_new || (!shape.empty() && (found.shape.empty() || shape[0] > found.shape[0]))) {
      found.shape = std::move(shape);
    }
    return at->second;
  }

  static std::string prefix(int layer) { return layer < 0 ? "" : fmt::format("layer_{}.", layer); }

  /// From every node that the rank has come to, to this one; the rank is then there.
  void step_to(int node) {
    for (const int from : frontier_) {
      if (from != node) graph_.edges.emplace_back(from, node);
    }
    // What is under way is come to where it is awaited.
    if (std::exchange(issuing_, false)) {
      under_way_.push_back({node, frontier_});
    } else {
      frontier_ = {node};
    }
  }

  /// The rank is where the call is that it waits for; what it has come to beside it joins later.
  void await() {
    const auto [node, before] = std::move(under_way_.front());
    under_way_.erase(under_way_.begin());
    if (frontier_ != before) beside_ = frontier_;
    frontier_ = {node};
  }

  /// A block begins at the residual stream, and ends where its output is added to it.
  void begin_block() { stream_ = frontier_; }
  void end_block(int node) {
    frontier_.insert(frontier_.end(), stream_.begin(), stream_.end());
    step_to(node);
  }

  void walk(int rank) {
    frontier_.clear();
    stream_.clear();
    for (const OpRecord& record : traces_.of(rank).ops) {
      if (record.microbatch != 0) continue;
      issuing_ = record.phase == CallPhase::issued;
      if (record.phase == CallPhase::awaited) {
        await();
      } else {
        visit(rank, record);
      }
    }
  }

  int on_rank(int rank, const OpRecord& record, const char* kind, const char* type) {
    return node(fmt::format("{}{}_{}", prefix(record.layer), kind, rank), type, rank, record.layer,
                {record.rows, record.cols});
  }

  /// Every op has its place: one that is missing here does not compile.
  void visit(int rank, const OpRecord& record) {
    switch (record.op) {
      case Op::embedding:
        return step_to(on_rank(rank, record, "embedding", "compute"));
      case Op::embedding_reduce:
        return step_to(collective(rank, record, "embedding.", ""));
      case Op::embedding_scale:
        return step_to(on_rank(rank, record, "embedding_scale", "compute"));
      case Op::stage_receive:
      case Op::stage_send:
        return step_to(message(rank, record));
      case Op::attention_norm:
        begin_block();
        return step_to(on_rank(rank, record, "attention_norm", "compute"));
      case Op::attention_q_latent:
      case Op::attention_q_latent_norm:
      case Op::attention_kv_latent:
      case Op::attention_kv_latent_norm:
      case Op::attention_kv:
      case Op::attention_heads:
      case Op::attention_cache_write:
      case Op::attention_cache_read:
      case Op::attention_cached_kv:
      case Op::attention_cached_heads:
      case Op::attention_absorb:
      case Op::attention_q_norm:
      case Op::attention_k_norm:
      case Op::attention_rope_q:
      case Op::attention_rope_k:
        return step_to(on_rank(rank, record, "attention", "compute"));
      case Op::attention_q:
      case Op::attention_k:
      case Op::attention_v:
      case Op::attention_squares:
        return step_to(
            on_rank(rank, record, norms_over_heads(record.layer) ? "attention_qkv" : "attention", "compute"));
      case Op::attention_split_heads:
        return step_to(on_rank(rank, record, "attention", "compute"));
      case Op::attention_in_order:
      case Op::attention_context:
      case Op::attention_latent_context:
      case Op::attention_expand:
      case Op::attention_out_of_order:
        return step_to(on_rank(rank, record, spread_over_ranks() ? "attention_context" : "attention", "compute"));
      case Op::attention_ring_part:
        return;  // of the node in which the parts are merged
      case Op::attention_ring_merge:
      case Op::attention_dcp_part:
      case Op::attention_dcp_merge:
        return step_to(on_rank(rank, record, "attention_context", "compute"));
      case Op::attention_join_heads:
      case Op::attention_output:
        return step_to(on_rank(rank, record, spread_over_ranks() ? "attention_output" : "attention", "compute"));
      case Op::attention_residual:
        return end_block(on_rank(rank, record, "attention_residual", "agg"));
      case Op::moe_norm:
        begin_block();
        return step_to(on_rank(rank, record, is_dense(record.layer) ? "mlp" : "router", "compute"));
      case Op::router_logits:
      case Op::router_choice:
      case Op::moe_permute:
        return step_to(on_rank(rank, record, "router", "compute"));
      case Op::attention_gather:
      case Op::attention_dcp_gather_cache:
      case Op::attention_dcp_gather_q:
      case Op::attention_dcp_maximum:
      case Op::attention_dcp_context:
      case Op::attention_dcp_sums:
      case Op::attention_gather_k:
      case Op::attention_gather_v:
      case Op::attention_heads_in:
      case Op::attention_reduce:
      case Op::dispatch_counts:  // one node with the rows that they count
      case Op::dispatch:
      case Op::dispatch_rows:
      case Op::dispatch_choice:  // one node with the rows that they are of
      case Op::dispatch_weights:
      case Op::expert_counts:
      case Op::expert_gather:
      case Op::expert_reduce:
      case Op::moe_gather:
        return step_to(collective(rank, record, "", ""));
      case Op::attention_squares_reduce:
        return step_to(collective(rank, record, "", "_norm"));
      case Op::mlp_gather:
      case Op::mlp_reduce:
        return step_to(collective(rank, record, "", "_mlp"));
      case Op::mlp:
      case Op::shared_gate:
      case Op::shared_output:
        return step_to(on_rank(rank, record, is_dense(record.layer) ? "mlp" : "shared_expert", "compute"));
      case Op::moe_sum:
        frontier_.insert(frontier_.end(), beside_.begin(), beside_.end());
        beside_.clear();
        return step_to(on_rank(rank, record, "shared_agg", "agg"));
      case Op::attention_ring_send:
      case Op::attention_ring_receive:  // one node for all steps of the ring
        return step_to(collective(rank, record, "", "_ring"));
      case Op::attention_heads_out:
        return step_to(collective(rank, record, "", "_return"));
      case Op::combine_return:
      case Op::moe_reduce:
        return step_to(collective(rank, record, "", "_return"));
      case Op::moe_sort:
        return experts(rank, record.layer);
      case Op::moe_expert: {
        const int expert = expert_node(rank, record.layer, experts_of(rank, record.layer).begin + record.expert);
        graph_.nodes[static_cast<std::size_t>(expert)].shape = {record.rows, record.cols};
        return;
      }
      case Op::moe_unsort:  // moves rows inside the experts' nodes
        return;
      case Op::moe_combine:
        return step_to(on_rank(rank, record, "ep_agg", "agg"));
      case Op::moe_residual:
        return end_block(on_rank(rank, record, "residual", "agg"));
      case Op::final_norm:
        return step_to(on_rank(rank, record, "final_norm", "compute"));
      case Op::head_gather:
        return step_to(collective(rank, record, "head.", ""));
      case Op::logits:
        return step_to(on_rank(rank, record, "head", "compute"));
    }
  }

  bool norms_over_heads(int layer) const {
    return plan_.model.layers[layer].attention.query_key_norm == QueryKeyNorm::full;
  }

  /// Keys and values are with several ranks: what is before attention, attention and what is after are apart.
  bool spread_over_ranks() const { return plan_.parallel.cp > 1 || plan_.parallel.dcp > 1; }
  bool is_dense(int layer) const { return plan_.model.layers[layer].feed_forward.dense(); }

  /// The activations that arrive at a stage.
  int message(int rank, const OpRecord& record) {
    const int stage = mesh_.coordinates(rank).pp + (record.op == Op::stage_send ? 1 : 0);
    const int layer = static_cast<int>(stages_.layers_of(stage).begin);
    const int size = mesh_.world() / plan_.parallel.pp;
    const int receiver = stage * size + rank % size;
    const int made = node(fmt::format("layer_{}.pp_stage_{}_{}", layer, stage, rank % size), "comm", receiver, layer,
                          {record.rows, record.cols});
    graph_.nodes[static_cast<std::size_t>(made)].gpus = {receiver - size, receiver};
    return made;
  }

  int collective(int rank, const OpRecord& record, std::string_view before, std::string_view after) {
    const std::vector<int> members = mesh_.group(record.axis, rank);
    const std::size_t index = index_of_group(record.axis, members.front());
    const std::string id = fmt::format("{}{}{}_{}{}_{}", before, prefix(record.layer), to_string(record.axis),
                                       short_name(record.operation), after, index);
    const int made = node(id, "comm", members.front(), record.layer, {});
    GraphNode& found = graph_.nodes[static_cast<std::size_t>(made)];
    if (found.gpus.empty()) found.gpus = members;
    widen(found, record);
    return made;
  }

  std::size_t index_of_group(Axis axis, int first) {
    auto& known = index_of_first_[axis];
    if (known.empty()) {
      const std::vector<std::vector<int>> groups = mesh_.groups(axis);
      for (std::size_t i = 0; i < groups.size(); ++i) known.emplace(groups[i].front(), i);
    }
    return known.at(first);
  }

  /// A collective's shape: rows of what it carries, of the member that puts in the most.
  void widen(GraphNode& found, const OpRecord& record) const {
    if (record.cols == 0) return;
    std::vector<std::int64_t> shape{record.elements / record.cols, record.cols};
    if (found.shape.empty() || shape[0] > found.shape[0]) found.shape = std::move(shape);
  }

  Range experts_of(int rank, int layer) const {
    const std::int64_t physical = plan_.model.layers[layer].feed_forward.num_experts + plan_.parallel.experts.redundant;
    return partition(physical, plan_.parallel.ep, mesh_.coordinates(rank).ep);
  }

  int expert_node(int rank, int layer, std::int64_t expert) {
    const Coordinates at = mesh_.coordinates(rank);
    const std::string replica = plan_.parallel.edp > 1 ? fmt::format("_r{}", at.edp) : "";
    return node(fmt::format("{}expert_{}_{}{}", prefix(layer), expert, at.etp, replica), "compute", rank, layer,
                {0, plan_.model.hidden_size});
  }

  /// Every expert that the rank holds works beside the others, those without a token too.
  void experts(int rank, int layer) {
    const Range held = experts_of(rank, layer);
    std::vector<int> nodes;
    for (std::int64_t expert = held.begin; expert < held.end(); ++expert) {
      nodes.push_back(expert_node(rank, layer, expert));
      for (const int from : frontier_) graph_.edges.emplace_back(from, nodes.back());
    }
    frontier_ = std::move(nodes);
  }

  const Plan& plan_;
  const DryTraces& traces_;
  Mesh mesh_;
  Stages stages_;
  std::map<Axis, std::unordered_map<int, std::size_t>> index_of_first_;
  DeploymentGraph graph_;
  std::unordered_map<std::string, int> index_;
  std::vector<int> frontier_;
  std::vector<int> stream_;
  bool issuing_ = false;
  std::vector<std::pair<int, std::vector<int>>> under_way_;  // nodes, each with where the rank was when it issued it
  std::vector<int> beside_;
};

bool touches(const GraphNode& node, const GraphSelection& s) {
  const auto inside = [&](int rank) { return rank >= s.first_rank && rank <= s.last_rank; };
  if (!inside(node.gpu) && std::none_of(node.gpus.begin(), node.gpus.end(), inside)) return false;
  if (node.layer < 0) return s.first_layer <= 0 && s.last_layer >= 1 << 29;
  return node.layer >= s.first_layer && node.layer <= s.last_layer;
}

/// The name without its layer and its numbers: "expert", "ep_alltoall_return".
std::string kind_of(const GraphNode& node) {
  std::string kind = node.id;
  if (node.layer >= 0) kind = kind.substr(kind.find('.') + 1);
  while (!kind.empty()) {
    const std::size_t underscore = kind.rfind('_');
    if (underscore == std::string::npos) break;
    const std::string_view tail = std::string_view(kind).substr(underscore + 1);
    const std::string_view digits = tail.starts_with('r') ? tail.substr(1) : tail;
    if (digits.empty() || !std::all_of(digits.begin(), digits.end(), [](char c) { return c >= '0' && c <= '9'; }))
      break;
    kind.resize(underscore);
  }
  return kind;
}

}  // namespace

DeploymentGraph deployment_graph(const Plan& plan) {
  const StatedRouting routing = StatedRouting::of(plan);
  const DryTraces traces = dry_run(plan, ops::Format::fp32, DryPass::prefill, routing);
  return Builder(plan, traces).build();
}

double estimated_graph_bytes(const Plan& plan) {
  std::vector<double> bytes;
  double lists = 0;
  const std::vector<int> list_of_rank =
      fold_dry_run(plan, ops::Format::fp32, DryPass::prefill, StatedRouting::of(plan), [&](int, const auto& trace) {
        // A node and its edges, in memory and as text; a call is one node of its whole group.
        constexpr double kComputation = 700, kCall = 100;
        double list = 0;
        for (const OpRecord& record : trace->ops) list += record.call ? kCall : kComputation;
        bytes.push_back(list);
        lists += static_cast<double>(trace->ops.size() * sizeof(OpRecord));
      });
  constexpr double kProcess = 14e6;
  double sum = kProcess + lists;
  for (const int list : list_of_rank) sum += bytes[static_cast<std::size_t>(list)];
  return sum;
}

DeploymentGraph selected(const DeploymentGraph& graph, const GraphSelection& selection) {
  DeploymentGraph part;
  part.name = graph.name;
  part.ranks = graph.ranks;
  std::vector<int> index(graph.nodes.size(), -1);
  for (std::size_t i = 0; i < graph.nodes.size(); ++i) {
    if (!touches(graph.nodes[i], selection)) continue;
    index[i] = static_cast<int>(part.nodes.size());
    part.nodes.push_back(graph.nodes[i]);
  }
  for (const auto& [from, to] : graph.edges) {
    const int a = index[static_cast<std::size_t>(from)];
    const int b = index[static_cast<std::size_t>(to)];
    if (a >= 0 && b >= 0) part.edges.emplace_back(a, b);
  }
  return part;
}

DeploymentGraph folded(const DeploymentGraph& graph, const Plan& plan) {
  const Stages stages(plan.model, plan.parallel);
  DeploymentGraph part;
  part.name = graph.name;
  part.ranks = graph.ranks;
  std::map<std::string, int> index;
  std::vector<int> to_folded;
  for (const GraphNode& node : graph.nodes) {
    std::string id = kind_of(node);
    if (node.layer >= 0) {
      const Range layers = stages.layers_of(stages.stage_of(node.layer));
      id.insert(0, layers.count == 1 ? fmt::format("layer_{}.", layers.begin)
                                     : fmt::format("layers_{}-{}.", layers.begin, layers.end() - 1));
    }
    const auto [at, is_new] = index.try_emplace(id, static_cast<int>(part.nodes.size()));
    to_folded.push_back(at->second);
    if (is_new) {
      part.nodes.push_back(node);
      part.nodes.back().id = id;
      part.nodes.back().gpus.clear();
      part.nodes.back().count = 0;
    }
    ++part.nodes[static_cast<std::size_t>(at->second)].count;
  }
  for (const auto& [from, to] : graph.edges) {
    const GraphNode& a = graph.nodes[static_cast<std::size_t>(from)];
    const GraphNode& b = graph.nodes[static_cast<std::size_t>(to)];
    // From one layer to the next of the same stage: that is the repetition.
    if (a.layer >= 0 && b.layer >= 0 && a.layer != b.layer && stages.stage_of(a.layer) == stages.stage_of(b.layer))
      continue;
    const std::pair edge{to_folded[static_cast<std::size_t>(from)], to_folded[static_cast<std::size_t>(to)]};
    if (edge.first != edge.second) part.edges.push_back(edge);
  }
  std::sort(part.edges.begin(), part.edges.end());
  part.edges.erase(std::unique(part.edges.begin(), part.edges.end()), part.edges.end());
  return part;
}

}  // namespace shardproof
