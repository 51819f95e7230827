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

/// x += moe(norm(x)). x is [stream rows, hidden] and is replaced.
template <class T>
Task<> moe_block(Context<T>& ctx, int layer, TensorOf<T>& x);

}  // namespace shardproof
