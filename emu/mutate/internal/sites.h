// Where in a plan a fault is put: layers, ranks and groups on which it shows.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "emu/mutate/mutation.h"
#include "emu/plan/batch.h"
#include "emu/plan/layout.h"
#include "emu/plan/mesh.h"
#include "emu/plan/stages.h"
#include "emu/plan/token_map.h"

namespace shardproof::mutations {

/// A place for an instance: a layer, and a rank of its stage that has tokens (the first of its tp group).
struct Place {
  int layer = 0;
  int rank = 0;
};

/// What kinds ask of a plan.
class Sites {
  std::vector<Place> places_in(const std::vector<int>& layers, std::size_t limit) const;
  template <class Wanted>
  std::vector<int> layers_with(const Wanted& wanted) const;

 public:
  explicit Sites(const MutablePlan& plan);
  const MutablePlan& plan;
  Mesh mesh;
  Stages stages;
  Batch batch;
  TokenMap tokens;
  std::shared_ptr<const std::vector<ExpertMap>> expert_maps;

  /// First layer on the first ranks, last layer on the last, then others; no two alike.
  std::vector<Place> places(std::size_t limit) const;
  /// The same of layers with experts, and of layers with an MLP that serves every token.
  std::vector<Place> moe_places(std::size_t limit) const;
  std::vector<Place> mlp_places(std::size_t limit) const;
  int stage_of(int layer) const { return stages.stage_of(layer); }
  Range layers_of(int stage) const { return stages.layers_of(stage); }
  /// Of a replica in a stage: dp and pp count.
  int first_rank(const Coordinates& at) const { return mesh.rank_at({.dp = at.dp, .pp = at.pp}); }
  int last_busy_dp() const;
  std::vector<int> group(Axis axis, int rank) const { return mesh.group(axis, rank); }
  std::vector<int> stage_ranks(int stage) const;
  /// Whether some rank of the replica's first stage holds a row whose token is in another's vocabulary slice.
  bool embeds_across(int dp) const;
  /// Whether a token of the replica is in the vocabulary slice of the tp rank: dp and tp count.
  bool embeds(const Coordinates& at) const;
  /// moe_places(), each with a rank near it that is wanted; a place that has none is left out.
  std::vector<Place> places_with(std::size_t limit, const std::function<bool(const Place&)>& wanted) const;
  /// A token goes to the rank's experts.
  bool serves(const Place& place) const;
  /// places_with() a rank that serves, or that sends tokens to two owners or more.
  std::vector<Place> expert_places(std::size_t limit) const;
  std::vector<Place> sending_places(std::size_t limit) const;
  /// Slots that the rank sends to each ep rank in the microbatch.
  std::vector<std::int64_t> sends(int layer, std::int64_t microbatch, int rank) const;
  std::vector<std::int64_t> receives(int layer, std::int64_t microbatch, int rank) const;
};

/// The nearest other layer of the same kind, the one before first; -1: there is none.
int layer_like(const LayerList& layers, int layer);

}  // namespace shardproof::mutations
