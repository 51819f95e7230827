// Kinds in who is believed to hold which expert.
#include <algorithm>
#include <numeric>
#include <optional>

#include "emu/mutate/internal/script.h"
#include "emu/mutate/internal/sites.h"

namespace shardproof::mutations {
namespace {

using Instances = std::vector<Mutation>;

/// A choice of a token: the place along ep of the rank that serves it, and which of its experts it is.
struct Served {
  int owner = 0;
  std::int64_t place = 0;
};

class Owners {
 public:
  explicit Owners(const Sites& sites)
      : sites_(sites), deployment_(deploy(sites.plan.model, sites.plan.parallel, sites.plan.workload)) {}

  /// All choices that the rank's map of owners is asked for: of the tokens that it routes, or of those that its ep
  /// group does, of which it picks its own.
  std::vector<Served> asked(int layer, int rank) const {
    const Plan& plan = sites_.plan;
    const bool sums = plan.parallel.sums_over_ep();
    std::vector<Served> result;
    for (const int router : sums ? sites_.group(Axis::ep, rank) : std::vector{rank}) {
      for (std::int64_t m = 0; m < sites_.tokens.microbatches(); ++m) {
        const TokenRows own = sites_.tokens.own(sites_.mesh.coordinates(router), m);
        for (std::int64_t i = 0; i < own.count(); ++i) {
          for (const std::int32_t expert : sites_.plan.choices[static_cast<std::size_t>(layer)].row(own[i])) {
            const int owner = serving_ep(plan.model, deployment_, layer, own[i], expert);
            const std::int64_t physical = physical_expert(plan.model, deployment_, layer, own[i], expert);
            result.push_back({owner, physical - held(layer, owner).begin});
          }
        }
      }
    }
    return result;
  }
  /// The owner's physical experts.
  Range held(int layer, int owner) const {
    const Parallel& p = sites_.plan.parallel;
    return partition(sites_.plan.model.layers[layer].feed_forward.num_experts + p.experts.redundant, p.ep, owner);
  }

