// Kinds in the Mixture-of-Experts half of a layer: expert map, routing, dispatch and return.
#include <algorithm>
#include <set>
#include <utility>

#include "emu/mutate/internal/script.h"
#include "emu/mutate/internal/sites.h"
#include "ops/router.h"

namespace shardproof::mutations {
namespace {

using Instances = std::vector<Mutation>;
using Causes = std::vector<std::string>;

/// What is done to the rows that a rank gives to a call, and to those that it gets.
struct RowEdits {
  std::function<void(std::span<double>, const internal::Call&)> in = {};
  std::function<void(std::span<double>, const internal::Call&)> out = {};
};

Mutation edited_call(const Site& site, int world, std::string cause, const RowEdits& edits) {
  return {.layer = site.layer,
          .ranks = site.ranks,
          .tap = moe_output_tap(site.layer),
          .causes = {std::move(cause)},
          .make = script([=](Script& made) {
            const Buffers buffers = make_buffers(world);
            made.before = [=](const Rank& rank, internal::Call& call) {
              if (!edits.in || !site.matches(rank, call)) return true;
              edit_input(rank, call, buffers, [&](std::span<double> rows) { edits.in(rows, call); });
              return true;
            };
            made.after = [=](const Rank& rank, internal::Call& call) {
              if (!edits.out || !site.matches(rank, call)) return;
              edit_output(call, [&](std::span<double> rows) { edits.out(rows, call); });
            };
          })};
}

Site dispatch_site(int layer, std::vector<int> ranks) {
  return {.op = Op::dispatch, .layer = layer, .ranks = std::move(ranks)};
}
Site return_site(int layer, std::vector<int> ranks) {
  return {.op = Op::combine_return, .layer = layer, .ranks = std::move(ranks)};
}

bool goes_all_to_all(const Plan& plan) {
  return plan.parallel.ep > 1 && !plan.parallel.sums_over_ep();
}

Instances counted_per_replica(const MutablePlan& plan, std::size_t limit) {
  const Sites sites(plan);
  if (plan.parallel.edp < 2 || !goes_all_to_all(plan)) return {};
  Instances result;
  for (const Place& place : sites.expert_places(limit)) {
    const std::vector<int> group = sites.group(Axis::ep, place.rank);
    const double times = plan.parallel.edp;
    const auto scale = [=](std::span<double> rows, const internal::Call&) {
      for (double& value : rows) value *= times;
    };
    result.push_back(edited_call(return_site(place.layer, group), plan.world(), "counted_n_times", {.in = scale}));
  }
  return result;
}

/// What a rank sends for a choice of one of its tokens: replicas of an expert are physical experts, with its weights.
struct Slot {
  std::int64_t physical = 0;
  std::int64_t row = 0;
  std::int32_t expert = 0;
};

/// In each microbatch, in the order in which they are sent.
std::vector<std::vector<Slot>> sent_slots(const Sites& sites, const Place& place) {
  const Plan& plan = sites.plan;
  const Deployment deployment = deploy(plan.model, plan.parallel, plan.workload);
  std::vector<std::vector<Slot>> result;
  for (std::int64_t m = 0; m < sites.tokens.microbatches(); ++m) {
    const TokenRows own = sites.tokens.own(sites.mesh.coordinates(place.rank), m);
    std::vector<Slot>& sent = result.emplace_back();
    for (std::int64_t i = 0; i < own.count(); ++i) {
      for (const std::int32_t expert : sites.plan.choices[static_cast<std::size_t>(place.layer)].row(own[i])) {
        sent.push_back({physical_expert(plan.model, deployment, place.layer, own[i], expert), own[i], expert});
      }
    }
    std::ranges::sort(sent, {}, [](const Slot& slot) { return std::pair(slot.physical, slot.row); });
  }
  return result;
}

/// Each slot is sent the row of the slot at source_of(its place, slots): a token's one output, as it is, is then the
/// other token's, if both have chosen the same expert.
template <class SourceOf>
bool permutes_outputs(const Sites& sites, const Place& place, const SourceOf& source_of) {
  if (!weighs_by_one(sites.plan.model.layers[place.layer].feed_forward)) return false;
  return std::ranges::all_of(sent_slots(sites, place), [&](const std::vector<Slot>& sent) {
    for (std::size_t i = 0; i < sent.size(); ++i) {
      if (sent[i].expert != sent[source_of(i, sent.size())].expert) return false;
    }
    return true;
  });
}

Instances dispatch_order(const MutablePlan& plan, std::size_t limit) {
  const Sites sites(plan);
  if (!goes_all_to_all(plan)) return {};
  Instances result;
  const std::int64_t hidden = plan.model.hidden_size;
  for (const Place& place : sites.sending_places(limit)) {
    const auto rotate = [=](std::span<double> rows, const internal::Call&) {
      if (!rows.empty()) std::rotate(rows.begin(), rows.begin() + hidden, rows.end());
    };
    result.push_back(
        edited_call(dispatch_site(place.layer, {place.rank}), plan.world(), "tokens_permuted", {.in = rotate}));
    const auto next = [](std::size_t i, std::size_t slots) { return (i + 1) % slots; };
    if (permutes_outputs(sites, place, next)) result.back().causes.emplace_back("rows_permuted");
  }
  return result;
}

/// With the owners' chunks in reverse, every output comes back to its own token in each microbatch, for another choice.
bool comes_back_to_its_token(const Sites& sites, const Place& place) {
  const std::vector<std::vector<Slot>> all_sent = sent_slots(sites, place);
  for (std::int64_t m = 0; m < sites.tokens.microbatches(); ++m) {
    const std::vector<Slot>& sent = all_sent[static_cast<std::size_t>(m)];
    std::vector<std::int64_t> back;  // rows
    auto begin = sent.begin();
    for (const std::int64_t count : sites.sends(place.layer, m, place.rank)) {
      std::vector<std::int64_t> chunk;
      for (std::int64_t i = 0; i < count; ++i) chunk.push_back((begin++)->row);
      back.insert(back.begin(), chunk.begin(), chunk.end());
    }
    if (!std::ranges::equal(back, sent, {}, {}, &Slot::row)) return false;
  }
  return true;
}

Instances return_order(const MutablePlan& plan, std::size_t limit) {
  const Sites sites(plan);
  if (!goes_all_to_all(plan)) return {};
  Instances result;
  for (const Place& place : sites.sending_places(limit)) {
    const auto reverse = [](std::span<double> rows, const internal::Call& call) {
      reverse_chunks(rows, call.recv_counts);
    };
    result.push_back(
        edited_call(return_site(place.layer, {place.rank}), plan.world(), "tokens_permuted", {.out = reverse}));
    // A token's one output, as it is: another token's is that one's row.
    if (weighs_by_one(plan.model.layers[place.layer].feed_forward)) result.back().causes.emplace_back("rows_permuted");
    // A token's own outputs in another order are other experts', and stand with the wrong weights.
    if (comes_back_to_its_token(sites, place)) {
      result.back().causes.insert(result.back().causes.end(), {"router_weights_permuted", "expert_map"});
    }
  }
  return result;
}

Instances tokens_duplicated(const MutablePlan& plan, std::size_t limit) {
  const Sites sites(plan);
  if (!goes_all_to_all(plan)) return {};
  Instances result;
  const std::int64_t hidden = plan.model.hidden_size;
  for (const Place& place : sites.sending_places(limit)) {
    const auto repeat = [=](std::span<double> rows, const internal::Call&) {
      if (!rows.empty()) std::copy_backward(rows.begin(), rows.end() - hidden, rows.end());
    };
    result.push_back(
        edited_call(dispatch_site(place.layer, {place.rank}), plan.world(), "tokens_permuted", {.in = repeat}));
    const auto before = [](std::size_t i, std::size_t) { return i == 0 ? 0 : i - 1; };
    if (permutes_outputs(sites, place, before)) result.back().causes.emplace_back("rows_permuted");
  }
  return result;
}

using Scores = ops::MatrixView<const double>;
using Ids = ops::MatrixView<std::int32_t>;
using Weights = ops::MatrixView<double>;

/// Changes the choices of one rank in one layer.
template <class Edit>
Instances routing(const MutablePlan& plan, std::size_t limit, const std::string& cause, const Edit& edit) {
  const Sites sites(plan);
  Instances result;
  for (const Place& place : sites.moe_places(limit)) {
    const int layer = place.layer;
    // Ranks that route the same rows run the same program.
    const std::vector<int> ranks =
        plan.parallel.routes_alike() ? sites.group(Axis::tp, place.rank) : std::vector{place.rank};
    result.push_back({.layer = layer,
                      .ranks = ranks,
                      .tap = moe_output_tap(layer),
                      .causes = cause == "expert_map" ? or_weights(plan, cause) : Causes{cause},
                      .make = script([=](Script& made) {
                        made.routing = [=](const Rank& at, const FaultSite& in, Scores logits, Ids ids,
                                           Weights weights) {
                          if (among(ranks, at) && in.layer == layer) edit(in, logits, ids, weights);
                        };
                      })});
  }
  return result;
}

Instances off_by_one(const MutablePlan& plan, std::size_t limit) {
  const auto experts = static_cast<std::int32_t>(plan.model.experts().num_experts);
  if (experts < 2) return {};
  Instances result = routing(plan, limit, "expert_map", [=](const FaultSite&, Scores, Ids ids, Weights) {
    for (std::int64_t t = 0; t < ids.rows; ++t) {
      for (std::int32_t& id : ids.row(t)) id = (id + 1) % experts;
    }
  });
  return result;
}

Instances nonexistent_expert(const MutablePlan& plan, std::size_t limit) {
  const auto experts = static_cast<std::int32_t>(plan.model.experts().num_experts);
  // In the last microbatch that has tokens, so that all before it are complete.
  const Sites sites(plan);
  const auto rows_of = [&](std::int64_t m, int dp) { return sites.tokens.rows({.dp = dp}, m).count(); };
  std::int64_t last = sites.tokens.microbatches() - 1;
  int busy = 0;
  while (rows_of(last, busy) == 0) {
    if (++busy < plan.parallel.dp) continue;
    busy = 0;
    --last;
  }
  Instances result = routing(plan, limit, "rank_error", [=](const FaultSite& in, Scores, Ids ids, Weights) {
    if (in.microbatch == last && ids.rows > 0) ids(ids.rows - 1, 0) = experts;
  });
  std::erase_if(result, [&](const Mutation& mutation) {
    return rows_of(last, sites.mesh.coordinates(mutation.ranks.front()).dp) == 0;
  });
  return result;
}

Instances weights_swapped(const MutablePlan& plan, std::size_t limit) {
  if (plan.model.experts().top_k < 2) return {};
  return routing(plan, limit, "router_weights_permuted", [](const FaultSite&, Scores, Ids, Weights weights) {
    for (std::int64_t t = 0; t < weights.rows; ++t) std::ranges::reverse(weights.row(t));
  });
}

Instances not_renormalised(const MutablePlan& plan, std::size_t limit) {
  const bool normalise = !plan.model.experts().norm_topk_prob;
  Instances result =
      routing(plan, limit, "router_weights_scaled", [=](const FaultSite&, Scores logits, Ids ids, Weights weights) {
        if (ids.rows > 0) ops::route_weights<double>(logits, ids, normalise, ops::Format::exact, weights);
      });
  // Of all experts chosen the sum over the chosen is the sum over all.
  std::erase_if(result, [&](const Mutation& mutation) {
    const FeedForwardSpec& spec = plan.model.layers[mutation.layer].feed_forward;
    return spec.top_k == spec.num_experts;
  });
  return result;
}

/// The last choices of all tokens that its ranks route are for the experts of one rank, whose part is then what is
/// lost.
bool last_choices_have_one_owner(const Sites& sites, const Mutation& mutation) {
  const auto& choices = sites.plan.choices[static_cast<std::size_t>(mutation.layer)];
  const Deployment deployment = deploy(sites.plan.model, sites.plan.parallel, sites.plan.workload);
  std::set<int> owners;
  for (const int rank : mutation.ranks) {
    for (std::int64_t m = 0; m < sites.tokens.microbatches(); ++m) {
      const TokenRows rows = sites.tokens.own(sites.mesh.coordinates(rank), m);
      for (std::int64_t i = 0; i < rows.count(); ++i) {
        const std::int32_t last = choices(rows[i], choices.cols() - 1);
        owners.insert(serving_ep(sites.plan.model, deployment, mutation.layer, rows[i], last));
      }
    }
  }
  return owners.size() == 1;
}

Instances last_choice_dropped(const MutablePlan& plan, std::size_t limit) {
  if (plan.model.experts().top_k < 2) return {};
  Instances result = routing(plan, limit, "slot_dropped", [](const FaultSite&, Scores, Ids, Weights weights) {
    for (std::int64_t t = 0; t < weights.rows; ++t) weights(t, weights.cols - 1) = 0;
  });
  const Sites sites(plan);
  for (Mutation& mutation : result) {
    if (plan.parallel.sums_over_ep() && last_choices_have_one_owner(sites, mutation)) {
      mutation.causes.emplace_back("partial_sum_missing");
    }
  }
  return result;
}

Instances weights_twice(const MutablePlan& plan, std::size_t limit) {
  return routing(plan, limit, "router_weights_squared", [](const FaultSite&, Scores, Ids, Weights weights) {
    for (std::int64_t t = 0; t < weights.rows; ++t) {
      for (double& weight : weights.row(t)) weight *= weight;
    }
  });
}

bool gathers_output(const Plan& plan) {
  return plan.parallel.tp > 1 && !plan.parallel.sp && !plan.parallel.routes_alike();
}

/// The gather of the combined rows over tp, without sequence parallelism.
template <GatherFault fault>
Instances output_gather(const MutablePlan& plan, std::size_t limit) {
  const Sites sites(plan);
  if (!gathers_output(plan)) return {};
  Instances result;
  for (const Place& place : sites.moe_places(limit)) {
    const std::vector<int> group = sites.group(Axis::tp, place.rank);
    const Site site{.op = Op::moe_gather,
                    .layer = place.layer,
                    .ranks = fault == GatherFault::dropped ? group : std::vector{group.back()}};
    result.push_back({.layer = place.layer,
                      .ranks = site.ranks,
                      .group = "tp",
                      .tap = moe_output_tap(place.layer),
                      .causes = causes_of(fault),
                      .make = faulty_gather(site, fault)});
  }
  return result;
}

/// The output, whole already, is summed over tp as well.
Instances reduced_over_tp(const MutablePlan& plan, std::size_t limit) {
  const Sites sites(plan);
  if (!gathers_output(plan)) return {};
  Instances result;
  for (const Place& place : sites.moe_places(limit)) {
    const std::vector<int> group = sites.group(Axis::tp, place.rank);
    const Site site{.op = Op::moe_gather, .layer = place.layer, .ranks = group};
    result.push_back({.layer = place.layer,
                      .ranks = group,
                      .group = "tp",
                      .tap = moe_output_tap(place.layer),
                      .causes = {"reduced_twice", "counted_n_times"},
                      .make = script([=](Script& made) {
                        made.after = [=](const Rank& rank, internal::Call& call) {
                          if (!site.matches(rank, call)) return;
                          edit_output(call, [&](std::span<double> values) {
                            for (double& value : values) value *= static_cast<double>(group.size());
                          });
                        };
                      })});
  }
  return result;
}

constexpr MutationKind kMoeKinds[] = {
    {"expert_map_off_by_one", "tokens go to the expert after theirs", off_by_one},
    {"expert_nonexistent", "a token is sent to an expert that does not exist", nonexistent_expert},
    {"router_weights_swapped", "router weights stand with the wrong expert", weights_swapped},
    {"router_normalisation", "router weights renormalised or not, contrary to the model", not_renormalised},
    {"last_choice_dropped", "a token's last expert is left out", last_choice_dropped},
    {"router_weights_twice", "router weights are applied twice", weights_twice, MutationClass::sharding, weighs_by_one},
    {"dispatch_order", "rows leave for the experts in the wrong order", dispatch_order},
    {"tokens_duplicated", "tokens are sent twice in place of others", tokens_duplicated},
    {"return_order", "rows come back from the experts in the wrong order", return_order},
    {"expert_counted_per_replica", "a replicated expert counts once per replica", counted_per_replica},
    {"moe_output_reduced_over_tp", "the experts' output is summed over tp although it is whole", reduced_over_tp},
    {"output_gather_order", "combined rows are gathered over tp in the wrong order",
     output_gather<GatherFault::reversed>, MutationClass::sharding, may_have_one_row},
    {"output_gather_dropped", "combined rows are not gathered over tp", output_gather<GatherFault::dropped>},
};

}  // namespace

std::span<const MutationKind> moe_kinds() {
  return kMoeKinds;
}

}  // namespace shardproof::mutations
