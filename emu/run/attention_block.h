// The attention half of a layer on one rank.
#pragma once

#include "emu/run/stage.h"

namespace shardproof {

/// This rank's slices of one layer's attention weights.
template <class T>
struct AttentionWeights {
  WeightSlice<T> norm;    // [1, hidden]
  WeightSlice<T> q;       // [heads * head_dim, hidden]
  WeightSlice<T> k;       // [kv heads * head_dim, hidden]
  WeightSlice<T> v;       // [kv heads * head_dim, hidden]
  WeightSlice<T> output;  // [hidden, heads * head_dim]
};

/// x += attention(norm(x)). x is [stream rows, hidden] and is replaced.
template <class T>
Task<> attention_block(const Stage<T>& stage, const AttentionWeights<T>& weights, int layer, ops::Matrix<T>& x);

}  // namespace shardproof
