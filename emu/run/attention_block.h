// The attention half of a layer on one rank.
#pragma once

#include "emu/run/rank_weights.h"
#include "emu/run/stage.h"

namespace shardproof {

/// x += attention(norm(x)). x is [stream rows, hidden] and is replaced.
template <class T>
Task<> attention_block(const Stage<T>& stage, const RankWeights<T>& weights, int layer, ops::Matrix<T>& x);

}  // namespace shardproof
