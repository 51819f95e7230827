#include "emu/timeline/graph.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <unordered_map>

#include "collectives/make_executor.h"
#include "emu/plan/stages.h"
#include "emu/run/cluster.h"
#include "emu/run/transformer.h"

namespace shardproof {
namespace {

/// One step of a rank's program: an op or a collective.
struct Event {
  const OpRecord* op = nullptr;
  const CollectiveRecord* collective = nullptr;
  int layer = -1;
};

/// The rank's steps of microbatch 0 in order. A collective belongs to the op before it; a receive to the op after.
std::vector<Event> events_of(const RankTrace& trace, const std::vector<CollectiveRecord>& collectives) {
  std::vector<Event> events;
  std::size_t next = 0;
  const OpRecord* last = nullptr;
  const auto add_collectives = [&](std::size_t until, const OpRecord* following) {
    for (; next < until && next < collectives.size(); ++next) {
      const CollectiveRecord& record = collectives[next];
      const OpRecord* owner = record.operation == Operation::recv ? following : last;
      if (owner != nullptr && owner->microbatch == 0) events.push_back({nullptr, &record, owner->layer});
    }
  };
  for (const OpRecord& op : trace.ops) {
    add_collectives(static_cast<std::size_t>(op.collectives), &op);
    if (op.microbatch == 0) events.push_back({&op, nullptr, op.layer});
    last = &op;
  }
  add_collectives(collectives.size(), nullptr);
  return events;
}

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
    default:
      return std::string(to_string(operation));
  }
}

