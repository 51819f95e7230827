#include "emu/plan/deployment.h"

#include <utility>

#include "emu/plan/mesh.h"

namespace shardproof {

int serving_ep(const ModelConfig& model, const Deployment& deployment, int layer, std::int64_t row,
               std::int64_t expert) {
  // Every stage has the same grid of ranks; the first one's tells.
  const Mesh mesh(deployment.layouts.front().parallel);
  const int router = mesh.rank_at(deployment.tokens.home(row).at);
  const Layout& layout = deployment.layouts[static_cast<std::size_t>(router)];
  const LayerLayout& held = layout.layer(model, layer);
  if (layout.expert_maps != nullptr) {
    const ExpertMap& map = (*layout.expert_maps)[static_cast<std::size_t>(layer)];
    expert = map.choose(expert, row, held.experts, layout.parallel.experts.replica);
  }
  return held.expert_owner[static_cast<std::size_t>(expert)];
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
