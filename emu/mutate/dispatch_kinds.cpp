// Kinds in how tokens come to their experts without an all-to-all, and in what is computed while one is under way.
#include <algorithm>
#include <set>

#include "emu/mutate/internal/script.h"
#include "emu/mutate/internal/sites.h"

namespace shardproof::mutations {
namespace {

using Instances = std::vector<Mutation>;

/// Of what the ranks of an ep group route: the owners, and whether a rank has a choice that is not its own experts'.
struct Summands {
  std::set<int> owners;
  bool from_others = false;
};
Summands summands_of(const Sites& sites, int layer, const std::vector<int>& group) {
  Summands result;
  for (const int rank : group) {
    for (std::int64_t m = 0; m < sites.tokens.microbatches(); ++m) {
      const std::vector<std::int64_t> counts = sites.sends(layer, m, rank);
      for (int owner = 0; owner < std::ssize(counts); ++owner) {
        if (counts[static_cast<std::size_t>(owner)] == 0) continue;
        result.owners.insert(owner);
        result.from_others = result.from_others || owner != sites.mesh.coordinates(rank).ep;
      }
    }
  }
  return result;
}

/// Of the sum over ep of what each rank's experts make.
template <SumFault fault>
Instances sum_over_ep(const MutablePlan& plan, std::size_t limit) {
  const Sites sites(plan);
  if (!plan.parallel.sums_over_ep()) return {};
  Instances result;
  const auto summands_at = [&](const Place& place) {
    return summands_of(sites, place.layer, sites.group(Axis::ep, place.rank));
  };
  const auto shows = [&](const Place& place) {
    if (!sites.serves(place)) return false;
    const Summands summands = summands_at(place);
    return fault == SumFault::dropped ? summands.from_others : !summands.owners.empty();
  };
  for (const Place& place : sites.places_with(limit, shows)) {
    const std::vector<int> group = sites.group(Axis::ep, place.rank);
    const Summands summands = summands_at(place);
    const int own = sites.mesh.coordinates(place.rank).ep;
    const int member = summands.owners.contains(own) ? own : *summands.owners.begin();
    const Site site{.op = Op::moe_reduce, .layer = place.layer, .ranks = group};
    result.push_back({.layer = place.layer,
                      .ranks = group,
                      .group = "ep",
                      .tap = moe_output_tap(place.layer),
                      .causes = causes_of(fault),
                      .make = faulty_reduction(plan, site, fault, member)});
    // The others' choices may be all that there are: without them a token has its own rank's part, or nothing.
    if (fault == SumFault::missing)
      result.back().causes.insert(result.back().causes.end(), {"expert_missing", "reduction_dropped"});
    if (fault == SumFault::doubled) result.back().causes.emplace_back("counted_n_times");
    // Of two ranks one may have all that is summed: twice its partial sum is twice the sum.
    if (fault == SumFault::repeated && plan.parallel.ep == 2 && summands.owners.size() == 1) {
      result.back().causes.emplace_back("partial_sum_doubled");
    }
  }
  return result;
}

/// With the senders' rows in reverse: whether the rank's experts get another row for one that they serve, and each such
/// row's token has chosen as the other one's has.
struct MovedRows {
  bool served = false;
  bool chosen_alike = true;
};
MovedRows moved_rows(const Sites& sites, const Place& place) {
  const int layer = place.layer, rank = place.rank;
  const Plan& plan = sites.plan;
  const Deployment deployment = deploy(plan.model, plan.parallel, plan.workload);
  const auto& all_choices = sites.plan.choices[static_cast<std::size_t>(layer)];
  MovedRows result;
  for (std::int64_t m = 0; m < sites.tokens.microbatches(); ++m) {
    std::vector<std::int64_t> gathered, reversed;
    for (const int sender : sites.group(Axis::ep, rank)) {
      const TokenRows own = sites.tokens.own(sites.mesh.coordinates(sender), m);
      std::vector<std::int64_t> rows;
      for (std::int64_t i = 0; i < own.count(); ++i) rows.push_back(own[i]);
      gathered.insert(gathered.end(), rows.begin(), rows.end());
      reversed.insert(reversed.begin(), rows.begin(), rows.end());
    }
    for (std::size_t i = 0; i < gathered.size(); ++i) {
      const auto is_mine = [&](std::int32_t expert) {
        return serving_ep(plan.model, deployment, layer, gathered[i], expert) == sites.mesh.coordinates(rank).ep;
      };
      const auto choices = all_choices.row(gathered[i]);
      if (gathered[i] == reversed[i] || std::ranges::none_of(choices, is_mine)) continue;
      result.served = true;
      result.chosen_alike = result.chosen_alike && std::ranges::equal(choices, all_choices.row(reversed[i]));
    }
  }
  return result;
}

/// One rank has the gathered rows of the ep group in another order than their choices.
Instances gathered_order(const MutablePlan& plan, std::size_t limit) {
  const Sites sites(plan);
  if (plan.parallel.dispatch != DispatchComm::all_gather || plan.parallel.ep < 2) return {};
  Instances result;
  const auto serves_moved = [&](const Place& place) { return moved_rows(sites, place).served; };
  for (const Place& place : sites.places_with(limit, serves_moved)) {
    const Site site{.op = Op::dispatch_rows, .layer = place.layer, .ranks = {place.rank}};
    result.push_back({.layer = place.layer,
                      .ranks = site.ranks,
                      .group = "ep",
                      .tap = moe_output_tap(place.layer),
                      .causes = {"tokens_permuted"},
                      .make = faulty_gather(site, GatherFault::reversed)});
    // The one output of a token that has chosen the same expert, as it is, is that one's row.
    if (moved_rows(sites, place).chosen_alike && weighs_by_one(plan.model.layers[place.layer].feed_forward)) {
      result.back().causes.emplace_back("rows_permuted");
    }
  }
  return result;
}

/// Every rank takes the replica of its own, where it has one: each adds its share.
Instances replicas_summed(const MutablePlan& plan, std::size_t limit) {
  const Sites sites(plan);
  if (sites.expert_maps == nullptr || !plan.parallel.routes_alike()) return {};
  Instances result;
  for (const Place& place : sites.moe_places(limit)) {
    const ExpertMap map = (*sites.expert_maps)[static_cast<std::size_t>(place.layer)];
    const auto ranks_with = [&](std::int32_t expert) {
      std::set<std::int64_t> ranks;
      for (const std::int32_t replica : map.replicas(expert)) {
        ranks.insert(shard_of(std::ssize(map.logical()), plan.parallel.ep, replica));
      }
      return ranks.size();
    };
    const auto choices = plan.choices[static_cast<std::size_t>(place.layer)].span();
    if (std::ranges::none_of(choices, [&](std::int32_t expert) { return ranks_with(expert) > 1; })) continue;
    const Mesh mesh = sites.mesh;
    const int layer = place.layer;
    result.push_back({.layer = layer,
                      .ranks = sites.stage_ranks(sites.stage_of(layer)),
                      .group = "ep",
                      .tap = moe_output_tap(layer),
                      .causes = {"replicas_summed", "counted_n_times"},
                      .make = script([=](Script& made) {
                        made.replicas = [=](const Rank& rank, const FaultSite& site,
                                            ops::MatrixView<const std::int32_t> ids,
                                            ops::MatrixView<std::int32_t> physical) {
                          if (site.layer != layer) return;
                          const Range own = partition(std::ssize(map.logical()), mesh.parallel().ep,
                                                      mesh.coordinates(to_int(rank.id())).ep);
                          for (std::int64_t i = 0; i < ids.rows; ++i) {
                            for (std::int64_t s = 0; s < ids.cols; ++s) {
                              for (const std::int32_t replica : map.replicas(ids(i, s))) {
                                if (replica >= own.begin && replica < own.end()) physical(i, s) = replica;
                              }
                            }
                          }
                        };
                      })});
  }
  return result;
}

/// A rank takes rows to its experts before it has waited for them.
Instances awaited_late(const MutablePlan& plan, std::size_t limit) {
  const Sites sites(plan);
  if (plan.parallel.overlap == Overlap::none) return {};
  Instances result;
  for (const Place& place : sites.expert_places(limit)) {
    const int layer = place.layer;
    const std::vector<int> group = sites.group(Axis::etp, place.rank);
    result.push_back({.layer = layer,
                      .ranks = group,
                      .group = "ep",
                      .tap = moe_output_tap(layer),
                      .causes = {"read_before_arrival"},
                      .make = script([=](Script& made) {
                        made.in_time = [=](const Rank& rank, Op op, const FaultSite& site) {
                          return op != Op::dispatch || site.layer != layer || !among(group, rank);
                        };
                      })});
  }
  return result;
}

constexpr MutationKind kDispatchKinds[] = {
    {"dispatch_awaited_late", "dispatched rows are read before their all-to-all is waited for", awaited_late},
    {"dispatch_gathered_order", "one rank has the gathered rows in another order than their choices", gathered_order},
    {"moe_reduction_dropped", "what the experts of each ep rank make is not summed", sum_over_ep<SumFault::dropped>},
    {"moe_reduction_doubled", "what the experts of each ep rank make is summed over ep twice",
     sum_over_ep<SumFault::repeated>},
    {"moe_partial_sum_missing", "what one ep rank's experts make is lost", sum_over_ep<SumFault::missing>},
    {"moe_partial_sum_doubled", "what one ep rank's experts make counts twice", sum_over_ep<SumFault::doubled>},
    {"expert_replicas_summed", "every ep rank that has a replica of an expert adds its output", replicas_summed},
};

}  // namespace

std::span<const MutationKind> dispatch_kinds() {
  return kDispatchKinds;
}

}  // namespace shardproof::mutations
