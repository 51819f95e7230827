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
  if (plan.parallel.cp <= 1 || !plan.workload.serving) return {};
  return {
      {"parallel.cp",
       fmt::format("cp = {}: requests are served with cp = 1 only; a forward over whole sequences (workload.lengths, "
                   "or batch and sequence) runs with any cp",
                   plan.parallel.cp)}};
}

std::vector<Problem> not_computed(const Plan& plan) {
  std::vector<Problem> problems;
  const ModelConfig& model = plan.model;
  const auto refuse_if = [&](bool has, std::string_view what) {
    if (has) problems.push_back({"model.model_type", fmt::format("{}: {} not computed yet", model.model_type, what)});
  };
  const auto any = [&](const auto& has) { return std::ranges::any_of(model.layers.kinds(), has); };
  refuse_if(any([](const LayerSpec& layer) { return layer.attention.query_key_norm == QueryKeyNorm::full; }),
            "norms of queries and keys over all heads are");
  refuse_if(any([](const LayerSpec& layer) { return layer.attention.rope.type == RopeType::longrope; }),
            "a rotary embedding scaled by \"longrope\" is");
  refuse_if(model.layer_norm, "LayerNorm and sparsemixer routing are");
  refuse_if(model.head_bias, "a bias of the output head is");
  refuse_if(model.embedding_multiplier != 1 || model.residual_multiplier != 1 || model.logits_scaling != 1,
            "multipliers of embedding, residual and logits are");
  return problems;
}

Runnable make_runnable(Plan plan) {
  Runnable runnable{.plan = {}, .problems = validate(plan)};
  std::ranges::move(not_executed(plan), std::back_inserter(runnable.problems));
  std::ranges::move(not_computed(plan), std::back_inserter(runnable.problems));
  if (runnable.problems.empty()) runnable.plan = RunnablePlan(std::move(plan));
  return runnable;
}

}  // namespace shardproof
