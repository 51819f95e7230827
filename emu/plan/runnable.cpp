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
  if (!plan.workload.serving) {
    if (plan.parallel.dcp == 1) return {};
    return {{"parallel.dcp",
             fmt::format("dcp = {} shares out the cache of requests, and a forward over whole sequences has none; "
                         "workload.requests (or batch, prompt and output), or dcp 1, is needed",
                         plan.parallel.dcp)}};
  }
  std::vector<Problem> problems;
  if (plan.parallel.cp > 1) {
    problems.push_back(
        {"parallel.cp",
         fmt::format("cp = {}: requests are served with cp = 1 only; a forward over whole sequences (workload.lengths, "
                     "or batch and sequence) runs with any cp",
                     plan.parallel.cp)});
  }
  const std::vector<Request>& requests = plan.workload.serving->requests;
  const auto timed = std::ranges::find_if(requests, [](const Request& request) { return request.arrival_s > 0; });
  if (timed != requests.end()) {
    problems.push_back({fmt::format("workload.requests[{}].arrival_s", timed - requests.begin()),
                        fmt::format("{:g}: seconds pass in `time` only; arrival, in steps, is needed to run a plan",
                                    timed->arrival_s)});
  }
  return problems;
}

std::vector<Problem> not_computed(const Plan& plan) {
  for (const LayerSpec& layer : plan.model.layers.kinds()) {
    const RopeSpec& rope = layer.attention.rope;
    if (rope.type != RopeType::longrope || plan.workload.lengths.empty()) continue;
    const std::int64_t longest = std::ranges::max(plan.workload.lengths);
    if (longest <= rope.original_context) continue;
    return {
        {"model.rope_scaling.long_factor",
         fmt::format("a sequence of {} tokens exceeds original_max_position_embeddings = {}, beyond which \"longrope\" "
                     "turns by its long factors, on which implementations differ: not computed; sequences of at most "
                     "{} tokens are",
                     longest, rope.original_context, rope.original_context)}};
  }
  return {};
}

Runnable make_runnable(Plan plan) {
  Runnable runnable{.plan = {}, .problems = validate(plan)};
  std::ranges::move(not_executed(plan), std::back_inserter(runnable.problems));
  std::ranges::move(not_computed(plan), std::back_inserter(runnable.problems));
  if (runnable.problems.empty()) runnable.plan = RunnablePlan(std::move(plan));
  return runnable;
}

}  // namespace shardproof
