// The attention half of a layer on one rank: column-parallel q, k and v, local heads, a row-parallel output.
#pragma once

#include "emu/run/context.h"

namespace shardproof {

/// x += attention(norm(x)). x is [stream rows, hidden] and is replaced.
template <class T>
Task<> attention_block(Context<T>& ctx, int layer, TensorOf<T>& x);

}  // namespace shardproof
