// What a rank does, by name: every computation and every call of the program.
//
// The program names an op where it does it, and that name is in the record, on the collective's call (CallTag) and in
// the graph: nothing guesses afterwards what a call was for.
#pragma once

#include <cstdint>
#include <string_view>

#include "collectives/call_tag.h"

namespace shardproof {

/// In program order. What moves data between ranks says so in its comment; the rest computes.
enum class Op : std::int16_t {
  embedding,         ///< a partial sum over tp
  embedding_reduce,  ///< over tp
  embedding_scale,   ///< by its multiplier
  stage_receive,     ///< of the residual stream, over pp
  attention_norm,
  attention_gather,  ///< of the rows over tp, under sequence parallelism
  attention_q_latent,
  attention_q_latent_norm,
  attention_q,
  attention_k,
  attention_v,
  attention_kv_latent,
  attention_kv_latent_norm,
  attention_kv,
  attention_heads,           ///< each head's key and value from what latent attention makes
  attention_squares,         ///< norms over all heads: of queries and of keys, a partial sum over tp
  attention_squares_reduce,  ///< over tp
  attention_q_norm,
  attention_k_norm,
  attention_rope_q,
  attention_rope_k,
  attention_cache_write,  ///< of the tokens of a step
  attention_cache_read,   ///< latent attention: what the cache holds of every token of the step's sequences, ...
  attention_cached_kv,    ///< ... and each head's keys and values from there
  attention_cached_heads,
  attention_dcp_gather_cache,  ///< latent attention, plain, over dcp: what each rank keeps of the step's sequences
  attention_gather_k,          ///< over cp
  attention_gather_v,          ///< over cp
  attention_split_heads,       ///< rows of each rank's heads, to be sent
  attention_heads_in,          ///< over cp: all rows of the rank's heads
  attention_in_order,          ///< rows of all ranks of cp, in order of the sequences
  attention_ring_send,         ///< over cp: keys and values to the rank behind
  attention_ring_receive,      ///< over cp: those of the rank before
  attention_ring_part,         ///< attention to the keys that have come
  attention_dcp_gather_q,      ///< over dcp
  attention_dcp_maximum,       ///< over dcp, in `exact`: of the scores of each rank's keys
  attention_dcp_part,          ///< of all queries, to the keys that the rank keeps
  attention_dcp_context,       ///< over dcp: of the rank's queries, what every rank's keys give, ...
  attention_dcp_sums,          ///< ... and their sums
  attention_dcp_merge,         ///< the context of all parts
  attention_context,
  attention_absorb,          ///< latent attention, absorbed: each head's query of latents, ...
  attention_latent_context,  ///< ... what it weighs of those that are cached, ...
  attention_expand,          ///< ... and the context from there
  attention_ring_merge,      ///< the context of all parts
  attention_out_of_order,    ///< rows as the ranks of cp hold them
  attention_heads_out,       ///< over cp: the rank's rows of all heads
  attention_join_heads,      ///< side by side
  attention_output,          ///< a partial sum over tp
  attention_reduce,          ///< over tp
  attention_residual,
  moe_norm,
  router_logits,
  router_choice,
  moe_permute,
  dispatch_counts,   ///< over ep: how many rows follow
  dispatch,          ///< over ep: rows to their experts
  dispatch_rows,     ///< over ep: all rows to every rank, ...
  dispatch_choice,   ///< ... their experts, ...
  dispatch_weights,  ///< ... and the weights of these
  expert_counts,     ///< over etp
  expert_gather,     ///< over etp: rows of every member
  moe_sort,
  moe_expert,  ///< a partial sum over etp
  moe_unsort,
  expert_reduce,   ///< over etp
  combine_return,  ///< over ep: rows back
  moe_combine,
  moe_reduce,  ///< over ep: of what each rank has combined
  moe_gather,  ///< of the combined rows over tp, without sequence parallelism
  mlp_gather,  ///< of the rows over tp, under sequence parallelism
  mlp,         ///< a partial sum over tp
  mlp_reduce,  ///< over tp
  shared_gate,
  shared_output,
  moe_sum,
  moe_residual,
  stage_send,  ///< of the residual stream, over pp
  final_norm,
  head_gather,  ///< of the rows over tp, under sequence parallelism
  logits,
};
inline constexpr int kOps = static_cast<int>(Op::logits) + 1;

/// "attention.q", "moe.expert", "attention.reduce".
std::string_view to_string(Op op);

/// The op of a call that the program made; none for a call without one.
constexpr bool is_call_of(const CallTag& tag, Op op) {
  return tag.op == static_cast<std::int32_t>(op);
}

}  // namespace shardproof
