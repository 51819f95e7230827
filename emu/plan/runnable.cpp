#include "emu/plan/runnable.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <utility>

#include "emu/plan/validate.h"

namespace shardproof {

RunnablePlan::RunnablePlan(Plan plan) : plan_(std::move(plan)), mesh_(plan_.parallel) {}

RunnablePlan RunnablePlan::scaled(const ScaleOptions& options) const {
  return RunnablePlan(shardproof::scaled(plan_, options));
}

RunnablePlan RunnablePlan::reseeded(std::uint64_t seed) const {
  Plan plan = plan_;
  plan.workload.seed = seed;
  return RunnablePlan(std::move(plan));
}

std::vector<Problem> not_executed(const Plan& plan) {
  if (plan.parallel.cp <= 1) return {};
  return {
      {"parallel.cp", fmt::format("cp = {}: context parallelism is not executed yet; only plans with cp = 1 are run",
                                  plan.parallel.cp)}};
}

std::vector<Problem> not_computed(const Plan& plan) {
  const auto has_norms = [](const LayerSpec& layer) { return layer.attention.query_key_norm; };
  if (std::ranges::none_of(plan.model.layers.kinds(), has_norms)) return {};
  return {{"model.model_type", fmt::format("{}: the norms of queries and keys inside each head are not computed yet",
                                           plan.model.model_type)}};
}

Runnable make_runnable(Plan plan) {
  Runnable runnable{.plan = {}, .problems = validate(plan)};
  std::ranges::move(not_executed(plan), std::back_inserter(runnable.problems));
  std::ranges::move(not_computed(plan), std::back_inserter(runnable.problems));
  if (runnable.problems.empty()) runnable.plan = RunnablePlan(std::move(plan));
  return runnable;
}

}  // namespace shardproof
