// How the layers of a model fall to pipeline stages.
#pragma once

#include <cstdint>
#include <vector>

#include "emu/model/config.h"
#include "emu/plan/parallel.h"
#include "emu/plan/partition.h"

namespace shardproof {

/// Contiguous layers, as many as the plan says (Parallel::layers_per_stage), else the first stages one longer. With 10
/// layers on 4 stages, stage 1 has {3, 3} and layer 5 is its; with {1, 4, 4, 1}, {1, 4}.
class Stages {
 public:
  Stages(const ModelConfig& model, const Parallel& parallel) : layers_(model.layers.size()), pp_(parallel.pp) {
    std::int64_t end = 0;
    for (const std::int64_t layers : parallel.layers_per_stage) ends_.push_back(end += layers);
  }

  Range layers_of(int stage) const {
    if (ends_.empty()) return partition(layers_, pp_, stage);
    const auto at = static_cast<std::size_t>(stage);
    const std::int64_t begin = stage == 0 ? 0 : ends_[at - 1];
    return {begin, ends_[at] - begin};
  }
  /// What stands before the layers is of the first stage, what stands after them of the last.
  int stage_of(int layer) const {
    int stage = 0;
    while (stage + 1 < pp_ && layer >= layers_of(stage).end()) ++stage;
    return stage;
  }

 private:
  std::int64_t layers_;
  int pp_;
  std::vector<std::int64_t> ends_;  ///< of the stages' layers, where the plan says them
};

}  // namespace shardproof
