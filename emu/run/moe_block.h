// The Mixture-of-Experts half of a layer on one rank.
//
// A token is routed once within its tp group: by the rank whose own rows it belongs to (its sequence-parallel shard;
// without sp, the slice of the replicated rows that this rank takes). Dispatch, dropless:
//   permute by (owner, expert) -> all-to-all(ep) -> all-gather(etp) -> sort by local expert -> experts
//   -> unsort -> reduce-scatter(etp) -> all-to-all(ep) -> combine with the router's weights
// and, without sp, an all-gather of the rows over tp. Every rank takes part in every collective, with zero tokens too.
#pragma once

#include "emu/run/context.h"

namespace shardproof {

/// x += moe(norm(x)). x is [stream rows, hidden] and is replaced.
template <class T>
Task<> moe_block(Context<T>& ctx, int layer, TensorOf<T>& x);

}  // namespace shardproof
