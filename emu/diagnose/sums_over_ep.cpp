// Causes where what the experts of each ep rank make of a token is summed over ep.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
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

/// The slots of one microbatch that come to the experts of a rank, as they lie there: by sender, physical expert,
/// token.
class ArrivedSlots {
 public:
  struct Slot {
    std::int64_t row = 0;
    std::int64_t expert = 0;
    bool operator==(const Slot&) const = default;
  };
  ArrivedSlots(const WrongTap& wrong, const Deployment& deployment) : wrong_(wrong), deployment_(deployment) {}

  const std::vector<Slot>& at(int rank, std::int64_t microbatch) {
    const auto [found, is_new] = slots_.try_emplace({rank, microbatch});
    if (is_new) found->second = arrived(rank, microbatch);
    return found->second;
  }

 private:
  std::vector<Slot> arrived(int rank, std::int64_t microbatch) const {
    const Recompute& model = wrong_.model;
    const Mesh& mesh = model.mesh();
    const int owner = mesh.coordinates(rank).ep;
    const ExpectedTap& ids = model.tap(wrong_.layer, TapKind::router_choice);
    std::vector<Slot> all;
    for (const int sender : mesh.group(Axis::ep, rank)) {
      std::vector<std::pair<std::int64_t, Slot>> sent;  // by physical expert
      const TokenRows own = model.tokens().own(mesh.coordinates(sender), microbatch);
      for (std::int64_t place = 0; place < own.count(); ++place) {
        for (std::int64_t s = 0; s < ids.cols; ++s) {
          const Slot slot{own[place], static_cast<std::int64_t>(ids.at(own[place], s))};
          const ModelConfig& config = model.plan().model;
          if (serving_ep(config, deployment_, wrong_.layer, slot.row, slot.expert) != owner) continue;
          sent.emplace_back(physical_expert(config, deployment_, wrong_.layer, slot.row, slot.expert), slot);
        }
      }
      std::ranges::stable_sort(sent, {}, [](const auto& one) { return one.first; });
      for (const auto& [physical, slot] : sent) all.push_back(slot);
    }
    return all;
  }

  const WrongTap& wrong_;
  const Deployment& deployment_;
  std::map<std::pair<int, std::int64_t>, std::vector<Slot>> slots_;
};

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
      const TokenRows own =
          model.tokens().run_own(model.mesh().coordinates(sender), model.tokens().home(row).microbatch);
      std::vector<std::int64_t> rows;
      for (std::int64_t p = 0; p < own.count(); ++p) rows.push_back(own[p]);
      gathered.insert(gathered.end(), rows.begin(), rows.end());
      reversed.insert(reversed.begin(), rows.begin(), rows.end());
    }
    const auto place = static_cast<std::size_t>(std::ranges::find(gathered, row) - gathered.begin());
    if (place == gathered.size()) return std::nullopt;
    sources.push_back(reversed[place]);
  }
  const auto is_no_number = [](double value) { return std::isnan(value); };
  for (int member = 0; member < plan.parallel.ep; ++member) {
    const auto fits = [&](std::size_t i) {
      std::vector<Row> outputs = moe.slots(i).outputs;
      for (std::size_t s = 0; s < outputs.size(); ++s) {
        const std::int64_t expert = moe.slots(i).experts[s];
        if (serving_ep(plan.model, deployment, wrong.layer, moe.row(i).row, expert) != member) continue;
        if (sources[i] >= wrong.expected.rows) return std::ranges::all_of(moe.row(i).got, is_no_number);  // padding
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
  if (auto cause = believed_owner_cause(wrong, moe)) return cause;
  return gathered_order_cause(wrong, moe, deployment);
}

std::optional<Cause> reduced_over_ep_cause(const WrongTap& wrong, const MoeSlots& moe) {
  Recompute& model = wrong.model;
  const Plan& plan = model.plan();
  const Parallel& p = plan.parallel;
  if (p.etp < 2 || p.ep != p.etp || p.routes_alike()) return std::nullopt;
  const Mesh& mesh = model.mesh();
  const Deployment deployment = deploy(plan.model, p, plan.workload);
  ArrivedSlots arrived(wrong, deployment);
  const auto output = [&](std::size_t i, std::size_t s) {
    const std::int64_t row = moe.row(i).row, expert = moe.slots(i).experts[s];
    const std::int64_t microbatch = model.tokens().home(row).microbatch;
    const int owner = serving_ep(plan.model, deployment, wrong.layer, row, expert);
    const int rank = mesh.group(Axis::ep, model.routing_rank(wrong.layer, row))[static_cast<std::size_t>(owner)];
    const auto& own = arrived.at(rank, microbatch);
    const auto place = std::ranges::find(own, ArrivedSlots::Slot{row, expert}) - own.begin();
    // Each member hands in what its slice makes of the rows of its etp group, cut up as over etp.
    Row sum(moe.row(i).got.size(), 0.0);
    std::optional<std::size_t> rows;
    for (const int member : mesh.group(Axis::ep, rank)) {
      const auto& part = arrived.at(mesh.group(Axis::etp, member)[static_cast<std::size_t>(owner)], microbatch);
      if (rows.value_or(part.size()) != part.size()) return Row(sum.size(), std::nan(""));  // the calls do not fit
      rows = part.size();
      if (place >= std::ssize(part)) continue;
      const int etp = mesh.coordinates(member).etp;
      const auto& slot = part[static_cast<std::size_t>(place)];
      const auto values =
          model.expert_partial_sum(wrong.layer, slot.row, {wrong.layer, slot.expert}, {.gate_up = etp, .down = etp});
      for (std::size_t c = 0; c < sum.size(); ++c) sum[c] += values[c];
    }
    model.finish(sum);
    return sum;
  };
  if (!moe.explained_by_outputs(output)) return std::nullopt;
  return Cause{"wrong_group", fmt::format("{} hold experts' outputs that are summed over their ep group, not over etp",
                                          ranks_of(wrong.rows))};
}

}  // namespace shardproof::diagnosis
