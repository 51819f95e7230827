// Attention where the ranks of dcp share out what is cached of each sequence (emu/plan/cache_share.h).
//
// They hold the same key-value head and different query heads, so each attends with the queries of all to the keys that
// it keeps; what that gives of a query goes back to the rank whose it is, and is merged there with what the others'
// keys give (ops/attention_parts.h). This is vLLM's all-to-all back end of decode context parallelism, for every step
// alike. In `exact` the largest score of all ranks' keys is taken first.
//
// So do the queries of latents of latent attention's absorbed form, to the latents that each rank keeps. In its plain
// form, where each head's keys and values are made from latents, these are gathered instead, as vLLM does for the past
// of a prompt.
#pragma once

#include "emu/run/context.h"

namespace shardproof {

/// q [rows, local heads * head_dim]; the context of the same. parallel.dcp > 1, and the keys are in the cache. Of
/// latent attention queries of latents, of tokens in the absorbed form, and what they weigh of the latents.
template <class T>
Task<TensorOf<T>> attend_over_dcp(Context<T>& ctx, int layer, const TensorOf<T>& q);

/// Of latent attention: what all ranks of dcp keep of the step's sequences with tokens in the plain form, in their
/// order, from what this one keeps (read_cache()).
template <class T>
Task<TensorOf<T>> gather_latents(Context<T>& ctx, int layer, const TensorOf<T>& kept);

}  // namespace shardproof