 private:
  const Sites& sites_;
  Deployment deployment_;
};

bool has_experts(const Plan& plan, int layer) {
  return !plan.model.layers[layer].feed_forward.dense();
}

/// With every owner the next one, some is handed a token of more experts than it holds, where ranks do not hold as many
/// as each other: that ends in an error of its rank.
bool hands_on_too_many(const Sites& sites, const Owners& owners, const std::vector<int>& ranks) {
  for (const int rank : ranks) {
    const Range layers = sites.layers_of(sites.mesh.coordinates(rank).pp);
    for (auto layer = static_cast<int>(layers.begin); layer < layers.end(); ++layer) {
      if (!has_experts(sites.plan, layer)) continue;
      const auto too_many = [&](const Served& served) {
        return served.place >= owners.held(layer, (served.owner + 1) % sites.plan.parallel.ep).count;
      };
      if (std::ranges::any_of(owners.asked(layer, rank), too_many)) return true;
    }
  }
  return false;
}

/// What the rank serves, or sends, is for other experts than it should be for: not just left out.
bool serves_others(const Sites& sites, const Owners& owners, int layer, int rank) {
  const Parallel& p = sites.plan.parallel;
  const int me = sites.mesh.coordinates(rank).ep;
  return std::ranges::any_of(owners.asked(layer, rank), [&](const Served& served) {
    return !p.sums_over_ep() || (served.owner + 1) % p.ep == me;
  });
}
/// The layer is the first that shows it: an expert of the rank's own is left out, or another served.
bool shows(const Sites& sites, const Owners& owners, int layer, int rank) {
  const int me = sites.mesh.coordinates(rank).ep;
  return serves_others(sites, owners, layer, rank) ||
         std::ranges::any_of(owners.asked(layer, rank), [&](const Served& served) { return served.owner == me; });
}

Mutation rotated(const Plan& plan, int layer, const std::vector<int>& ranks) {
  const int ep = plan.parallel.ep;
  return {.layer = layer,
          .ranks = std::ssize(ranks) == plan.world() ? std::vector<int>() : ranks,
          .group = "ep",
          .tap = moe_output_tap(layer),
          .causes = or_weights(plan, "expert_map"),
          .make = script([=](Script& made) {
            made.layouts = [=](std::vector<Layout>& layouts) {
              for (const int rank : ranks) {
                for (LayerLayout& kind : layouts[static_cast<std::size_t>(rank)].kinds) {
                  for (int& owner : kind.expert_owner) owner = (owner + 1) % ep;
                }
              }
            };
          })};
}

Instances rotated_everywhere(const MutablePlan& plan, std::size_t /*limit*/) {
  const Sites sites(plan);
  int layer = 0;
  while (layer < plan.model.layers.size() && !has_experts(plan, layer)) ++layer;
  if (plan.parallel.ep < 2 || layer == plan.model.layers.size()) return {};
  std::vector<int> all(static_cast<std::size_t>(plan.world()));
  std::iota(all.begin(), all.end(), 0);
  if (hands_on_too_many(sites, Owners(sites), all)) return {};
  return {rotated(plan, layer, all)};
}

/// Of the stage's layers the first that shows what the rank believes.
std::optional<int> first_shown(const Sites& sites, const Owners& owners, int stage, int rank) {
  const Range layers = sites.layers_of(stage);
  for (auto layer = static_cast<int>(layers.begin); layer < layers.end(); ++layer) {
    if (has_experts(sites.plan, layer) && shows(sites, owners, layer, rank)) return layer;
  }
  return std::nullopt;
}

/// On the first rank of the last stage that has one which serves others there.
Instances rotated_on_one_rank(const MutablePlan& plan, std::size_t /*limit*/) {
  const Sites sites(plan);
  if (plan.parallel.ep < 2) return {};
  const Owners owners(sites);
  for (int stage = plan.parallel.pp - 1; stage >= 0; --stage) {
    for (const int rank : sites.stage_ranks(stage)) {
      const std::optional<int> layer = first_shown(sites, owners, stage, rank);
      if (!layer || !serves_others(sites, owners, *layer, rank)) continue;
      // Ranks that share experts' slices out, and pick their tokens each, believe the same: else the calls of their
      // sums do not fit.
      const std::vector<int> ranks = plan.parallel.routes_alike() ? sites.group(Axis::etp, rank) : std::vector{rank};
      if (!hands_on_too_many(sites, owners, ranks)) return {rotated(plan, *layer, ranks)};
    }
  }
  return {};
}

/// Logical experts are dispatched as if they were physical ones.
Instances physical_map_missing(const MutablePlan& plan, std::size_t limit) {
  const Sites sites(plan);
  if (sites.expert_maps == nullptr) return {};
  Instances result;
  for (const Place& place : sites.moe_places(limit)) {
    const ExpertMap& map = (*sites.expert_maps)[static_cast<std::size_t>(place.layer)];
    const std::vector<int> ranks = sites.stage_ranks(sites.stage_of(place.layer));
    const auto elsewhere = [&](std::int32_t expert) { return map.logical(expert) != expert; };
    if (std::ranges::none_of(plan.choices[static_cast<std::size_t>(place.layer)].span(), elsewhere)) continue;
    result.push_back({.layer = place.layer,
                      .ranks = ranks,
                      .group = "ep",
                      .tap = moe_output_tap(place.layer),
                      .causes = or_weights(plan, "expert_map"),
                      .make = script([=](Script& made) {
                        made.replicas = [=](const Rank&, const FaultSite& site, ops::MatrixView<const std::int32_t> ids,
                                            ops::MatrixView<std::int32_t> physical) {
                          if (site.layer != place.layer) return;
                          for (std::int64_t i = 0; i < ids.rows; ++i) {
                            std::ranges::copy(ids.row(i), physical.row(i).begin());
                          }
                        };
                      })});
  }
  return result;
}

constexpr MutationKind kExpertMapKinds[] = {
    {"expert_map_rotated", "every rank maps an expert to the next owner", rotated_everywhere},
    {"expert_map_of_one_rank", "one rank maps an expert to the next owner", rotated_on_one_rank},
    {"expert_map_missing", "logical experts are dispatched as if they were physical ones", physical_map_missing},
};

}  // namespace

std::span<const MutationKind> expert_map_kinds() {
  return kExpertMapKinds;
}

}  // namespace shardproof::mutations
