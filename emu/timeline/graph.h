// The deployment graph: which GPU computes, communicates and aggregates what, and what waits for what.
//
// Folded from the records of a dry run under the workload's routing, microbatch 0: nothing is drawn that does not
// happen, and every op has its place. Ids name the layer first:
//   layer_3.attention_norm_5, layer_3.attention_5, layer_3.attention_residual_5, layer_3.router_5, layer_3.residual_5
//                            of GPU 5; both residuals join a block's output with the stream that entered it
//   layer_3.expert_7_1       the part of expert 7 at etp 1 ("_r2" appended for replica edp 2)
//   layer_3.ep_agg_5         GPU 5 combines what its tokens' experts gave
//   layer_3.tp_allreduce_2, layer_3.ep_alltoall_1, layer_3.ep_alltoall_return_1, ...      of group 2, 1 of the axis
//   layer_4.pp_stage_2_1     the activations arrive at the second GPU of stage 2
//   embedding_0, final_norm_0, head_0
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "emu/plan/plan.h"

namespace shardproof {

struct GraphNode {
  std::string id;
  std::string type;                 ///< compute, comm, agg
  int gpu = 0;                      ///< of a collective: the first member
  std::vector<std::int64_t> shape;  ///< of the result
  std::string comp;                 ///< computation, communication, data_aggregation
  std::string style;                ///< solid, dashed, dotted
  std::vector<int> gpus;            ///< members of a collective; else empty
  int layer = -1;
  int count = 1;  ///< how many nodes a folded one stands for
};

struct DeploymentGraph {
  std::string name;
  int ranks = 0;
  std::vector<GraphNode> nodes;
  std::vector<std::pair<int, int>> edges;  ///< indices into nodes, sorted, no duplicates
};

/// The plan must be valid (validate.h).
DeploymentGraph deployment_graph(const Plan& plan);

/// What the process that draws it, and writes it as text, takes at the most. Throws TooManyRecords.
double estimated_graph_bytes(const Plan& plan);

struct GraphSelection {
  int first_layer = 0, last_layer = 1 << 30;  ///< both included; a full range keeps embedding and head
  int first_rank = 0, last_rank = 1 << 30;
};

/// The nodes of these layers on these GPUs, a collective if any member is, and the edges between them.
DeploymentGraph selected(const DeploymentGraph& graph, const GraphSelection& selection);

/// One node for each repeated pattern: the GPUs of a stage into one, the layers of a stage into one.
DeploymentGraph folded(const DeploymentGraph& graph, const Plan& plan);

}  // namespace shardproof
