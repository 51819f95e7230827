#include "emu/plan/deployment.h"

#include "emu/plan/mesh.h"

namespace shardproof {

Deployment deploy(const ModelConfig& model, const Parallel& parallel, const Workload& workload) {
  const Mesh mesh(parallel);
  Deployment deployment{
      .tokens = TokenMap(parallel, workload), .layouts = {}, .timetable = {}, .serving = {}, .kv_blocks = {}};
  const auto maps = expert_maps_of(model, parallel, workload.routing);
  for (int rank = 0; rank < mesh.world(); ++rank) deployment.layouts.push_back(make_layout(model, mesh, rank, maps));
  deployment.timetable = forward_timetable(deployment.layouts, deployment.tokens.microbatches(), workload.microbatches);
  if (workload.serving) {
    deployment.serving = workload.serving;
    for (const ReplicaSchedule& replica : make_schedule(parallel, workload)) {
      deployment.kv_blocks.push_back(kv_blocks_of(*workload.serving, replica));
    }
  }
  return deployment;
}

}  // namespace shardproof
