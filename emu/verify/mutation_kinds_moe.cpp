// Kinds in the Mixture-of-Experts half of a layer: routing, dispatch, experts, their sums.
#include <algorithm>

#include "emu/run/stage.h"
#include "emu/verify/mutation_calls.h"
#include "ops/router.h"

namespace shardproof::mutations {
namespace {

using Instances = std::vector<Mutation>;
using Causes = std::vector<std::string>;

std::string output_tap(int layer) {
  return tap_name(layer, "moe.output");
}

/// The sum over etp that ends the experts' work.
template <SumFault fault, bool without_ep>
Instances reduction(const Plan& plan, std::size_t limit, const char* cause) {
  const Parallel& p = plan.parallel;
  if (p.etp < (fault == SumFault::halves ? 4 : 2) || (fault == SumFault::halves && p.etp % 2)) return {};
  if (without_ep != (p.ep == 1)) return {};
  const Sites sites(plan);
  Instances result;
  for (const Place& place : sites.places(limit)) {
    const std::vector<int> group = sites.group(Axis::etp, place.rank);
    const Site site{.op = "moe.unsort",
                    .layer = place.layer,
                    .operation = Operation::reduce_scatter,
                    .counts_given = true,
                    .ranks = group};
    const int member = result.size() % 2 == 0 ? p.etp - 1 : 0;
    result.push_back({.layer = place.layer,
                      .ranks = group,
                      .group = "etp",
                      .tap = output_tap(place.layer),
                      .causes = {cause},
                      .make = faulty_reduction(site, fault, member, plan.world(), plan.workload.microbatches)});
  }
  return result;
}

Instances etp_dropped(const Plan& plan, std::size_t limit) {
  return reduction<SumFault::dropped, false>(plan, limit, "reduction_dropped");
}
Instances etp_dropped_without_ep(const Plan& plan, std::size_t limit) {
  return reduction<SumFault::dropped, true>(plan, limit, "reduction_dropped");
}
Instances etp_missing(const Plan& plan, std::size_t limit) {
  return reduction<SumFault::missing, false>(plan, limit, "addend_missing");
}
Instances etp_doubled(const Plan& plan, std::size_t limit) {
  return reduction<SumFault::doubled, false>(plan, limit, "addend_doubled");
}
Instances etp_averaged(const Plan& plan, std::size_t limit) {
  return reduction<SumFault::averaged, false>(plan, limit, "averaged");
}
Instances etp_halves(const Plan& plan, std::size_t limit) {
  return reduction<SumFault::halves, false>(plan, limit, "partial_group");
}

Instances reduced_over_ep(const Plan& plan, std::size_t limit) {
  const Sites sites(plan);
  if (plan.parallel.ep != plan.parallel.etp || plan.parallel.ep < 2) return {};
  Instances result;
  for (const Place& place : sites.places(limit)) {
    const std::vector<int> ranks = sites.stage_ranks(sites.stage_of(place.layer));
    const Site site{.op = "moe.unsort",
                    .layer = place.layer,
                    .operation = Operation::reduce_scatter,
                    .counts_given = true,
                    .ranks = ranks};
    const int world = plan.world();
    result.push_back({.layer = place.layer,
                      .ranks = ranks,
                      .group = "ep",
                      .tap = output_tap(place.layer),
                      .may_clash = true,
                      .causes = {"wrong_group", "call_arguments"},
                      .make = script([=](Script& made) {
                        const Buffers buffers = make_buffers(world);
                        const auto outputs = std::make_shared<std::vector<void*>>(static_cast<std::size_t>(world));
                        made.before = [=](const Rank& rank, internal::Call& call) {
                          if (!site.here(rank, call)) return true;
                          redirect(call, rank.on(Axis::ep));
                          // The part that arrives may be larger than the rank's own.
                          const auto me = static_cast<std::size_t>(to_int(rank.id()));
                          (*buffers)[me].assign(std::max(call.in_count, call.out_count), 0.0);
                          (*outputs)[me] = call.out;
                          call.out = (*buffers)[me].data();
                          return true;
                        };
                        made.after = [=](const Rank& rank, internal::Call& call) {
                          if (!site.here(rank, call)) return;
                          const auto me = static_cast<std::size_t>(to_int(rank.id()));
                          std::copy_n((*buffers)[me].begin(), call.out_count, static_cast<double*>((*outputs)[me]));
                        };
                      })});
  }
  return result;
}

/// Changes what a rank sends or receives in one call.
Mutation edited_call(const Site& site, int world, std::string cause,
                     std::function<void(std::span<double>, const internal::Call&)> in,
                     std::function<void(std::span<double>, const internal::Call&)> out = {}) {
  return {.layer = site.layer,
          .ranks = site.ranks,
          .tap = output_tap(site.layer),
          .causes = {std::move(cause)},
          .make = script([=](Script& made) {
            const Buffers buffers = make_buffers(world);
            made.before = [=](const Rank& rank, internal::Call& call) {
              if (in && site.here(rank, call)) in(own_input(rank, call, buffers), call);
              return true;
            };
            made.after = [=](const Rank& rank, internal::Call& call) {
              if (out && site.here(rank, call)) out(output(call), call);
            };
          })};
}

Site dispatch_site(int layer, std::vector<int> ranks) {
  return {.op = "moe.permute",
          .layer = layer,
          .operation = Operation::all_to_all,
          .counts_given = true,
          .ranks = std::move(ranks)};
}
Site return_site(int layer, std::vector<int> ranks) {
  return {.op = "moe.unsort",
          .layer = layer,
          .operation = Operation::all_to_all,
          .counts_given = true,
          .ranks = std::move(ranks)};
}

Instances counted_per_replica(const Plan& plan, std::size_t limit) {
  const Sites sites(plan);
  if (plan.parallel.edp < 2 || plan.parallel.ep < 2) return {};
  Instances result;
  for (const Place& place : sites.places(limit)) {
    const std::vector<int> group = sites.group(Axis::ep, place.rank);
    const double times = plan.parallel.edp;
    const auto scale = [=](std::span<double> rows, const internal::Call&) {
      for (double& value : rows) value *= times;
    };
    result.push_back(edited_call(return_site(place.layer, group), plan.world(), "counted_n_times", scale));
  }
  return result;
}

Instances dispatch_order(const Plan& plan, std::size_t limit) {
  const Sites sites(plan);
  if (plan.parallel.ep < 2) return {};
  Instances result;
  const std::int64_t hidden = plan.model.hidden_size;
  for (const Place& place : sites.places(limit)) {
    const auto reverse = [=](std::span<double> rows, const internal::Call&) { reverse_rows(rows, hidden); };
    result.push_back(edited_call(dispatch_site(place.layer, {place.rank}), plan.world(), "tokens_permuted", reverse));
  }
  return result;
}

Instances return_order(const Plan& plan, std::size_t limit) {
  const Sites sites(plan);
  if (plan.parallel.ep < 2) return {};
  Instances result;
  for (const Place& place : sites.places(limit)) {
    const auto reverse = [](std::span<double> rows, const internal::Call& call) {
      reverse_chunks(rows, call.recv_counts);
    };
    result.push_back(edited_call(return_site(place.layer, {place.rank}), plan.world(), "tokens_permuted", {}, reverse));
  }
  return result;
}

Instances tokens_duplicated(const Plan& plan, std::size_t limit) {
  const Sites sites(plan);
  if (plan.parallel.ep < 2) return {};
  Instances result;
  const std::int64_t hidden = plan.model.hidden_size;
  for (const Place& place : sites.places(limit)) {
    const auto repeat = [=](std::span<double> rows, const internal::Call&) {
      const std::int64_t half = std::ssize(rows) / hidden / 2 * hidden;
      std::copy_n(rows.begin(), half, rows.end() - half);
    };
    result.push_back(edited_call(dispatch_site(place.layer, {place.rank}), plan.world(), "tokens_permuted", repeat));
  }
  return result;
}

/// A term that every etp rank adds to its addend: the experts' own input.
Instances term_on_every_rank(const Plan& plan, std::size_t limit) {
  const Sites sites(plan);
  if (plan.parallel.etp < 2) return {};
  Instances result;
  for (const Place& place : sites.places(limit)) {
    const std::vector<int> group = sites.group(Axis::etp, place.rank);
    const int layer = place.layer;
    const int world = plan.world();
    const Site gather{
        .op = "moe.permute", .layer = layer, .operation = Operation::all_gather, .counts_given = true, .ranks = group};
    const Site sum{.op = "moe.unsort",
                   .layer = layer,
                   .operation = Operation::reduce_scatter,
                   .counts_given = true,
                   .ranks = group};
    result.push_back({.layer = layer,
                      .ranks = group,
                      .group = "etp",
                      .tap = output_tap(layer),
                      .causes = {"term_on_every_rank"},
                      .make = script([=](Script& made) {
                        const Buffers buffers = make_buffers(world);
                        const Buffers inputs = make_buffers(world);
                        made.after = [=](const Rank& rank, internal::Call& call) {
                          if (!gather.here(rank, call)) return;
                          const std::span<double> rows = output(call);
                          (*inputs)[static_cast<std::size_t>(to_int(rank.id()))].assign(rows.begin(), rows.end());
                        };
                        made.before = [=](const Rank& rank, internal::Call& call) {
                          if (!sum.here(rank, call)) return true;
                          const std::vector<double>& rows = (*inputs)[static_cast<std::size_t>(to_int(rank.id()))];
                          const std::span<double> addend = own_input(rank, call, buffers);
                          for (std::size_t i = 0; i < addend.size() && i < rows.size(); ++i) addend[i] += rows[i];
                          return true;
                        };
                      })});
  }
  return result;
}

enum class MapFault { rotated, rotated_on_one_rank };

template <MapFault fault>
Instances expert_map(const Plan& plan, std::size_t /*limit*/) {
  const Sites sites(plan);
  const int ep = plan.parallel.ep;
  if (ep < 2) return {};
  const int rank = fault == MapFault::rotated ? -1 : sites.first_rank(plan.parallel.pp - 1, 0);
  const int layer = fault == MapFault::rotated ? 0 : static_cast<int>(sites.layers_of(plan.parallel.pp - 1).begin);
  return {{.layer = layer,
           .ranks = rank < 0 ? std::vector<int>{} : std::vector{rank},
           .group = "ep",
           .tap = output_tap(layer),
           .causes = {"expert_map"},
           .make = script([=](Script& made) {
             made.layouts = [=](std::vector<Layout>& layouts) {
               for (std::size_t r = 0; r < layouts.size(); ++r) {
                 if (rank >= 0 && static_cast<int>(r) != rank) continue;
                 for (int& owner : layouts[r].expert_owner) owner = (owner + 1) % ep;
               }
             };
           })}};
}

using Scores = ops::MatrixView<const double>;
using Ids = ops::MatrixView<std::int32_t>;
using Weights = ops::MatrixView<double>;

/// Changes the choices of one rank in one layer.
template <class Edit>
Instances routing(const Plan& plan, std::size_t limit, std::string cause, const Edit& edit) {
  const Sites sites(plan);
  Instances result;
  for (const Place& place : sites.places(limit)) {
    const int rank = place.rank;
    const int layer = place.layer;
    result.push_back({.layer = layer,
                      .ranks = {rank},
                      .tap = output_tap(layer),
                      .causes = {cause},
                      .make = script([=](Script& made) {
                        made.routing = [=](const Rank& at, int in, Scores logits, Ids ids, Weights weights) {
                          if (to_int(at.id()) == rank && in == layer) edit(at, logits, ids, weights);
                        };
                      })});
  }
  return result;
}

Instances off_by_one(const Plan& plan, std::size_t limit) {
  const auto experts = static_cast<std::int32_t>(plan.model.num_experts);
  if (experts < 2) return {};
  return routing(plan, limit, "expert_map", [=](const Rank&, Scores, Ids ids, Weights) {
    for (std::int64_t t = 0; t < ids.rows; ++t) {
      for (std::int32_t& id : ids.row(t)) id = (id + 1) % experts;
    }
  });
}

Instances nonexistent_expert(const Plan& plan, std::size_t limit) {
  const auto experts = static_cast<std::int32_t>(plan.model.num_experts);
  // In the last microbatch that has tokens: earlier ones are complete by then.
  const Batch batch = Sites(plan).batch;
  const Parallel parallel = plan.parallel;
  return routing(plan, limit, "rank_error", [=](const Rank& rank, Scores, Ids ids, Weights) {
    std::int64_t last = batch.microbatches() - 1;
    while (last > 0 && batch.microbatch(parallel.dp, rank.at().dp, last).rows.count == 0) --last;
    if (microbatch_of(rank) == last && ids.rows > 0) ids(ids.rows - 1, 0) = experts;
  });
}

Instances weights_swapped(const Plan& plan, std::size_t limit) {
  if (plan.model.top_k < 2) return {};
  return routing(plan, limit, "router_weights_permuted", [](const Rank&, Scores, Ids, Weights weights) {
    for (std::int64_t t = 0; t < weights.rows; ++t) std::ranges::reverse(weights.row(t));
  });
}

Instances not_renormalised(const Plan& plan, std::size_t limit) {
  const bool normalise = !plan.model.norm_topk_prob;
  return routing(plan, limit, "router_weights_scaled", [=](const Rank&, Scores logits, Ids ids, Weights weights) {
    if (ids.rows > 0) ops::route_weights<double>(logits, ids, normalise, ops::Format::exact, weights);
  });
}

Instances last_choice_dropped(const Plan& plan, std::size_t limit) {
  if (plan.model.top_k < 2) return {};
  return routing(plan, limit, "slot_dropped", [](const Rank&, Scores, Ids, Weights weights) {
    for (std::int64_t t = 0; t < weights.rows; ++t) weights(t, weights.cols - 1) = 0;
  });
}

Instances weights_twice(const Plan& plan, std::size_t limit) {
  return routing(plan, limit, "router_weights_squared", [](const Rank&, Scores, Ids, Weights weights) {
    for (std::int64_t t = 0; t < weights.rows; ++t) {
      for (double& weight : weights.row(t)) weight *= weight;
    }
  });
}

enum class SliceFault { whole, down, first };

/// Experts' slices over etp: all of the next rank's, the down projection of the next rank's, or everybody the first.
template <SliceFault fault>
Instances expert_slice(const Plan& plan, std::size_t limit) {
  const Sites sites(plan);
  const Parallel& p = plan.parallel;
  if (p.etp < 2 || (fault == SliceFault::first) != (p.ep == 1)) return {};
  Instances result;
  for (const Place& place : sites.places(limit)) {
    const std::vector<int> group = sites.group(Axis::etp, place.rank);
    const std::vector<int> ranks =
        fault == SliceFault::first ? sites.stage_ranks(sites.stage_of(place.layer)) : std::vector{group.back()};
    const int layer = place.layer;
    result.push_back({.layer = layer,
                      .ranks = ranks,
                      .group = "etp",
                      .tap = output_tap(layer),
                      .causes = {"wrong_slice"},
                      .make = script([=](Script& made) {
                        made.slice = [=](const Rank& rank, WeightSpec& spec, Range& rows, Range& cols) {
                          if (spec.expert < 0 || spec.layer != layer || !among(ranks, rank)) return;
                          const bool down = spec.col_split == Split::expert_width;
                          if (fault == SliceFault::down && !down) return;
                          Range& part = down ? cols : rows;
                          const std::int64_t extent = down ? spec.cols : spec.rows;
                          part.begin = fault == SliceFault::first ? 0 : (part.begin + part.count) % extent;
                        };
                      })});
  }
  return result;
}

Instances experts_stale(const Plan& plan, std::size_t limit) {
  const Sites sites(plan);
  if (plan.model.num_layers < 2) return {};
  Instances result;
  for (const Place& place : sites.places(limit)) {
    const std::vector<int> group = sites.group(Axis::etp, place.rank);
    const int layer = place.layer;
    const int other = layer == 0 ? 1 : layer - 1;
    const ModelConfig model = plan.model;
    result.push_back({.layer = layer,
                      .ranks = group,
                      .tap = output_tap(layer),
                      .causes = {"weights_of_another_layer"},
                      .make = script([=](Script& made) {
                        made.slice = [=](const Rank& rank, WeightSpec& spec, Range&, Range&) {
                          if (spec.expert < 0 || spec.layer != layer || !among(group, rank)) return;
                          const auto make = spec.name.ends_with(".w1.weight")   ? registry::expert_gate
                                            : spec.name.ends_with(".w3.weight") ? registry::expert_up
                                                                                : registry::expert_down;
                          spec = make(model, other, spec.expert);
                        };
                      })});
  }
  return result;
}

/// The gather of the combined rows over tp, without sequence parallelism.
Instances output_gather(const Plan& plan, std::size_t limit, bool dropped) {
  const Sites sites(plan);
  if (plan.parallel.sp || plan.parallel.tp < 2) return {};
  Instances result;
  for (const Place& place : sites.places(limit)) {
    const std::vector<int> group = sites.group(Axis::tp, place.rank);
    const int layer = place.layer;
    const Site site{.op = "moe.combine",
                    .layer = layer,
                    .operation = Operation::all_gather,
                    .counts_given = true,
                    .ranks = dropped ? group : std::vector{group.back()}};
    result.push_back({.layer = layer,
                      .ranks = site.ranks,
                      .group = "tp",
                      .tap = output_tap(layer),
                      .causes = {dropped ? "gather_dropped" : "rows_permuted"},
                      .make = script([=](Script& made) {
                        made.before = [=](const Rank& rank, internal::Call& call) {
                          return !(dropped && site.here(rank, call));
                        };
                        made.after = [=](const Rank& rank, internal::Call& call) {
                          if (!site.here(rank, call)) return;
                          if (dropped) return keep_own(call);
                          reverse_chunks(output(call), call.counts);
                        };
                      })});
  }
  return result;
}
Instances output_gather_order(const Plan& plan, std::size_t limit) {
  return output_gather(plan, limit, false);
}
Instances output_gather_dropped(const Plan& plan, std::size_t limit) {
  return output_gather(plan, limit, true);
}

constexpr MutationKind kKinds[] = {
    {"expert_map_rotated", "every rank maps an expert to the next owner", expert_map<MapFault::rotated>},
    {"expert_map_of_one_rank", "one rank maps an expert to the next owner", expert_map<MapFault::rotated_on_one_rank>},
    {"expert_map_off_by_one", "tokens go to the expert after theirs", off_by_one},
    {"expert_nonexistent", "a token is sent to an expert that does not exist", nonexistent_expert},
    {"router_weights_swapped", "router weights stand with the wrong expert", weights_swapped},
    {"router_normalisation", "router weights renormalised or not, contrary to the model", not_renormalised},
    {"last_choice_dropped", "a token's last expert is left out", last_choice_dropped},
    {"router_weights_twice", "router weights are applied twice", weights_twice},
    {"dispatch_order", "rows leave for the experts in the wrong order", dispatch_order},
    {"tokens_duplicated", "tokens are sent twice in place of others", tokens_duplicated},
    {"return_order", "rows come back from the experts in the wrong order", return_order},
    {"expert_slice_wrong", "an etp rank holds its neighbour's slice of the experts", expert_slice<SliceFault::whole>},
    {"expert_down_slice_wrong", "an etp rank's down projection is its neighbour's", expert_slice<SliceFault::down>},
    {"expert_slice_without_ep", "ep 1: every etp rank holds the first slice", expert_slice<SliceFault::first>},
    {"expert_weights_stale", "experts of another layer", experts_stale},
    {"expert_reduction_dropped", "experts' outputs are not summed over etp (reduced over one group of two)",
     etp_dropped},
    {"expert_reduction_without_ep", "ep 1: experts' outputs are not summed over etp", etp_dropped_without_ep},
    {"expert_addend_missing", "one etp rank's addend is lost", etp_missing},
    {"expert_addend_doubled", "one etp rank's addend counts twice", etp_doubled},
    {"expert_averaged", "averaged over etp instead of summed", etp_averaged},
    {"expert_partial_group", "the sum is over half of the etp group", etp_halves},
    {"expert_reduced_over_ep", "experts' outputs are summed over ep instead of etp", reduced_over_ep},
    {"expert_counted_per_replica", "a replicated expert counts once per replica", counted_per_replica},
    {"term_on_every_expert_rank", "a shared term is added on every etp rank: R + etp * S", term_on_every_rank},
    {"output_gather_order", "combined rows are gathered over tp in the wrong order", output_gather_order},
    {"output_gather_dropped", "combined rows are not gathered over tp", output_gather_dropped},
};

}  // namespace

std::span<const MutationKind> moe_kinds() {
  return kKinds;
}

}  // namespace shardproof::mutations
