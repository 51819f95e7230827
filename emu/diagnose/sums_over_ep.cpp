// Causes where what the experts of each ep rank make of a token is summed over ep.
#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "emu/diagnose/internal/moe_slots.h"
#include "emu/plan/deployment.h"

namespace shardproof::diagnosis {

std::vector<WrongRow> routed_beside(const WrongTap& wrong) {
  const auto router_of = [&](const WrongRow& row) { return wrong.model.routing_rank(wrong.layer, row.row); };
  std::set<int> routers;
  for (const WrongRow& row : wrong.rows) routers.insert(router_of(row));
  std::vector<WrongRow> rows;
  std::ranges::copy_if(wrong.witnesses, std::back_inserter(rows),
                       [&](const WrongRow& row) { return routers.contains(router_of(row)); });
  return rows;
}

Coordinates summed_at(const WrongTap& wrong, const WrongRow& row) {
  if (wrong.model.plan().parallel.routes_alike()) return wrong.at(row);
  return wrong.model.mesh().coordinates(wrong.model.routing_rank(wrong.layer, row.row));
}

namespace {

/// Of a sum over ep: one rank takes the experts of another rank for its own, the k-th for its k-th, and serves their
/// tokens in place of its own experts'.
std::optional<Cause> believed_owner_cause(const WrongTap& wrong, const MoeSlots& moe, const Deployment& deployment) {
  const Plan& plan = wrong.model.plan();
  const int ep = plan.parallel.ep;
  const std::int64_t experts = plan.model.layers[wrong.layer].feed_forward.num_experts;
  if (plan.parallel.experts.redundant > 0 || experts % ep != 0) return std::nullopt;
  const auto predicted = [&](std::size_t i, int member, int shift) {
    const Slots& slots = moe.slots(i);
    Row sum(moe.row(i).got.size(), 0.0);
    for (std::size_t s = 0; s < slots.experts.size(); ++s) {
      const int owner = serving_ep(plan.model, deployment, wrong.layer, moe.row(i).row, slots.experts[s]);
      const auto add = [&](const Row& output) {
        for (std::size_t c = 0; c < sum.size(); ++c) sum[c] += slots.weights[s] * output[c];
      };
      if (owner != member) add(slots.outputs[s]);
      if ((owner + shift) % ep != member) continue;
      add(wrong.model.expert_output(wrong.layer, moe.row(i).row,
                                    {wrong.layer, (slots.experts[s] + shift * (experts / ep)) % experts}));
    }
    wrong.model.finish(sum);
    return sum;
  };
  for (int member = 0; member < ep; ++member) {
    for (int shift = 1; shift < ep; ++shift) {
      std::size_t i = 0;
      while (i < moe.size() && close(predicted(i, member, shift), moe.row(i).got, wrong.tolerance)) ++i;
      if (i < moe.size()) continue;
      return Cause{"expert_map", fmt::format("ep {} serves the tokens of the experts of ep {} with its own, on {}",
                                             member, (member + ep - shift) % ep, ranks_of(wrong.rows))};
    }
  }
  return std::nullopt;
}

/// Of a sum over ep, whose ranks have each other's rows: one rank has the senders' in reverse.
std::optional<Cause> gathered_order_cause(const WrongTap& wrong, const MoeSlots& moe, const Deployment& deployment) {
  Recompute& model = wrong.model;
  const Plan& plan = model.plan();
  if (plan.parallel.dispatch != DispatchComm::all_gather) return std::nullopt;
  std::vector<std::int64_t> sources;
  for (std::size_t i = 0; i < moe.size(); ++i) {
    const std::int64_t row = moe.row(i).row;
    std::vector<std::int64_t> gathered, reversed;
    for (const int sender : model.mesh().group(Axis::ep, model.routing_rank(wrong.layer, row))) {
      const TokenRows own = model.tokens().own(model.mesh().coordinates(sender), model.tokens().home(row).microbatch);
      std::vector<std::int64_t> rows;
      for (std::int64_t p = 0; p < own.count(); ++p) rows.push_back(own[p]);
      gathered.insert(gathered.end(), rows.begin(), rows.end());
      reversed.insert(reversed.begin(), rows.begin(), rows.end());
    }
    const auto place = static_cast<std::size_t>(std::ranges::find(gathered, row) - gathered.begin());
    if (place == gathered.size()) return std::nullopt;
    sources.push_back(reversed[place]);
  }
  for (int member = 0; member < plan.parallel.ep; ++member) {
    const auto fits = [&](std::size_t i) {
      std::vector<Row> outputs = moe.slots(i).outputs;
      for (std::size_t s = 0; s < outputs.size(); ++s) {
        const std::int64_t expert = moe.slots(i).experts[s];
        if (serving_ep(plan.model, deployment, wrong.layer, moe.row(i).row, expert) != member) continue;
        outputs[s] = model.expert_output(wrong.layer, sources[i], {wrong.layer, expert});
      }
      return close(moe.combine(moe.slots(i).weights, outputs, i), moe.row(i).got, wrong.tolerance);
    };
    std::size_t i = 0;
    while (i < moe.size() && fits(i)) ++i;
    if (i < moe.size()) continue;
    return Cause{"tokens_permuted", fmt::format("ep {} has the gathered rows with the senders' in reverse, and {} hold "
                                                "what its experts made of them",
                                                member, ranks_of(wrong.rows))};
  }
  return std::nullopt;
}

}  // namespace

std::optional<Cause> sum_over_ep_cause(const WrongTap& wrong) {
  const Plan& plan = wrong.model.plan();
  if (!plan.parallel.sums_over_ep()) return std::nullopt;
  // Each rank's sum goes to the rows that it routes; where all route alike, to all.
  const std::vector<WrongRow> rows = plan.parallel.routes_alike() ? wrong.witnesses : routed_beside(wrong);
  const MoeSlots moe(wrong, rows);
  const Deployment deployment = deploy(plan.model, plan.parallel, plan.workload);
  const auto partial = [&](std::size_t i, int member) {
    const Slots& slots = moe.slots(i);
    Row sum(moe.row(i).got.size(), 0.0);
    for (std::size_t s = 0; s < slots.experts.size(); ++s) {
      if (serving_ep(plan.model, deployment, wrong.layer, moe.row(i).row, slots.experts[s]) != member) continue;
      for (std::size_t c = 0; c < sum.size(); ++c) sum[c] += slots.weights[s] * slots.outputs[s][c];
    }
    return sum;
  };
  const auto place = [&](const WrongRow& row) { return static_cast<std::size_t>(&row - rows.data()); };
  const PartialSums sum{.members = plan.parallel.ep,
                        .partial = [&](const WrongRow& row, int member) { return partial(place(row), member); },
                        .own = [&](const WrongRow& row) { return summed_at(wrong, row).ep; },
                        .finish = [&](Row& values) { wrong.model.finish(values); }};
  if (const auto fault = partial_sum_fault(rows, sum, wrong.tolerance)) return cause_of(*fault, "ep", plan.parallel.ep);
  if (auto cause = believed_owner_cause(wrong, moe, deployment)) return cause;
  return gathered_order_cause(wrong, moe, deployment);
}

}  // namespace shardproof::diagnosis
