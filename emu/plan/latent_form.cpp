#include "emu/plan/latent_form.h"

#include <algorithm>

namespace shardproof {

std::vector<std::int64_t> absorbed_from(const Parallel& parallel, const Workload& workload) {
  std::vector<std::int64_t> from = workload.lengths;
  if (!workload.serving || !decodes_absorbed(parallel, workload)) return from;
  std::ranges::transform(workload.serving->requests, from.begin(), &Request::prompt);
  return from;
}

bool has_absorbed(const Plan& plan) {
  const auto latent = [](const LayerSpec& layer) { return layer.attention.latent(); };
  if (!std::ranges::any_of(plan.model.layers.kinds(), latent)) return false;
  return absorbed_from(plan.parallel, plan.workload) != plan.workload.lengths;
}

std::vector<bool> absorbed_rows(const Plan& plan) {
  std::vector<bool> rows;
  if (!has_absorbed(plan)) return rows;
  const std::vector<std::int64_t> from = absorbed_from(plan.parallel, plan.workload);
  for (std::size_t s = 0; s < from.size(); ++s) {
    for (std::int64_t position = 0; position < plan.workload.lengths[s]; ++position)
      rows.push_back(position >= from[s]);
  }
  return rows;
}

}  // namespace shardproof
