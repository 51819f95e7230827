#include "emu/run/op.h"

#include <cstddef>

namespace shardproof {
namespace {

struct OpName {
  Op op;
  std::string_view name;
};

constexpr OpName kOpNames[] = {
    {Op::embedding, "embedding"},
    {Op::embedding_reduce, "embedding.reduce"},
    {Op::embedding_scale, "embedding.scale"},
    {Op::stage_receive, "stage.receive"},
    {Op::attention_norm, "attention.norm"},
    {Op::attention_gather, "attention.gather"},
    {Op::attention_q_latent, "attention.q_latent"},
    {Op::attention_q_latent_norm, "attention.q_latent_norm"},
    {Op::attention_q, "attention.q"},
    {Op::attention_k, "attention.k"},
    {Op::attention_v, "attention.v"},
    {Op::attention_kv_latent, "attention.kv_latent"},
    {Op::attention_kv_latent_norm, "attention.kv_latent_norm"},
    {Op::attention_kv, "attention.kv"},
    {Op::attention_heads, "attention.heads"},
    {Op::attention_squares, "attention.squares"},
    {Op::attention_squares_reduce, "attention.squares_reduce"},
    {Op::attention_q_norm, "attention.q_norm"},
    {Op::attention_k_norm, "attention.k_norm"},
    {Op::attention_rope_q, "attention.rope_q"},
    {Op::attention_rope_k, "attention.rope_k"},
    {Op::attention_cache_write, "attention.cache_write"},
    {Op::attention_cache_read, "attention.cache_read"},
    {Op::attention_cached_kv, "attention.cached_kv"},
    {Op::attention_cached_heads, "attention.cached_heads"},
    {Op::attention_dcp_gather_cache, "attention.dcp_gather_cache"},
    {Op::attention_gather_k, "attention.gather_k"},
    {Op::attention_gather_v, "attention.gather_v"},
    {Op::attention_split_heads, "attention.split_heads"},
    {Op::attention_heads_in, "attention.heads_in"},
    {Op::attention_in_order, "attention.in_order"},
    {Op::attention_ring_send, "attention.ring_send"},
    {Op::attention_ring_receive, "attention.ring_receive"},
    {Op::attention_ring_part, "attention.ring_part"},
    {Op::attention_dcp_gather_q, "attention.dcp_gather_q"},
    {Op::attention_dcp_maximum, "attention.dcp_maximum"},
    {Op::attention_dcp_part, "attention.dcp_part"},
    {Op::attention_dcp_context, "attention.dcp_context"},
    {Op::attention_dcp_sums, "attention.dcp_sums"},
    {Op::attention_dcp_merge, "attention.dcp_merge"},
    {Op::attention_context, "attention.context"},
    {Op::attention_absorb, "attention.absorb"},
    {Op::attention_latent_context, "attention.latent_context"},
    {Op::attention_expand, "attention.expand"},
    {Op::attention_ring_merge, "attention.ring_merge"},
    {Op::attention_out_of_order, "attention.out_of_order"},
    {Op::attention_heads_out, "attention.heads_out"},
    {Op::attention_join_heads, "attention.join_heads"},
    {Op::attention_output, "attention.output"},
    {Op::attention_reduce, "attention.reduce"},
    {Op::attention_residual, "attention.residual"},
    {Op::moe_norm, "moe.norm"},
    {Op::router_logits, "moe.router_logits"},
    {Op::router_choice, "moe.router_choice"},
    {Op::moe_permute, "moe.permute"},
    {Op::dispatch_counts, "moe.dispatch_counts"},
    {Op::dispatch, "moe.dispatch"},
    {Op::dispatch_rows, "moe.dispatch_rows"},
    {Op::dispatch_choice, "moe.dispatch_choice"},
    {Op::dispatch_weights, "moe.dispatch_weights"},
    {Op::expert_counts, "moe.expert_counts"},
    {Op::expert_gather, "moe.expert_gather"},
    {Op::moe_sort, "moe.sort"},
    {Op::moe_expert, "moe.expert"},
    {Op::moe_unsort, "moe.unsort"},
    {Op::expert_reduce, "moe.expert_reduce"},
    {Op::combine_return, "moe.return"},
    {Op::moe_combine, "moe.combine"},
    {Op::moe_reduce, "moe.reduce"},
    {Op::moe_gather, "moe.gather"},
    {Op::mlp_gather, "mlp.gather"},
    {Op::mlp, "mlp"},
    {Op::mlp_reduce, "mlp.reduce"},
    {Op::shared_gate, "mlp.shared_gate"},
    {Op::shared_output, "mlp.shared_output"},
    {Op::moe_sum, "moe.sum"},
    {Op::moe_residual, "moe.residual"},
    {Op::stage_send, "stage.send"},
    {Op::final_norm, "final_norm"},
    {Op::head_gather, "head.gather"},
    {Op::logits, "logits"},
};

constexpr bool names_every_op() {
  for (int i = 0; i < kOps; ++i) {
    if (kOpNames[i].op != static_cast<Op>(i)) return false;
  }
  return true;
}
static_assert(sizeof(kOpNames) / sizeof(OpName) == kOps && names_every_op());

}  // namespace

std::string_view to_string(Op op) {
  return kOpNames[static_cast<std::size_t>(op)].name;
}

}  // namespace shardproof
