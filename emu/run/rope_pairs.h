// The rotary embedding of a layer, as the op takes it.
#pragma once

#include "emu/model/config.h"
#include "ops/rope.h"

namespace shardproof {

/// Of queries and keys with heads of head_dim elements: those that turn are the first ones, with latent attention the
/// last.
ops::RopePairs rope_pairs(const AttentionSpec& attention);

}  // namespace shardproof
