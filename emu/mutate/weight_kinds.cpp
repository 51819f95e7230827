// Kinds of wrong weights: another rank's slice, another layer's tensor.
#include <algorithm>

#include "emu/mutate/internal/script.h"
#include "emu/mutate/internal/sites.h"

namespace shardproof::mutations {
namespace {

using Instances = std::vector<Mutation>;
using Causes = std::vector<std::string>;

/// One rank loads another slice of a weight.
Mutation loads(const Place& place, int rank, std::string tap, Causes causes,
               std::function<void(WeightSpec&, Range&, Range&)> edit) {
  return {.layer = place.layer,
          .ranks = {rank},
          .tap = std::move(tap),
          .causes = std::move(causes),
          .make = script([=](Script& made) {
            made.slice = [=](const Rank& loader, WeightSpec& spec, Range& rows, Range& cols) {
              if (to_int(loader.id()) == rank) edit(spec, rows, cols);
            };
          })};
}

/// Of what is added to the product with queries', keys' or values' weights; empty where the layer has no such bias.
template <Weight weight>
std::string bias_name(const ModelConfig& model, int layer) {
  const Weight bias = weight == Weight::attention_q   ? Weight::attention_q_bias
                      : weight == Weight::attention_k ? Weight::attention_k_bias
                                                      : Weight::attention_v_bias;
  return has_weight(model, bias, layer) ? weight_spec(model, bias, layer).name : "";
}

/// One rank of the tp group holds the rows (or columns) of the next.
template <Weight weight, bool columns>
Instances next_slice(const MutablePlan& plan, std::size_t limit, TapKind tap, const Causes& causes) {
  const Sites sites(plan);
  if (plan.parallel.tp < 2) return {};
  Instances result;
  for (const Place& place : sites.places(limit)) {
    if (!has_weight(plan.model, weight, place.layer)) continue;
    const std::vector<int> group = sites.group(Axis::tp, place.rank);
    const int rank = result.size() % 2 == 0 ? group.back() : group.front();
    const std::string name = weight_spec(plan.model, weight, place.layer).name;
    // Whose heads come from elsewhere, their biases do too.
    const std::string bias = !columns ? bias_name<weight>(plan.model, place.layer) : "";
    const auto edit = [=](WeightSpec& spec, Range& rows, Range& cols) {
      if (!bias.empty() && spec.name == bias) cols.begin = (cols.begin + cols.count) % spec.cols;
      if (spec.name != name) return;
      Range& part = columns ? cols : rows;
      part.begin = (part.begin + part.count) % (columns ? spec.cols : spec.rows);
    };
    result.push_back(loads(place, rank, tap_name(place.layer, tap), causes, edit));
  }
  return result;
}

Instances q_heads_swapped(const MutablePlan& plan, std::size_t limit) {
  return next_slice<Weight::attention_q, false>(plan, limit, TapKind::attention_q, {"heads_permuted"});
}
Instances kv_head_wrong(const MutablePlan& plan, std::size_t limit) {
  if (plan.model.layers[0].attention.kv_heads < 2 || plan.model.layers[0].attention.latent()) return {};
  return next_slice<Weight::attention_k, false>(plan, limit, TapKind::attention_k, {"heads_permuted"});
}
Instances v_head_wrong(const MutablePlan& plan, std::size_t limit) {
  if (plan.model.layers[0].attention.kv_heads < 2 || plan.model.layers[0].attention.latent()) return {};
  return next_slice<Weight::attention_v, false>(plan, limit, TapKind::attention_v, {"heads_permuted"});
}
Instances output_slice_of_neighbour(const MutablePlan& plan, std::size_t limit) {
  return next_slice<Weight::attention_output, true>(plan, limit, TapKind::attention_output, {"wrong_slice"});
}

/// Of a norm over all heads, a rank's part of the weight.
Instances query_norm_of_neighbour(const MutablePlan& plan, std::size_t limit) {
  if (plan.model.layers[0].attention.query_key_norm != QueryKeyNorm::full) return {};
  return next_slice<Weight::attention_q_norm, true>(plan, limit, TapKind::attention_q, {"norm_of_another_head"});
}
Instances sinks_of_neighbour(const MutablePlan& plan, std::size_t limit) {
  return next_slice<Weight::attention_sinks, true>(plan, limit, TapKind::attention_context, {"sinks_of_another_head"});
}

/// Fewer kv heads than tp: a rank believes that its query heads share another kv head.
Instances kv_group_wrong(const MutablePlan& plan, std::size_t limit) {
  const Sites sites(plan);
  if (plan.model.layers[0].attention.latent()) return {};
  const std::int64_t kv = plan.model.layers[0].attention.kv_heads;
  if (kv < 2 || kv >= plan.parallel.tp) return {};
  Instances result;
  for (const int stage : {0, plan.parallel.pp - 1}) {
    if (result.size() == limit || (!result.empty() && stage == 0)) continue;
    // Over dcp and cp the ranks that share the head's keys out.
    std::vector<int> ranks;
    for (const int rank : sites.group(Axis::dcp, sites.group(Axis::tp, sites.first_rank({.pp = stage})).back())) {
      const std::vector<int> beside = sites.group(Axis::cp, rank);
      ranks.insert(ranks.end(), beside.begin(), beside.end());
    }
    const int layer = static_cast<int>(sites.layers_of(stage).begin);
    // Where no other rank holds the head, nobody hands its keys in.
    const bool held_by_others = std::ssize(ranks) * kv < std::int64_t{plan.parallel.tp} * plan.parallel.cp;
    result.push_back({.layer = layer,
                      .ranks = ranks,
                      .tap = tap_name(layer, held_by_others ? TapKind::attention_context : TapKind::attention_k),
                      .causes = {held_by_others ? "wrong_kv_head" : "wrong_slice"},
                      .make = script([=](Script& made) {
                        made.layouts = [=](std::vector<Layout>& layouts) {
                          for (const int rank : ranks) {
                            for (LayerLayout& kind : layouts[static_cast<std::size_t>(rank)].kinds) {
                              kind.kv_heads.begin = (kind.kv_heads.begin + 1) % kv;
                            }
                          }
                        };
                      })});
  }
  return result;
}

template <Weight weight>
Instances stale(const MutablePlan& plan, std::size_t limit, TapKind tap) {
  const Sites sites(plan);
  if (plan.model.layers.size() < 2) return {};
  Instances result;
  for (const Place& place : sites.places(limit)) {
    const int other = layer_like(plan.model.layers, place.layer);
    if (other < 0 || !has_weight(plan.model, weight, place.layer)) continue;
    const std::vector<int> group = sites.group(Axis::tp, place.rank);
    const int rank = result.size() % 2 == 0 ? group.front() : group.back();
    const std::string name = weight_spec(plan.model, weight, place.layer).name;
    const WeightSpec replacement = weight_spec(plan.model, weight, other);
    const auto edit = [=](WeightSpec& spec, Range&, Range&) {
      if (spec.name == name) spec = replacement;
    };
    result.push_back(loads(place, rank, tap_name(place.layer, tap), {"weights_of_another_layer"}, edit));
  }
  return result;
}

Instances q_stale(const MutablePlan& plan, std::size_t limit) {
  return stale<Weight::attention_q>(plan, limit, TapKind::attention_q);
}
Instances k_stale(const MutablePlan& plan, std::size_t limit) {
  return stale<Weight::attention_k>(plan, limit, TapKind::attention_k);
}
Instances v_stale(const MutablePlan& plan, std::size_t limit) {
  return stale<Weight::attention_v>(plan, limit, TapKind::attention_v);
}
Instances output_stale(const MutablePlan& plan, std::size_t limit) {
  return stale<Weight::attention_output>(plan, limit, TapKind::attention_output);
}
Instances attention_norm_stale(const MutablePlan& plan, std::size_t limit) {
  return stale<Weight::attention_norm>(plan, limit, TapKind::attention_norm);
}
Instances moe_norm_stale(const MutablePlan& plan, std::size_t limit) {
  return stale<Weight::moe_norm>(plan, limit, TapKind::moe_norm);
}
Instances router_stale(const MutablePlan& plan, std::size_t limit) {
  Instances result = stale<Weight::router>(plan, limit, TapKind::router_logits);
  // Only the first rank of a tp group has tokens to route for certain.
  return result.empty() ? result : Instances{result.front()};
}

/// A vocabulary slice that lies one row off.
template <Weight weight>
Instances vocabulary_shift(const MutablePlan& plan, std::size_t limit) {
  static_assert(weight == Weight::embedding || weight == Weight::head);
  constexpr bool kHead = weight == Weight::head;
  const Sites sites(plan);
  if (plan.parallel.tp < 2) return {};
  if (kHead && plan.model.tie_word_embeddings && plan.parallel.pp == 1) return {};
  const int stage = kHead ? plan.parallel.pp - 1 : 0;
  const std::string name = weight_spec(plan.model, weight).name;
  Instances result;
  for (const auto& [dp, first] : {std::pair{0, 0}, {sites.last_busy_dp(), plan.parallel.tp - 1}}) {
    if (result.size() == limit) break;
    int tp = first;
    while (!kHead && !sites.embeds({.tp = tp, .dp = dp})) tp = (tp + 1) % plan.parallel.tp;
    while (kHead && vocabulary_of(plan.model, plan.parallel, tp).count == 0) --tp;
    const int rank = sites.mesh.rank_at({.tp = tp, .dp = dp, .pp = stage});
    const auto edit = [=](WeightSpec& spec, Range& rows, Range& cols) {
      if (spec.name == name) rows.begin += rows.end() < spec.rows ? 1 : -1;
      if (kHead && spec.weight == Weight::head_bias) cols.begin += cols.end() < spec.cols ? 1 : -1;
    };
    result.push_back(loads({-1, rank}, rank, tap_name(-1, kHead ? TapKind::logits : TapKind::embedding),
                           {"vocabulary_shifted"}, edit));
  }
  return result;
}

/// A head that is tied to the embedding, on a stage that does not hold that: a tensor of its own.
Instances tied_head_unset(const MutablePlan& plan, std::size_t limit) {
  if (!plan.model.tie_word_embeddings || plan.parallel.pp == 1 || limit == 0) return {};
  const Sites sites(plan);
  const std::vector<int> ranks = sites.stage_ranks(plan.parallel.pp - 1);
  const std::string own_name = std::string(tensor_row(Weight::head).name);
  return {{.ranks = ranks,
           .tap = tap_name(-1, TapKind::logits),
           .causes = {"head_tying"},
           .make = script([=](Script& made) {
             made.slice = [=](const Rank& rank, WeightSpec& spec, Range&, Range&) {
               if (spec.weight == Weight::head && among(ranks, rank)) spec.name = own_name;
             };
           })}};
}

constexpr MutationKind kWeightKinds[] = {
    {"embedding_slice_off_by_one", "a vocabulary slice begins a row too late", vocabulary_shift<Weight::embedding>},
    {"attention_norm_stale", "a rank's attention norm is another layer's", attention_norm_stale,
     MutationClass::sharding, may_have_no_row},
    {"q_heads_swapped", "a rank holds its neighbour's query heads", q_heads_swapped},
    {"query_norm_of_another_head", "a rank norms its queries with the weight of its neighbour's heads",
     query_norm_of_neighbour},
    {"sinks_of_another_head", "a rank holds the sinks of its neighbour's heads", sinks_of_neighbour},
    {"kv_head_wrong", "a rank holds the wrong key head", kv_head_wrong},
    {"v_head_wrong", "a rank holds the wrong value head", v_head_wrong},
    {"kv_group_wrong", "fewer kv heads than tp: query heads use another kv head", kv_group_wrong},
    {"q_weights_stale", "query weights of another layer", q_stale},
    {"k_weights_stale", "key weights of another layer", k_stale},
    {"v_weights_stale", "value weights of another layer", v_stale},
    {"output_slice_of_neighbour", "the output projection's slice of the next rank", output_slice_of_neighbour},
    {"output_weights_stale", "output projection of another layer", output_stale},
    {"moe_norm_stale", "a rank's norm before the experts is another layer's", moe_norm_stale, MutationClass::sharding,
     may_have_no_row},
    {"router_weights_stale", "a rank's router is another layer's", router_stale},
    {"tied_head_unset", "the last stage's head, tied to the embedding, is not set to it", tied_head_unset},
    {"head_slice_off_by_one", "the head's vocabulary slice begins a row too late", vocabulary_shift<Weight::head>},
};

}  // namespace

std::span<const MutationKind> weight_kinds() {
  return kWeightKinds;
}

}  // namespace shardproof::mutations
