// What a rank's program stands on, when it runs and when it is dry.
#pragma once

#include <vector>

#include "emu/run/rank_weights.h"
#include "emu/run/tensor.h"
#include "ops/rope.h"

namespace shardproof {

class DryRun;
class Rank;
template <class T>
class KvCache;
struct CachedPass;
template <class T>
struct TransformerProgram;

/// What a context of numbers stands on: the rank, the program's shared state, and the weights that the rank holds.
template <class T>
struct Ground {
  Rank& rank;
  const TransformerProgram<T>& program;
  const RankWeights<T>& weights;
  /// By kind of layer, of every position in the microbatch.
  const std::vector<ops::RopeTable<T>>& rope;
  /// Of a plan that serves requests; else null, and so is `cached`.
  KvCache<T>* cache = nullptr;
  const CachedPass* cached = nullptr;
};
/// What a dry one stands on.
template <>
struct Ground<ShapeOnly> {
  const DryRun& run;
};

}  // namespace shardproof
