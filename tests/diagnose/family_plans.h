// Small plans of what some families, caches, context parallelism and dispatches have beside the plain model.
#pragma once

#include "emu/plan/plan.h"

namespace shardproof::testing {

/// Latent attention, a shared expert, and a router of sigmoids in groups.
Plan deepseek();
/// Biases, sinks, and a clamped SwiGLU.
Plan gpt_oss();
/// LayerNorm, a bias of the head, and sparsemixer's router.
Plan phimoe();
/// Queries and keys normed over all heads.
Plan olmoe();
/// Queries and keys normed in each head, and a gate on the shared expert.
Plan qwen();
/// Multipliers of the embedding and the residual, scaled logits.
Plan granite();

/// Requests of two replicas, from a cache; and of one, whose cache ranks of dcp share out.
Plan cached();
Plan cached_latents();
Plan cached_over_dcp();

/// Keys spread over cp: in a ring, gathered, and by heads.
Plan ring();
Plan gathered_keys();
Plan heads_over_cp();

/// What experts make is summed over ep: of gathered tokens, and of tokens that every rank has.
Plan gathered_tokens();
Plan tokens_everywhere();

}  // namespace shardproof::testing
