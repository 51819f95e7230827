// Attention where the sequences are spread over the ranks of cp.
//
// The queries of a rank are its own rows; the keys and values that they see are also with others, and come to it as
// parallel.cp_comm says:
//   p2p         round a ring: at step i a rank has those of rank (r - i) mod cp, attends to them while they go on to
//               the rank behind, and merges what the steps gave (ops/attention_parts.h);
//   all_gather  all of them, put in order of the sequences;
//   a2a         all rows of 1 / cp of the rank's heads, exchanged before and back after.
#pragma once

#include "emu/run/context.h"

namespace shardproof {

/// q, k and v [rows, local heads * their size]; the context of the rank's rows. parallel.cp > 1.
template <class T>
Task<TensorOf<T>> attend_over_cp(Context<T>& ctx, int layer, TensorOf<T> q, TensorOf<T> k, TensorOf<T> v);

}  // namespace shardproof
