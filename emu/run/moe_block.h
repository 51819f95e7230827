// The Mixture-of-Experts half of a layer on one rank.
//
// A token is routed once within its tp group: by the rank whose own rows it belongs to (its sequence-parallel shard;
// without sp, the slice of the replicated rows that this rank takes). Dispatch, dropless:
//   permute by (owner, expert) -> all-to-all(ep) -> all-gather(etp) -> sort by local expert -> experts
//   -> unsort -> reduce-scatter(etp) -> all-to-all(ep) -> combine with the router's weights
// Or, gathered (DispatchComm::all_gather):
//   all-gather(ep) of rows, choices and weights -> those of the rank's experts -> all-gather(etp) -> experts
//   -> reduce-scatter(etp) -> weighed and summed over the rank's experts -> reduce-scatter(ep)
// and, without sp, an all-gather of the rows over tp. Every rank takes part in every collective, with zero tokens too.
// Where every rank of tp routes all tokens (DispatchComm::all_reduce):
//   those of the rank's experts -> experts -> all-reduce(etp) -> weighed and summed over the rank's experts
//   -> all-reduce(ep)
// An expert's output is summed over etp and stored before it is weighed, so that all three ways give the same bits in
// `exact`.
#pragma once

#include "emu/run/context.h"

namespace shardproof {

/// x += moe(norm(x)). x is [stream rows, hidden] and is replaced. With Overlap::shared_expert, what serves every token
/// is computed while rows go to their experts.
template <class T>
Task<> moe_block(Context<T>& ctx, int layer, TensorOf<T>& x);

/// The same in three parts, for who computes something else while rows are under way: begin_moe() sends them, and
/// computes what serves every token; run_dispatched() takes what arrives to the experts, and sends their outputs back;
/// end_moe() adds these to x. A dense layer is done in the first and the last.
template <class T>
struct MoePass {
  using Counts = std::vector<std::int64_t>;
  int layer = -1;
  Permutation permutation;
  Counts arriving;
  TensorOf<T> weights;         ///< of the router
  TensorOf<T> sent, received;  ///< rows under way to the experts
  TensorOf<T> done, outputs;   ///< the experts', under way back
  TensorOf<T> for_all;         ///< of the MLP that serves every token
  CallHandle dispatch, way_back;
};
template <class T>
Task<> begin_moe(Context<T>& ctx, int layer, const TensorOf<T>& x, MoePass<T>& pass);
template <class T>
Task<> run_dispatched(Context<T>& ctx, MoePass<T>& pass);
template <class T>
Task<> end_moe(Context<T>& ctx, TensorOf<T>& x, MoePass<T>& pass);

}  // namespace shardproof