class Builder {
 public:
  Builder(const Plan& plan, const Cluster& cluster) : plan_(plan), cluster_(cluster), mesh_(cluster.mesh()) {}

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
    frontier_ = {node};
  }

  void walk(int rank) {
    frontier_.clear();
    repeats_.clear();
    const std::vector<Event> events =
        events_of(cluster_.rank(GlobalRank{rank}).trace(), cluster_.world().records(GlobalRank{rank}));
    const CollectiveRecord* previous = nullptr;
    int previous_node = -1;
    for (const Event& event : events) {
      if (event.collective != nullptr) {
        // Counts are exchanged just ahead of what they count: one node.
        const bool merged = previous != nullptr && previous->axis == event.collective->axis &&
                            previous->operation == event.collective->operation;
        previous_node = merged ? previous_node : comm_node(rank, event);
        widen(previous_node, *event.collective);
        step_to(previous_node);
        previous = event.collective;
        continue;
      }
      previous = nullptr;
      op(rank, *event.op);
    }
  }

  int comm_node(int rank, const Event& event) {
    const CollectiveRecord& record = *event.collective;
    const Coordinates at = mesh_.coordinates(rank);
    if (record.operation == Operation::send || record.operation == Operation::recv) {
      const int stage = record.operation == Operation::send ? at.pp + 1 : at.pp;
      const int layer = static_cast<int>(Stages(plan_.model, plan_.parallel).layers_of(stage).begin);
      const int size = mesh_.world() / plan_.parallel.pp;
      const int receiver = stage * size + rank % size;
      const int made =
          node(fmt::format("layer_{}.pp_stage_{}_{}", layer, stage, rank % size), "comm", receiver, layer, {});
      graph_.nodes[static_cast<std::size_t>(made)].gpus = {receiver - size, receiver};
      return made;
    }
    std::string base = fmt::format("{}{}_{}", prefix(event.layer), record.axis, short_name(record.operation));
    const int repeat = repeats_[base]++;
    if (repeat > 0)
      base += record.operation == Operation::all_to_all && repeat == 1 ? "_return" : fmt::format("_{}", repeat);
    if (event.layer < 0) base = (at.pp == 0 && frontier_is_embedding_ ? "embedding." : "head.") + base;
    const Group& group = cluster_.world().group(record.group);
    const int made =
        node(fmt::format("{}_{}", base, record.group_index), "comm", to_int(group.members[0]), event.layer, {});
    GraphNode& found = graph_.nodes[static_cast<std::size_t>(made)];
    if (found.gpus.empty()) {
      for (const GlobalRank member : group.members) found.gpus.push_back(to_int(member));
    }
    return made;
  }

  /// A collective's shape: rows of the residual stream where it carries these, else elements.
  void widen(int at, const CollectiveRecord& record) {
    if (size_of(record.type) == 8 && record.type == ElementType::i64) return;
    const auto elements = static_cast<std::int64_t>(record.elements);
    const std::int64_t hidden = plan_.model.hidden_size;
    std::vector<std::int64_t> shape =
        elements % hidden == 0 ? std::vector{elements / hidden, hidden} : std::vector{elements};
    GraphNode& found = graph_.nodes[static_cast<std::size_t>(at)];
    if (found.shape.empty() || shape[0] > found.shape[0]) found.shape = std::move(shape);
  }

  void op(int rank, const OpRecord& record) {
    const std::string_view name = record.op;
    const auto on_rank = [&](const char* kind, const char* type) {
      step_to(node(fmt::format("{}{}_{}", prefix(record.layer), kind, rank), type, rank, record.layer,
                   {record.rows, record.cols}));
    };
    frontier_is_embedding_ = name == "embedding";
    if (name == "embedding") return on_rank("embedding", "compute");
    if (name == "final_norm") return on_rank("final_norm", "compute");
    if (name == "logits") return on_rank("head", "compute");
    if (name == "attention.norm") return on_rank("attention_norm", "compute");
    if (name == "attention.residual" || name == "moe.norm" || name.starts_with("moe.router") || name == "moe.permute") {
      return on_rank("router", "compute");
    }
    if (name.starts_with("attention.")) return on_rank("attention", "compute");
    if (name == "moe.combine") return on_rank("ep_agg", "agg");
    if (name == "moe.residual") return on_rank("residual", "agg");
    if (name == "moe.sort") return experts(rank, record.layer);
    if (name == "moe.expert") {
      GraphNode& found = graph_.nodes[static_cast<std::size_t>(expert_node(rank, record.layer, record.expert))];
      found.shape = {record.rows, record.cols};
    }
    // "moe.unsort" moves rows inside the experts' nodes.
  }

  int expert_node(int rank, int layer, int expert) {
    const Coordinates at = mesh_.coordinates(rank);
    const std::string replica = plan_.parallel.edp > 1 ? fmt::format("_r{}", at.edp) : "";
    return node(fmt::format("{}expert_{}_{}{}", prefix(layer), expert, at.etp, replica), "compute", rank, layer,
                {0, plan_.model.hidden_size});
  }

  /// Every expert that the rank holds works beside the others, those without a token too.
  void experts(int rank, int layer) {
    const Range held =
        partition(plan_.model.layers[0].feed_forward.num_experts, plan_.parallel.ep, mesh_.coordinates(rank).ep);
    std::vector<int> nodes;
    for (std::int64_t expert = held.begin; expert < held.end(); ++expert) {
      nodes.push_back(expert_node(rank, layer, static_cast<int>(expert)));
      for (const int from : frontier_) graph_.edges.emplace_back(from, nodes.back());
    }
    frontier_ = std::move(nodes);
  }

  const Plan& plan_;
  const Cluster& cluster_;
  const Mesh& mesh_;
  DeploymentGraph graph_;
  std::unordered_map<std::string, int> index_;
  std::vector<int> frontier_;
  std::map<std::string, int> repeats_;
  bool frontier_is_embedding_ = false;
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

DeploymentGraph run_deployment_graph(const Plan& plan, int threads) {
  const ops::Format format = ops::Format::fp32;
  const Batch batch(plan.workload, plan.model.vocab_size);
  const GeneratedWeights weights(plan.workload.seed);
  WeightStore<float> store(weights, format);
  Cluster cluster(plan.parallel);
  const TransformerProgram<float> program{.model = plan.model,
                                          .batch = batch,
                                          .weights = store,
                                          .format = format,
                                          .deployment = deploy(plan.model, plan.parallel, plan.workload)};
  const std::unique_ptr<Executor> executor = make_executor(threads);
  cluster.run(*executor, [&](Rank& rank) { return run_transformer<float>(rank, program); });
  return Builder(plan, cluster).build();
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
