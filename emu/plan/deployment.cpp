#include "emu/plan/deployment.h"

#include <utility>

#include "emu/plan/mesh.h"

namespace shardproof {

namespace {

/// Of the rank that routes the row in the first stage: every stage has the same grid of ranks.
const Layout& routing_layout(const Deployment& deployment, std::int64_t row) {
  const Mesh mesh(deployment.layouts.front().parallel);
  return deployment.layouts[static_cast<std::size_t>(mesh.rank_at(deployment.tokens.home(row).at))];
}

}  // namespace

std::int64_t physical_expert(const ModelConfig& model, const Deployment& deployment, int layer, std::int64_t row,
                             std::int64_t expert) {
  const Layout& layout = routing_layout(deployment, row);
  if (layout.expert_maps == nullptr) return expert;
  const ExpertMap& map = (*layout.expert_maps)[static_cast<std::size_t>(layer)];
  return map.choose(expert, deployment.tokens.run_as(row), layout.layer(model, layer).experts,
                    layout.parallel.experts.replica);
}

int serving_ep(const ModelConfig& model, const Deployment& deployment, int layer, std::int64_t row,
               std::int64_t expert) {
  const std::int64_t physical = physical_expert(model, deployment, layer, row, expert);
  return routing_layout(deployment, row).layer(model, layer).expert_owner[static_cast<std::size_t>(physical)];
}

Deployment deploy(const ModelConfig& model, const Parallel& parallel, TokenMap tokens, const Workload& workload) {
  const Mesh mesh(parallel);
  Deployment deployment{.tokens = std::move(tokens), .layouts = {}, .timetable = {}, .serving = {}, .kv_blocks = {}};
  const auto maps = expert_maps_of(model, parallel, workload.routing);
  for (int rank = 0; rank < mesh.world(); ++rank) deployment.layouts.push_back(make_layout(model, mesh, rank, maps));
  deployment.timetable = forward_timetable(deployment.layouts, deployment.tokens.microbatches(), workload.microbatches);
  return deployment;
}

Deployment deploy(const ModelConfig& model, const Parallel& parallel, const Workload& workload) {
  const std::vector<ReplicaSchedule> schedule = make_schedule(parallel, workload);
  Deployment deployment = deploy(model, parallel, TokenMap(parallel, workload, schedule), workload);
  if (workload.serving) {
    deployment.serving = workload.serving;
    for (const ReplicaSchedule& replica : schedule) {
      deployment.kv_blocks.push_back(kv_blocks_of(*workload.serving, replica, parallel.dcp));
    }
  }
  return deployment;
}

}  // namespace shardproof
