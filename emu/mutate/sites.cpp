#include "emu/mutate/internal/sites.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "emu/plan/layout.h"

namespace shardproof::mutations {

Sites::Sites(const MutablePlan& given)
    : plan(given),
      mesh(given.parallel),
      stages(given.model, given.parallel),
      batch(given.workload, given.model.vocab_size),
      tokens(given.parallel, given.workload),
      expert_maps(expert_maps_of(given.model, given.parallel, given.workload.routing)) {}

int Sites::last_busy_dp() const {
  int dp = plan.parallel.dp - 1;
  while (dp > 0 && tokens.sequences(dp).count == 0) --dp;
  return dp;
}

std::vector<int> Sites::stage_ranks(int stage) const {
  std::vector<int> ranks(static_cast<std::size_t>(mesh.world() / plan.parallel.pp));
  std::iota(ranks.begin(), ranks.end(), mesh.rank_at({.pp = stage}));
  return ranks;
}

template <class Wanted>
std::vector<int> Sites::layers_with(const Wanted& wanted) const {
  std::vector<int> layers;
  for (int layer = 0; layer < plan.model.layers.size(); ++layer) {
    if (wanted(plan.model.layers[layer])) layers.push_back(layer);
  }
  return layers;
}

std::vector<Place> Sites::places(std::size_t limit) const {
  return places_in(layers_with([](const LayerSpec&) { return true; }), limit);
}

std::vector<Place> Sites::moe_places(std::size_t limit) const {
  return places_in(layers_with([](const LayerSpec& layer) { return !layer.feed_forward.dense(); }), limit);
}

std::vector<Place> Sites::mlp_places(std::size_t limit) const {
  return places_in(layers_with([](const LayerSpec& layer) { return layer.feed_forward.mlp_size() > 0; }), limit);
}

std::vector<Place> Sites::places_in(const std::vector<int>& layers, std::size_t limit) const {
  if (layers.empty()) return {};
  const int first = layers.front(), last = layers.back(), middle = layers[(layers.size() - 1) / 2];
  const int dp = last_busy_dp();
  std::vector<Place> result;
  for (const auto& [layer, replica] : {std::pair{first, 0}, {last, dp}, {middle, 0}, {first, dp}, {last, 0}}) {
    const Place place{layer, first_rank({.dp = replica, .pp = stage_of(layer)})};
    const bool known = std::ranges::any_of(
        result, [&](const Place& other) { return other.layer == place.layer && other.rank == place.rank; });
    if (!known && result.size() < limit) result.push_back(place);
  }
  return result;
}

bool Sites::embeds(const Coordinates& at) const {
  const Range held = vocabulary_of(plan.model, plan.parallel, at.tp);
  for (std::int64_t m = 0; m < tokens.microbatches(); ++m) {
    for (const std::int32_t id : batch.tokens(tokens.rows({.dp = at.dp}, m))) {
      if (id >= held.begin && id < held.end()) return true;
    }
  }
  return false;
}

bool Sites::embeds_across(int dp) const {
  const Parallel& p = plan.parallel;
  for (std::int64_t m = 0; m < tokens.microbatches(); ++m) {
    for (int tp = 0; tp < p.tp; ++tp) {
      const Range held = vocabulary_of(plan.model, p, tp);
      for (const std::int32_t id : batch.tokens(tokens.stream({.tp = tp, .dp = dp}, m))) {
        if (id < held.begin || id >= held.end()) return true;
      }
    }
  }
  return false;
}

std::vector<std::int64_t> Sites::sends(int layer, std::int64_t microbatch, int rank) const {
  const TokenRows own = tokens.own(mesh.coordinates(rank), microbatch);
  const std::int64_t experts = plan.model.layers[layer].feed_forward.num_experts + plan.parallel.experts.redundant;
  const Range held = partition(experts, plan.parallel.ep, mesh.coordinates(rank).ep);
  std::vector<std::int64_t> counts(static_cast<std::size_t>(plan.parallel.ep), 0);
  for (std::int64_t place = 0; place < own.count(); ++place) {
    for (const std::int32_t expert : plan.choices[static_cast<std::size_t>(layer)].row(own[place])) {
      std::int64_t physical = expert;
      if (expert_maps != nullptr) {
        const ExpertMap& map = (*expert_maps)[static_cast<std::size_t>(layer)];
        physical = map.choose(expert, own[place], held, plan.parallel.experts.replica);
      }
      ++counts[static_cast<std::size_t>(shard_of(experts, plan.parallel.ep, physical))];
    }
  }
  return counts;
}

std::vector<std::int64_t> Sites::receives(int layer, std::int64_t microbatch, int rank) const {
  const auto me = static_cast<std::size_t>(mesh.coordinates(rank).ep);
  std::vector<std::int64_t> counts;
  for (const int sender : group(Axis::ep, rank)) counts.push_back(sends(layer, microbatch, sender)[me]);
  return counts;
}

std::vector<Place> Sites::places_with(std::size_t limit, const std::function<bool(const Place&)>& wanted) const {
  std::vector<Place> result;
  for (const Place& place : moe_places(5)) {
    const std::vector<int> ranks = stage_ranks(stage_of(place.layer));
    const auto begin = std::ranges::find(ranks, place.rank) - ranks.begin();
    for (std::size_t i = 0; i < ranks.size() && result.size() < limit; ++i) {
      const Place near{place.layer, ranks[(static_cast<std::size_t>(begin) + i) % ranks.size()]};
      if (!wanted(near)) continue;
      const bool known = std::ranges::any_of(
          result, [&](const Place& other) { return other.layer == near.layer && other.rank == near.rank; });
      if (!known) result.push_back(near);
      break;
    }
  }
  return result;
}

bool Sites::serves(const Place& place) const {
  for (const int member : group(Axis::etp, place.rank)) {
    for (std::int64_t m = 0; m < tokens.microbatches(); ++m) {
      const std::vector<std::int64_t> counts = receives(place.layer, m, member);
      if (std::ranges::any_of(counts, [](std::int64_t count) { return count > 0; })) return true;
    }
  }
  return false;
}

std::vector<Place> Sites::expert_places(std::size_t limit) const {
  return places_with(limit, [&](const Place& place) { return serves(place); });
}

std::vector<Place> Sites::sending_places(std::size_t limit) const {
  return places_with(limit, [&](const Place& place) {
    for (std::int64_t m = 0; m < tokens.microbatches(); ++m) {
      const std::vector<std::int64_t> counts = sends(place.layer, m, place.rank);
      const std::int64_t slots = std::accumulate(counts.begin(), counts.end(), std::int64_t{0});
      const auto used = std::ranges::count_if(counts, [](std::int64_t count) { return count > 0; });
      if (used > 1 && slots > plan.model.layers[place.layer].feed_forward.top_k) return true;
    }
    return false;
  });
}

int layer_like(const LayerList& layers, int layer) {
  for (int distance = 1; distance < layers.size(); ++distance) {
    for (const int other : {layer - distance, layer + distance}) {
      if (other >= 0 && other < layers.size() && layers.kind_of(other) == layers.kind_of(layer)) return other;
    }
  }
  return -1;
}

}  // namespace shardproof::mutations
