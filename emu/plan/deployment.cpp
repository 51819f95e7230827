#include "emu/plan/deployment.h"

#include "emu/plan/mesh.h"

namespace shardproof {

Deployment deploy(const ModelConfig& model, const Parallel& parallel, const Workload& workload) {
  const Mesh mesh(parallel);
  Deployment deployment{.tokens = TokenMap(parallel, workload), .layouts = {}, .timetable = {}};
  for (int rank = 0; rank < mesh.world(); ++rank) deployment.layouts.push_back(make_layout(model, mesh, rank));
  deployment.timetable = forward_timetable(deployment.layouts, workload.microbatches);
  return deployment;
}

}  // namespace shardproof
