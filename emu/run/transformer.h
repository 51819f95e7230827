// A run of a plan's program on numbers: what its ranks share, and one rank's part.
#pragma once

#include "collectives/options.h"
#include "collectives/task.h"
#include "emu/plan/batch.h"
#include "emu/plan/deployment.h"
#include "emu/run/cluster.h"
#include "emu/run/routing.h"
#include "emu/weights/store.h"
#include "ops/format.h"

namespace shardproof {

class FaultInjector;
class SlotBoard;

/// What all ranks of a run share. T is double for fp64 and exact, else float.
template <class T>
struct TransformerProgram {
  const ModelConfig& model;
  const Batch& batch;
  WeightStore<T>& weights;
  ops::Format format;
  Deployment deployment;
  /// Router choices to use in place of the router's own. The router still taps its own choice; the weights are its own
  /// for the replayed experts. Refused in `exact` (std::invalid_argument), where no choice can be ambiguous.
  const RoutingReplay* replay = nullptr;
  ReduceOptions reduction = {};    ///< of the all-reduces; reduce-scatters take its formats, and ring if it is ring
  FaultInjector* fault = nullptr;  ///< see fault.h; the deployment is edited by whoever makes the program
  SlotBoard* slots = nullptr;      ///< where the inner taps are taken: needed for those of slots
  int threads_per_rank = 1;        ///< that one op may use: more than one pays when ranks are fewer than cores
};

/// One rank's run: the items of its timetable, in order. `program` outlives the task.
template <class T>
Task<> run_transformer(Rank& rank, const TransformerProgram<T>& program);

}  // namespace shardproof
