// Kinds of order: pipeline, microbatches, layers, and calls that do not match.
#include <algorithm>

#include "emu/mutate/internal/script.h"
#include "emu/mutate/internal/sites.h"

namespace shardproof::mutations {
namespace {

using Instances = std::vector<Mutation>;

std::string norm_tap(std::int64_t layer) {
  return tap_name(static_cast<int>(layer), TapKind::attention_norm);
}

Instances microbatches_swapped(const MutablePlan& plan, std::size_t limit) {
  const Sites sites(plan);
  const Parallel p = plan.parallel;
  if (p.pp < 2 || plan.workload.microbatches < 2) return {};
  // What maps blocks of a microbatch that has not been run is no order but an error of its rank.
  if (std::ranges::any_of(sites.tokens.chunks(0, 1), [](const Chunk& chunk) { return chunk.prefix_of >= 0; }))
    return {};
  // Two without rows have no order, and what padding leaves is of no microbatch.
  const auto is_empty = [&](std::int64_t m) { return sites.tokens.rows({}, m).count() == 0; };
  if ((is_empty(0) && is_empty(1)) || (plan.workload.idle == Idle::pad && (is_empty(0) || is_empty(1)))) return {};
  Instances result;
  for (const int stage : {1, p.pp - 1}) {
    if (result.size() == limit || (stage == 1 && !result.empty())) continue;
    const std::int64_t layer = sites.layers_of(stage).begin;
    std::vector<int> later;
    for (int rank = 0; rank < plan.world(); ++rank) {
      const Coordinates at = sites.mesh.coordinates(rank);
      if (at.pp >= stage && at.dp == 0) later.push_back(rank);
    }
    result.push_back({.layer = static_cast<int>(layer),
                      .group = "pp",
                      .tap = norm_tap(layer),
                      .may_clash = true,
                      .causes = {"microbatch_order", "call_sequence", "call_arguments"},
                      .make = script([=](Script& made) {
                        made.timetable = [=](Timetable& timetable) {
                          for (const int rank : later) {
                            std::vector<WorkItem>& items = timetable[static_cast<std::size_t>(rank)];
                            std::swap(items[0].microbatch,
                                      items[0].beside >= 0 ? items[0].beside : items[1].microbatch);
                          }
                        };
                      })});
  }
  return result;
}

Instances activation_stale(const MutablePlan& plan, std::size_t limit) {
  const Sites sites(plan);
  const Parallel p = plan.parallel;
  if (p.pp < 2 || plan.workload.microbatches < 2) return {};
  const auto rows = [&](std::int64_t m) { return sites.tokens.rows({}, m).count(); };
  if (rows(0) != rows(1) || rows(0) == 0) return {};
  Instances result;
  for (const int stage : {0, p.pp - 2}) {
    if (result.size() == limit || (stage == 0 && !result.empty())) continue;
    const int rank = sites.first_rank({.pp = stage});
    const std::int64_t layer = sites.layers_of(stage + 1).begin;
    const int world = plan.world();
    result.push_back({.layer = static_cast<int>(layer),
                      .ranks = {rank},
                      .group = "pp",
                      .microbatch = 1,
                      .tap = norm_tap(layer),
                      .causes = {"microbatch_order"},
                      .make = script([=](Script& made) {
                        const auto sent = std::make_shared<std::vector<double>>();
                        const Buffers buffers = make_buffers(world);
                        made.before = [=](const Rank& at, internal::Call& call) {
                          if (to_int(at.id()) != rank || !is_call_of(call.tag, Op::stage_send)) return true;
                          if (call.tag.microbatch == 0) *sent = input(call);
                          if (call.tag.microbatch == 1 && sent->size() == call.in_count) {
                            set_input(at, call, buffers, *sent);
                          }
                          return true;
                        };
                      })});
  }
  return result;
}

/// Every rank of a stage runs other layers than its own.
Mutation stage_runs(const Sites& sites, int stage, Range layers, std::string tap, std::string cause) {
  const std::vector<int> ranks = sites.stage_ranks(stage);
  return {.layer = static_cast<int>(sites.layers_of(stage).begin),
          .ranks = ranks,
          .group = "pp",
          .tap = std::move(tap),
          .causes = {std::move(cause)},
          .make = script([=](Script& made) {
            made.layouts = [=](std::vector<Layout>& layouts) {
              for (const int rank : ranks) layouts[static_cast<std::size_t>(rank)].layers = layers;
            };
          })};
}

Instances layer_skipped(const MutablePlan& plan, std::size_t limit) {
  const Sites sites(plan);
  Instances result;
  const Range first = sites.layers_of(0);
  result.push_back(stage_runs(sites, 0, {first.begin + 1, first.count - 1}, norm_tap(first.begin), "layer_missing"));
  if (plan.parallel.pp > 1 && limit > 1) {
    const Range last = sites.layers_of(plan.parallel.pp - 1);
    result.push_back(stage_runs(sites, plan.parallel.pp - 1, {last.begin, last.count - 1}, norm_tap(last.end() - 1),
                                "layer_missing"));
  }
  return result;
}

Instances layer_run_twice(const MutablePlan& plan, std::size_t limit) {
  const Sites sites(plan);
  Instances result;
  for (const int stage : {1, plan.parallel.pp - 1}) {
    if (stage < 1 || stage >= plan.parallel.pp || result.size() == limit || (stage == 1 && !result.empty())) continue;
    const Range own = sites.layers_of(stage);
    result.push_back(
        stage_runs(sites, stage, {own.begin - 1, own.count + 1}, norm_tap(own.begin - 1), "layer_repeated"));
  }
  return result;
}

Instances stages_swapped(const MutablePlan& plan, std::size_t limit) {
  const Sites sites(plan);
  Instances result;
  for (int stage = 0; stage + 1 < plan.parallel.pp && result.size() < limit;
       stage += std::max(1, plan.parallel.pp - 2)) {
    const Range here = sites.layers_of(stage);
    const Range next = sites.layers_of(stage + 1);
    if (here.count != next.count) continue;
    const std::vector<int> ranks = sites.stage_ranks(stage);
    const std::vector<int> others = sites.stage_ranks(stage + 1);
    result.push_back({.layer = static_cast<int>(here.begin),
                      .group = "pp",
                      .tap = norm_tap(here.begin),
                      .causes = {"layer_order"},
                      .make = script([=](Script& made) {
                        made.layouts = [=](std::vector<Layout>& layouts) {
                          for (const int rank : ranks) layouts[static_cast<std::size_t>(rank)].layers = next;
                          for (const int rank : others) layouts[static_cast<std::size_t>(rank)].layers = here;
                        };
                      })});
  }
  return result;
}

/// A call that does not take place on one rank.
Mutation skipped(const Site& site, std::vector<std::string> causes) {
  return {.layer = site.layer,
          .ranks = site.ranks,
          .microbatch = site.microbatch,
          .causes = std::move(causes),
          .make = script([=](Script& made) {
            made.before = [=](const Rank& rank, internal::Call& call) { return !site.matches(rank, call); };
            made.after = [=](const Rank& rank, internal::Call& call) {
              if (site.matches(rank, call)) zero_output(call);
            };
          })};
}

Op first_dispatch_call(const Plan& plan) {
  return plan.parallel.sums_over_ep() ? Op::dispatch_rows : Op::dispatch_counts;
}

Instances zero_token_rank_skips(const MutablePlan& plan, std::size_t limit) {
  const Sites sites(plan);
  const Parallel& p = plan.parallel;
  if (p.ep < 2 || p.routes_alike()) return {};
  Instances result;
  for (std::int64_t m = 0; m < sites.tokens.microbatches() && result.size() < limit; ++m) {
    for (int dp = p.dp - 1; dp >= 0 && result.size() < limit; --dp) {
      for (int tp = p.tp - 1; tp >= 0 && result.size() < limit; --tp) {
        if (sites.tokens.own({.tp = tp, .dp = dp}, m).count() > 0) continue;
        const std::vector<Place> places = sites.moe_places(2);
        if (places.empty()) return result;
        const int layer = result.empty() ? places.front().layer : places.back().layer;
        const int rank = sites.mesh.rank_at({.tp = tp, .dp = dp, .pp = sites.stage_of(layer)});
        result.push_back(skipped(
            {.op = first_dispatch_call(plan), .layer = layer, .ranks = {rank}, .microbatch = static_cast<int>(m)},
            {"call_sequence"}));
      }
    }
  }
  return result;
}

Instances rank_skips_all_to_all(const MutablePlan& plan, std::size_t limit) {
  const Sites sites(plan);
  if (plan.parallel.ep < 2 || plan.parallel.routes_alike()) return {};
  Instances result;
  for (const Place& place : sites.moe_places(limit)) {
    const int rank = sites.group(Axis::ep, place.rank).back();
    result.push_back(
        skipped({.op = first_dispatch_call(plan), .layer = place.layer, .ranks = {rank}}, {"call_sequence"}));
  }
  return result;
}

Instances rank_skips_reduction(const MutablePlan& plan, std::size_t limit) {
  const Sites sites(plan);
  if (plan.parallel.tp < 2) return {};
  Instances result;
  for (const Place& place : sites.places(limit)) {
    const std::vector<int> group = sites.group(Axis::tp, place.rank);
    const int rank = result.size() % 2 == 0 ? group.back() : group.front();
    result.push_back(
        skipped(Site{.op = Op::attention_reduce, .layer = place.layer, .ranks = {rank}}, {"call_sequence"}));
  }
  return result;
}

Instances rank_one_behind(const MutablePlan& plan, std::size_t limit) {
  const Sites sites(plan);
  if (plan.parallel.tp < 2) return {};
  Instances result;
  for (const int dp : {0, sites.last_busy_dp()}) {
    if (result.size() == limit || (!result.empty() && dp == 0)) continue;
    const std::vector<int> group = sites.group(Axis::tp, sites.first_rank({.dp = dp}));
    result.push_back(skipped(Site{.op = Op::embedding_reduce, .ranks = {group.back()}}, {"call_sequence"}));
  }
  return result;
}

/// A message of the last microbatch of which one side's call does not take place: a later one would come in its place.
template <Op call_left_out>
Instances one_sided_message(const MutablePlan& plan, std::size_t limit) {
  static_assert(call_left_out == Op::stage_receive || call_left_out == Op::stage_send);
  const Sites sites(plan);
  const Parallel& p = plan.parallel;
  if (p.pp < 2) return {};
  Instances result;
  for (const int stage : {0, p.pp - 2}) {
    if (result.size() == limit || (stage == 0 && !result.empty())) continue;
    const int rank = sites.first_rank({.pp = call_left_out == Op::stage_receive ? stage + 1 : stage});
    const auto last = sites.tokens.microbatches() - 1;
    // Where its tp group routes alike, all of it: else the counts of sums over etp would not fit before the end.
    const std::vector<int> ranks = p.routes_alike() ? sites.group(Axis::tp, rank) : std::vector{rank};
    const auto here = [=](const Rank& at, const internal::Call& call) {
      return among(ranks, at) && is_call_of(call.tag, call_left_out) && call.tag.microbatch == last;
    };
    result.push_back({.ranks = ranks,
                      .group = "pp",
                      .microbatch = static_cast<int>(last),
                      .causes = {"message_lost"},
                      .make = script([=](Script& made) {
                        made.before = [=](const Rank& at, internal::Call& call) { return !here(at, call); };
                        made.after = [=](const Rank& at, internal::Call& call) {
                          if (here(at, call)) zero_output(call);
                        };
                      })});
  }
  return result;
}
Instances wrong_peer(const MutablePlan& plan, std::size_t /*limit*/) {
  const Sites sites(plan);
  if (plan.parallel.pp < 3) return {};
  const int rank = sites.first_rank({});
  return {{.ranks = {rank},
           .group = "pp",
           .causes = {"message_lost", "call_sequence"},
           .make = script([=](Script& made) {
             made.before = [=](const Rank& at, internal::Call& call) {
               if (to_int(at.id()) == rank && is_call_of(call.tag, Op::stage_send)) call.root = 2;
               return true;
             };
           })}};
}

enum class Argument { count, reduction };

template <Argument argument>
Instances wrong_argument(const MutablePlan& plan, std::size_t limit) {
  const Sites sites(plan);
  if (plan.parallel.tp < 2 || (argument == Argument::count && plan.parallel.sp)) return {};
  Instances result;
  for (const Place& place : sites.places(limit)) {
    const std::vector<int> group = sites.group(Axis::tp, place.rank);
    const Site site{.op = Op::attention_reduce,
                    .layer = place.layer,
                    .ranks = {result.size() % 2 == 0 ? group.back() : group.front()}};
    result.push_back({.layer = place.layer,
                      .ranks = site.ranks,
                      .group = "tp",
                      .causes = {"call_arguments"},
                      .make = script([=](Script& made) {
                        made.before = [=](const Rank& rank, internal::Call& call) {
                          if (!site.matches(rank, call)) return true;
                          if (argument == Argument::reduction) call.options.reduction = Reduction::max;
                          if (argument == Argument::count && call.in_count > 0) call.out_count = --call.in_count;
                          return true;
                        };
                      })});
  }
  return result;
}

/// A rank of the layer's stage whose split sizes are not by chance those that it will be given; -1 if there is none.
template <bool stale>
int rank_with_other_splits(const Sites& sites, int layer) {
  for (const int rank : sites.stage_ranks(sites.stage_of(layer))) {
    for (std::int64_t m = 0; m < sites.tokens.microbatches(); ++m) {
      const auto sent = sites.sends(layer, m, rank);
      const auto received = sites.receives(layer, m, rank);
      if (!stale && sent != received) return rank;
      if (stale && (sent != sites.sends(layer - 1, m, rank) || received != sites.receives(layer - 1, m, rank))) {
        return rank;
      }
    }
  }
  return -1;
}

/// Split sizes of one rank: those of the other direction, or those of the layer before.
template <bool stale>
Instances wrong_splits(const MutablePlan& plan, std::size_t limit) {
  const Sites sites(plan);
  if (plan.parallel.ep < 2 || plan.parallel.sums_over_ep()) return {};
  Instances result;
  for (const Place& place : sites.moe_places(5)) {
    const int layer = place.layer;
    if (result.size() == limit || (stale && layer == sites.layers_of(sites.stage_of(layer)).begin)) continue;
    if (stale && plan.model.layers[layer - 1].feed_forward.dense()) continue;
    const int rank = rank_with_other_splits<stale>(sites, layer);
    if (rank < 0 || std::ranges::any_of(result, [&](const Mutation& m) { return m.layer == layer; })) continue;
    const Site site{.op = Op::dispatch, .layer = layer, .ranks = {rank}};
    Site before = site;
    before.layer = layer - 1;
    result.push_back({.layer = layer,
                      .ranks = {rank},
                      .group = "ep",
                      .causes = {"split_sizes"},
                      .make = script([=](Script& made) {
                        const auto sent = std::make_shared<std::vector<std::size_t>>();
                        const auto received = std::make_shared<std::vector<std::size_t>>();
                        made.before = [=](const Rank& at, internal::Call& call) {
                          if (stale && before.matches(at, call)) {
                            sent->assign(call.counts.begin(), call.counts.end());
                            received->assign(call.recv_counts.begin(), call.recv_counts.end());
                          }
                          if (!site.matches(at, call)) return true;
                          if (stale && !sent->empty()) {
                            call.counts = *sent;
                            call.recv_counts = *received;
                          }
                          if (!stale) std::swap(call.counts, call.recv_counts);
                          return true;
                        };
                      })});
  }
  return result;
}

constexpr MutationKind kScheduleKinds[] = {
    {"microbatches_swapped", "later stages take two microbatches in the other order", microbatches_swapped},
    {"activation_stale", "a stage sends the activations of the microbatch before", activation_stale},
    {"layer_skipped", "a stage leaves out a layer at its edge", layer_skipped},
    {"layer_run_twice", "two stages run the same layer", layer_run_twice},
    {"stages_swapped", "two stages hold each other's layers", stages_swapped},
    {"splits_transposed", "one rank's all-to-all split sizes are those of the other direction", wrong_splits<false>},
    {"splits_stale", "one rank's all-to-all split sizes are those of the layer before", wrong_splits<true>},
    {"zero_token_rank_skips", "a rank without tokens skips the experts' all-to-all", zero_token_rank_skips},
    {"rank_skips_all_to_all", "a rank skips an all-to-all", rank_skips_all_to_all},
    {"rank_skips_reduction", "a rank skips a reduction over tp", rank_skips_reduction},
    {"rank_one_behind", "a rank is one collective behind", rank_one_behind},
    {"send_without_recv", "a stage does not receive what it is sent", one_sided_message<Op::stage_receive>},
    {"recv_without_send", "a stage does not send what is awaited", one_sided_message<Op::stage_send>},
    {"wrong_peer", "a stage sends to the stage after the next", wrong_peer},
    {"wrong_count", "one rank reduces an element less", wrong_argument<Argument::count>},
    {"wrong_reduction", "one rank asks for another reduction", wrong_argument<Argument::reduction>},
};

}  // namespace

std::span<const MutationKind> schedule_kinds() {
  return kScheduleKinds;
}

}  // namespace shardproof::mutations

namespace shardproof {

std::span<const MutationKind> mutation_kinds() {
  static const std::vector<MutationKind> kAll = [] {
    std::vector<MutationKind> all;
    for (const auto kinds :
         {mutations::attention_kinds(), mutations::cache_kinds(), mutations::cp_kinds(), mutations::dcp_kinds(),
          mutations::latent_kinds(), mutations::weight_kinds(), mutations::expert_map_kinds(), mutations::moe_kinds(),
          mutations::dispatch_kinds(), mutations::expert_kinds(), mutations::feature_kinds(),
          mutations::schedule_kinds(), mutations::rounding_kinds()}) {
      all.insert(all.end(), kinds.begin(), kinds.end());
    }
    return all;
  }();
  return kAll;
}

}  // namespace shardproof
