// Kinds in the experts themselves: their slices, weights, and sums over etp.
#include <algorithm>

#include "emu/mutate/internal/script.h"
#include "emu/mutate/internal/sites.h"

namespace shardproof::mutations {
namespace {

using Instances = std::vector<Mutation>;

enum class Experts { spread_over_ep, on_every_rank };

/// The sum over etp that ends the experts' work.
template <SumFault fault, Experts experts = Experts::spread_over_ep>
Instances reduction(const MutablePlan& plan, std::size_t limit) {
  const Parallel& p = plan.parallel;
  if (p.etp < (fault == SumFault::halves ? 4 : 2) || (fault == SumFault::halves && p.etp % 2)) return {};
  if ((experts == Experts::on_every_rank) != (p.ep == 1)) return {};
  const Sites sites(plan);
  Instances result;
  for (const Place& place : sites.expert_places(limit)) {
    const std::vector<int> group = sites.group(Axis::etp, place.rank);
    const Site site{.op = Op::expert_reduce, .layer = place.layer, .ranks = group};
    const int member = result.size() % 2 == 0 ? p.etp - 1 : 0;
    result.push_back({.layer = place.layer,
                      .ranks = group,
                      .group = "etp",
                      .tap = moe_output_tap(place.layer),
                      .causes = causes_of(fault),
                      .make = faulty_reduction(plan, site, fault, member)});
    // Of two ranks one's result may be the only one that a token needs: the sum without the other is its own part.
    if (fault == SumFault::missing && p.etp == 2) result.back().causes.emplace_back("reduction_dropped");
  }
  return result;
}

Instances reduced_over_ep(const MutablePlan& plan, std::size_t limit) {
  const Sites sites(plan);
  if (plan.parallel.ep != plan.parallel.etp || plan.parallel.ep < 2 || plan.parallel.routes_alike()) return {};
  Instances result;
  for (const Place& place : sites.expert_places(limit)) {
    const std::vector<int> ranks = sites.stage_ranks(sites.stage_of(place.layer));
    const Site site{.op = Op::expert_reduce, .layer = place.layer, .ranks = ranks};
    const int world = plan.world();
    result.push_back({.layer = place.layer,
                      .ranks = ranks,
                      .group = "ep",
                      .tap = moe_output_tap(place.layer),
                      .may_clash = true,
                      .causes = {"wrong_group", "call_arguments"},
                      .make = script([=](Script& made) {
                        const Buffers buffers = make_buffers(world);
                        const auto outputs = std::make_shared<std::vector<void*>>(static_cast<std::size_t>(world));
                        made.before = [=](const Rank& rank, internal::Call& call) {
                          if (!site.matches(rank, call)) return true;
                          redirect(call, rank.on(Axis::ep));
                          // The part that arrives may be larger than the rank's own.
                          const auto me = static_cast<std::size_t>(to_int(rank.id()));
                          (*buffers)[me].assign(std::max(call.in_count, call.out_count), 0.0);
                          (*outputs)[me] = call.out;
                          call.out = (*buffers)[me].data();
                          return true;
                        };
                        made.after = [=](const Rank& rank, internal::Call& call) {
                          if (!site.matches(rank, call)) return;
                          const auto me = static_cast<std::size_t>(to_int(rank.id()));
                          std::memcpy((*outputs)[me], (*buffers)[me].data(), call.out_count * size_of(call.type));
                        };
                      })});
  }
  return result;
}

/// A term that every etp rank adds to its partial sum: the experts' own input.
Instances term_on_every_rank(const MutablePlan& plan, std::size_t limit) {
  const Sites sites(plan);
  if (plan.parallel.etp < 2 || plan.parallel.routes_alike()) return {};
  Instances result;
  for (const Place& place : sites.expert_places(limit)) {
    const std::vector<int> group = sites.group(Axis::etp, place.rank);
    const int layer = place.layer;
    const int world = plan.world();
    const Site gather{.op = Op::expert_gather, .layer = layer, .ranks = group};
    const Site sum{.op = Op::expert_reduce, .layer = layer, .ranks = group};
    result.push_back({.layer = layer,
                      .ranks = group,
                      .group = "etp",
                      .tap = moe_output_tap(layer),
                      .causes = {"term_on_every_rank"},
                      .make = script([=](Script& made) {
                        const Buffers buffers = make_buffers(world);
                        const Buffers inputs = make_buffers(world);
                        made.after = [=](const Rank& rank, internal::Call& call) {
                          if (!gather.matches(rank, call)) return;
                          (*inputs)[static_cast<std::size_t>(to_int(rank.id()))] = output(call);
                        };
                        made.before = [=](const Rank& rank, internal::Call& call) {
                          if (!sum.matches(rank, call)) return true;
                          const std::vector<double>& rows = (*inputs)[static_cast<std::size_t>(to_int(rank.id()))];
                          edit_input(rank, call, buffers, [&](std::span<double> partial) {
                            for (std::size_t i = 0; i < partial.size() && i < rows.size(); ++i) partial[i] += rows[i];
                          });
                          return true;
                        };
                      })});
  }
  return result;
}

enum class SliceFault { whole, down, first };

/// Experts' slices over etp: all of the next rank's, the down projection of the next rank's, or everybody the first.
template <SliceFault fault>
Instances expert_slice(const MutablePlan& plan, std::size_t limit) {
  const Sites sites(plan);
  const Parallel& p = plan.parallel;
  if (p.etp < 2 || (fault == SliceFault::first) != (p.ep == 1)) return {};
  Instances result;
  for (const Place& place : sites.expert_places(limit)) {
    const std::vector<int> group = sites.group(Axis::etp, place.rank);
    const std::vector<int> ranks =
        fault == SliceFault::first ? sites.stage_ranks(sites.stage_of(place.layer)) : std::vector{group.back()};
    const int layer = place.layer;
    result.push_back({.layer = layer,
                      .ranks = ranks,
                      .group = "etp",
                      .tap = moe_output_tap(layer),
                      .causes = {"wrong_slice"},
                      .make = script([=](Script& made) {
                        made.slice = [=](const Rank& rank, WeightSpec& spec, Range& rows, Range& cols) {
                          if (spec.expert < 0 || spec.layer != layer || !among(ranks, rank)) return;
                          if (fault == SliceFault::down && spec.weight != Weight::expert_down) return;
                          // The biases of gate and up lie along their columns; that of down is whole.
                          const bool along_cols = spec.col_split == Split::intermediate_size;
                          Range& part = along_cols ? cols : rows;
                          const std::int64_t extent = along_cols ? spec.cols : spec.rows;
                          part.begin = fault == SliceFault::first ? 0 : (part.begin + part.count) % extent;
                        };
                      })});
  }
  return result;
}

/// Of weights that are quantised in blocks: one rank's slice of the down projection begins inside a block. Experts lie
/// over etp, the MLP that serves every token over tp.
template <bool experts>
Instances block_cut(const MutablePlan& plan, std::size_t limit) {
  const Sites sites(plan);
  const std::int64_t late = plan.model.weight_block / 2;
  if (late == 0 || (experts ? plan.parallel.etp : plan.parallel.tp) < 2) return {};
  Instances result;
  for (const Place& place : experts ? sites.expert_places(limit) : sites.mlp_places(limit)) {
    const std::vector<int> group = sites.group(experts ? Axis::etp : Axis::tp, place.rank);
    const int rank = result.size() % 2 == 0 ? group.front() : group.back();
    const int layer = place.layer;
    result.push_back({.layer = layer,
                      .ranks = {rank},
                      .group = experts ? "etp" : "tp",
                      .tap = experts ? moe_output_tap(layer) : tap_name(layer, TapKind::mlp_output),
                      .causes = {"wrong_slice"},
                      .make = script([=](Script& made) {
                        made.slice = [=](const Rank& at, WeightSpec& spec, Range&, Range& cols) {
                          if (to_int(at.id()) != rank || spec.layer != layer) return;
                          if (spec.weight != (experts ? Weight::expert_down : Weight::mlp_down)) return;
                          cols.begin += cols.end() + late <= spec.cols ? late : -late;
                        };
                      })});
  }
  return result;
}

Instances experts_stale(const MutablePlan& plan, std::size_t limit) {
  const Sites sites(plan);
  Instances result;
  for (const Place& place : sites.expert_places(limit)) {
    const std::vector<int> group = sites.group(Axis::etp, place.rank);
    const int layer = place.layer;
    const int other = layer_like(plan.model.layers, layer);
    if (other < 0) continue;
    const ModelConfig model = plan.model;
    result.push_back({.layer = layer,
                      .ranks = group,
                      .tap = moe_output_tap(layer),
                      .causes = {"weights_of_another_layer"},
                      .make = script([=](Script& made) {
                        made.slice = [=](const Rank& rank, WeightSpec& spec, Range&, Range&) {
                          if (spec.expert < 0 || spec.layer != layer || !among(group, rank)) return;
                          spec = weight_spec(model, spec.weight, other, spec.expert);
                        };
                      })});
  }
  return result;
}

constexpr MutationKind kExpertKinds[] = {
    {"expert_slice_wrong", "an etp rank holds its neighbour's slice of the experts", expert_slice<SliceFault::whole>},
    {"expert_down_slice_wrong", "an etp rank's down projection is its neighbour's", expert_slice<SliceFault::down>},
    {"expert_slice_without_ep", "ep 1: every etp rank holds the first slice", expert_slice<SliceFault::first>},
    {"expert_block_cut", "quantised weights: a slice of the experts' down projection begins inside a block",
     block_cut<true>},
    {"mlp_block_cut", "quantised weights: a slice of the MLP's down projection begins inside a block",
     block_cut<false>},
    {"expert_weights_stale", "experts of another layer", experts_stale},
    {"expert_reduction_dropped", "experts' outputs are not summed over etp (reduced over one group of two)",
     reduction<SumFault::dropped>},
    {"expert_reduction_without_ep", "ep 1: experts' outputs are not summed over etp",
     reduction<SumFault::dropped, Experts::on_every_rank>},
    {"expert_reduction_doubled", "experts' outputs are reduced over etp twice", reduction<SumFault::repeated>},
    {"expert_partial_sum_missing", "one etp rank's partial sum is lost", reduction<SumFault::missing>},
    {"expert_partial_sum_doubled", "one etp rank's partial sum counts twice", reduction<SumFault::doubled>},
    {"expert_averaged", "averaged over etp instead of summed", reduction<SumFault::averaged>},
    {"expert_partial_group", "the sum is over half of the etp group", reduction<SumFault::halves>},
    {"expert_reduced_over_ep", "experts' outputs are summed over ep instead of etp", reduced_over_ep},
    {"term_on_every_expert_rank", "a shared term is added on every etp rank: R + etp * S", term_on_every_rank},
};

}  // namespace

std::span<const MutationKind> expert_kinds() {
  return kExpertKinds;
}

}  // namespace shardproof::mutations
