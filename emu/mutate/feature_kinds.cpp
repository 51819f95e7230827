// Kinds in what some models have and others do not: windows, pairs that turn, routers of groups and biases, dense
// layers among those with experts. Every rank of a stage, or of the plan, computes as if the model were another one.
#include <algorithm>

#include "emu/mutate/internal/script.h"
#include "emu/mutate/internal/sites.h"

namespace shardproof::mutations {
namespace {

using Instances = std::vector<Mutation>;

/// First layers of their kind in a stage, of the kinds that are wanted.
template <class Wanted>
std::vector<int> first_layers(const Sites& sites, const Wanted& wanted) {
  const LayerList& layers = sites.plan.model.layers;
  std::vector<int> result;
  for (int stage = 0; stage < sites.plan.parallel.pp; ++stage) {
    const Range held = sites.layers_of(stage);
    for (auto layer = static_cast<int>(held.begin); layer < held.end(); ++layer) {
      bool first = wanted(layers[layer]);
      for (auto other = static_cast<int>(held.begin); other < layer; ++other) {
        first = first && layers.kind_of(other) != layers.kind_of(layer);
      }
      if (first) result.push_back(layer);
    }
  }
  // The first and the last before others.
  if (result.size() > 2) std::rotate(result.begin() + 1, result.end() - 1, result.end());
  return result;
}

/// The stage's ranks take the kind of that layer for another one.
template <class Edit>
Mutation other_kind(const Sites& sites, int layer, TapKind tap, std::string cause, const Edit& edit) {
  const std::vector<int> ranks = sites.stage_ranks(sites.stage_of(layer));
  const int kind = sites.plan.model.layers.kind_of(layer);
  return {.layer = layer,
          .ranks = ranks,
          .tap = tap_name(layer, tap),
          .causes = {std::move(cause)},
          .make = script([=](Script& made) {
            made.model = [=](const Rank& rank, ModelConfig& model) {
              if (among(ranks, rank)) edit(model.layers.kind(kind));
            };
          })};
}

Instances window_off_by_one(const MutablePlan& plan, std::size_t limit) {
  const Sites sites(plan);
  const std::int64_t longest = *std::ranges::max_element(plan.workload.lengths);
  Instances result;
  for (const int layer : first_layers(sites, [&](const LayerSpec& spec) {
         return spec.attention.sliding_window > 0 && spec.attention.sliding_window < longest;
       })) {
    if (result.size() == limit) break;
    const std::int64_t window = plan.model.layers[layer].attention.sliding_window;
    const std::int64_t change = result.size() % 2 == 0 || window == 1 ? 1 : -1;
    const auto edit = [=](LayerSpec& spec) { spec.attention.sliding_window += change; };
    result.push_back(other_kind(sites, layer, TapKind::attention_context, "sliding_window", edit));
  }
  return result;
}

Instances rotary_pairing(const MutablePlan& plan, std::size_t limit) {
  const Sites sites(plan);
  Instances result;
  // Two elements turn together whatever the pairing; and at position 0 nothing turns.
  if (*std::ranges::max_element(plan.workload.lengths) < 2) return {};
  for (const int layer : first_layers(sites, [](const LayerSpec& spec) { return spec.attention.rope_dim() > 2; })) {
    if (result.size() == limit) break;
    const auto edit = [](LayerSpec& spec) { spec.attention.rope.interleaved = !spec.attention.rope.interleaved; };
    result.push_back(other_kind(sites, layer, TapKind::attention_q, "rotary_pairing", edit));
  }
  return result;
}

/// The routers of a layer choose or weigh by other rules.
template <class Wanted, class Edit>
Instances other_router(const MutablePlan& plan, std::size_t limit, TapKind tap, const std::string& cause,
                       const Wanted& wanted, const Edit& edit) {
  const Sites sites(plan);
  Instances result;
  for (const Place& place : sites.moe_places(5)) {
    const int layer = place.layer;
    const bool known = std::ranges::any_of(result, [&](const Mutation& other) { return other.layer == layer; });
    if (known || result.size() == limit || !wanted(plan.model.layers[layer].feed_forward)) continue;
    result.push_back({.layer = layer,
                      .ranks = sites.stage_ranks(sites.stage_of(layer)),
                      .tap = tap_name(layer, tap),
                      .causes = {cause},
                      .make = script([=](Script& made) {
                        made.router = [=](const Rank&, const FaultSite& site, RouterRule& rule) {
                          if (site.layer == layer) edit(rule);
                        };
                      })});
  }
  return result;
}

Instances bias_in_weights(const MutablePlan& plan, std::size_t limit) {
  return other_router(
      plan, limit, TapKind::router_weights, "selection_bias_in_weights",
      [](const FeedForwardSpec& spec) { return spec.selection_bias && (spec.top_k > 1 || !spec.norm_topk_prob); },
      [](RouterRule& rule) { rule.weighs_bias = true; });
}

bool has_biased_groups(const FeedForwardSpec& spec) {
  return spec.groups > spec.top_groups && spec.selection_bias;
}

Instances masked_groups_zero(const MutablePlan& plan, std::size_t limit) {
  return other_router(plan, limit, TapKind::router_choice, "masked_groups_zero", has_biased_groups,
                      [](RouterRule& rule) { rule.closed_score = 0; });
}

/// Like a layer with experts under sequence parallelism, a dense one works on the rank's own rows, with the rank's
/// slice of its MLP: no rows are gathered, and nothing is reduced.
Instances dense_as_moe(const MutablePlan& plan, std::size_t limit) {
  const Sites sites(plan);
  if (!plan.parallel.sp || plan.parallel.tp < 2 || plan.model.dense()) return {};
  Instances result;
  for (const Place& place : sites.mlp_places(5)) {
    if (result.size() == limit || !plan.model.layers[place.layer].feed_forward.dense()) continue;
    const std::vector<int> group = sites.group(Axis::tp, place.rank);
    const Site gather{.op = Op::mlp_gather, .layer = place.layer, .ranks = group};
    const Site reduce{.op = Op::mlp_reduce, .layer = place.layer, .ranks = group};
    result.push_back({.layer = place.layer,
                      .ranks = group,
                      .group = "tp",
                      .tap = tap_name(place.layer, TapKind::mlp_output),
                      .causes = causes_of(SumFault::dropped),
                      .make = script([=](Script& made) {
                        const auto wanted = [=](const Rank& rank, const internal::Call& call) {
                          return gather.matches(rank, call) || reduce.matches(rank, call);
                        };
                        made.before = [=](const Rank& rank, internal::Call& call) { return !wanted(rank, call); };
                        made.after = [=](const Rank& rank, internal::Call& call) {
                          if (wanted(rank, call)) keep_own(call);
                        };
                      })});
  }
  return result;
}

/// No token may have an open expert among its best whose score is negative.
bool has_groups(const Plan& plan) {
  return std::ranges::any_of(plan.model.layers.kinds(),
                             [](const LayerSpec& layer) { return has_biased_groups(layer.feed_forward); });
}

constexpr MutationKind kFeatureKinds[] = {
    {"rotary_pairing", "elements i and i + d/2 of a head turn together where 2i and 2i + 1 should, or the reverse",
     rotary_pairing},
    {"window_off_by_one", "a sliding window is one key too wide, or too narrow", window_off_by_one},
    {"masked_groups_zero", "experts of groups that are closed have a score of 0", masked_groups_zero,
     MutationClass::sharding, has_groups},
    {"selection_bias_in_weights", "the bias of the choice of experts is in their weights too", bias_in_weights},
    {"dense_layer_run_as_moe", "a dense layer works on a rank's own rows under sp, like one with experts",
     dense_as_moe},
};

}  // namespace

std::span<const MutationKind> feature_kinds() {
  return kFeatureKinds;
}

}  // namespace shardproof::mutations
