#include "emu/run/op.h"

namespace shardproof {

std::string_view to_string(Op op) {
  switch (op) {
    case Op::embedding:
      return "embedding";
    case Op::embedding_reduce:
      return "embedding.reduce";
    case Op::stage_receive:
      return "stage.receive";
    case Op::attention_norm:
      return "attention.norm";
    case Op::attention_gather:
      return "attention.gather";
    case Op::attention_q:
      return "attention.q";
    case Op::attention_k:
      return "attention.k";
    case Op::attention_v:
      return "attention.v";
    case Op::attention_rope_q:
      return "attention.rope_q";
    case Op::attention_rope_k:
      return "attention.rope_k";
    case Op::attention_gather_k:
      return "attention.gather_k";
    case Op::attention_gather_v:
      return "attention.gather_v";
    case Op::attention_context:
      return "attention.context";
    case Op::attention_output:
      return "attention.output";
    case Op::attention_reduce:
      return "attention.reduce";
    case Op::attention_residual:
      return "attention.residual";
    case Op::moe_norm:
      return "moe.norm";
    case Op::router_logits:
      return "moe.router_logits";
    case Op::router_choice:
      return "moe.router_choice";
    case Op::moe_permute:
      return "moe.permute";
    case Op::dispatch_counts:
      return "moe.dispatch_counts";
    case Op::dispatch:
      return "moe.dispatch";
    case Op::expert_counts:
      return "moe.expert_counts";
    case Op::expert_gather:
      return "moe.expert_gather";
    case Op::moe_sort:
      return "moe.sort";
    case Op::moe_expert:
      return "moe.expert";
    case Op::moe_unsort:
      return "moe.unsort";
    case Op::expert_reduce:
      return "moe.expert_reduce";
    case Op::combine_return:
      return "moe.return";
    case Op::moe_combine:
      return "moe.combine";
    case Op::moe_gather:
      return "moe.gather";
    case Op::moe_residual:
      return "moe.residual";
    case Op::stage_send:
      return "stage.send";
    case Op::final_norm:
      return "final_norm";
    case Op::head_gather:
      return "head.gather";
    case Op::logits:
      return "logits";
  }
  return "?";
}

}  // namespace shardproof
