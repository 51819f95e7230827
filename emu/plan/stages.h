// How the layers of a model fall to pipeline stages.
#pragma once

#include "emu/model/config.h"
#include "emu/plan/parallel.h"
#include "emu/plan/partition.h"

namespace shardproof {

/// Contiguous layers, the first stages one longer. With 10 layers on 4 stages, stage 1 has {3, 3} and layer 5 is its.
class Stages {
 public:
  Stages(const ModelConfig& model, const Parallel& parallel) : layers_(model.layers.size()), pp_(parallel.pp) {}

  Range layers_of(int stage) const { return partition(layers_, pp_, stage); }
  /// What stands before the layers is of the first stage, what stands after them of the last.
  int stage_of(int layer) const {
    int stage = 0;
    while (stage + 1 < pp_ && layer >= layers_of(stage).end()) ++stage;
    return stage;
  }

 private:
  std::int64_t layers_;
  int pp_;
};

}  // namespace shardproof
