// The MoE transformer as every rank of a plan runs it.
//
// Written once, for any plan: column-parallel QKV, local heads, row-parallel output with an all-reduce over tp (or
// reduce-scatter and all-gather under sequence parallelism), router, dispatch by all-to-all over ep with each expert
// split over etp, combine; pipeline stages pass activations by P2P, microbatch by microbatch; vocabulary-parallel
// embedding and head. Tensors are matrices [tokens, width]; tokens are those of one microbatch of one data-parallel
// replica.
//
// Taps, all [tokens of the global batch, width], in program order:
//   embedding                        hidden
//   layer.N.attention.norm           hidden
//   layer.N.attention.q .k .v        heads * head_dim, kv heads * head_dim (q and k after the rotary embedding)
//   layer.N.attention.context        heads * head_dim
//   layer.N.attention.output         hidden, after its reduction
//   layer.N.attention.residual       hidden
//   layer.N.moe.norm                 hidden
//   layer.N.moe.router_logits        experts
//   layer.N.moe.router_choice        top_k expert ids, best first
//   layer.N.moe.router_weights       top_k
//   layer.N.moe.output               hidden, combined
//   layer.N.moe.residual             hidden
//   final_norm                       hidden
//   logits                           vocabulary
#pragma once

#include <cstdint>
#include <vector>

#include "collectives/communicator.h"
#include "collectives/options.h"
#include "collectives/task.h"
#include "emu/plan/batch.h"
#include "emu/plan/deployment.h"
#include "emu/plan/plan.h"
#include "emu/run/cluster.h"
#include "emu/weights/store.h"
#include "ops/format.h"

namespace shardproof {

class FaultInjector;

/// Router choices to use in place of the router's own: per layer, [tokens of the global batch, top_k]. The router still
/// taps its own choice; the weights are its own for the replayed experts. Refused in `exact` (std::invalid_argument),
/// where no choice can be ambiguous.
using RoutingReplay = std::vector<ops::Matrix<std::int32_t>>;

/// What all ranks of a run share. T is double for fp64 and exact, else float.
template <class T>
struct TransformerProgram {
  const ModelConfig& model;
  const Batch& batch;
  WeightStore<T>& weights;
  ops::Format format;
  Deployment deployment;
  const RoutingReplay* replay = nullptr;
  ReduceOptions reduction = {};    ///< of the all-reduces; reduce-scatters take its formats, and ring if it is ring
  FaultInjector* fault = nullptr;  ///< see fault.h; the deployment is edited by whoever makes the program
  int threads_per_rank = 1;        ///< that one op may use: more than one pays when ranks are fewer than cores
};

/// A format as the wire or accumulation format of a collective.
Rounding rounding_of(ops::Format format);

/// The options of a reduce-scatter beside all-reduces with these options.
ReduceScatterOptions reduce_scatter_options(const ReduceOptions& all_reduce);

/// One rank's run: the items of its timetable, in order. `program` outlives the task.
template <class T>
Task<> run_transformer(Rank& rank, const TransformerProgram<T>& program);

}  // namespace shardproof
