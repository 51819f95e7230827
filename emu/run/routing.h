// Where tokens are said to go, for runs that compute no router: the routing of a dry run.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "emu/model/config.h"
#include "ops/matrix.h"

namespace shardproof {

/// Router choices of a run: per layer, [tokens of the global batch, top_k] expert ids.
using RoutingReplay = std::vector<ops::Matrix<std::int32_t>>;

/// The experts of a token, best first, as a function of layer and global row.
class StatedRouting {
 public:
  /// Slot s of row t goes to expert (t * top_k + s) mod experts: every expert of a layer serves as many slots as any
  /// other, or one more.
  static StatedRouting even(const ModelConfig& model);
  /// The choices of a run; `choices` outlives this.
  static StatedRouting of(const RoutingReplay& choices);

  void choose(int layer, std::int64_t row, std::span<std::int32_t> experts) const { choose_(layer, row, experts); }
  /// Layers of one kind choose alike, so that what is counted for one holds for all.
  bool same_in_every_layer() const { return same_in_every_layer_; }

 private:
  using Choose = std::function<void(int layer, std::int64_t row, std::span<std::int32_t> experts)>;
  StatedRouting(Choose choose, bool same) : choose_(std::move(choose)), same_in_every_layer_(same) {}

  Choose choose_;
  bool same_in_every_layer_;
};

}  // namespace shardproof
