"""Which module of a serving or training system makes which tap: what to hook for a dump that `judge` reads.

A row is (module, value, tap). `{layer}` stands for the layer's number. `value` is what of the module's call is the tap:
"output", "output[1]" of a tuple, "output.logits" by its name, "input[0]" for an argument. Taps are those of
emu/model/taps.h; what is split over ranks is dumped as the rank has it, in a file of its own (`rank_3.safetensors`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Hook(NamedTuple):
    module: str
    value: str
    tap: str


def _layers(prefix: str, rows: Sequence[tuple[str, str, str]]) -> list[Hook]:
    return [Hook(f"{prefix}.{module}".rstrip("."), value, f"layer.{{layer}}.{tap}") for module, value, tap in rows]


#: Hugging Face Transformers. q and k after the rotary embedding belong to no module: `capture` takes them where they go
#: into attention. Of a fused expert module what goes in and comes out is seen, the steps between are not.
TRANSFORMERS = [
    Hook("model.embed_tokens", "output", "embedding"),
    *_layers("model.layers.{layer}", [
        ("input_layernorm", "output", "attention.norm"),
        ("self_attn.q_proj", "output", "attention.q_projection"),
        ("self_attn.q_norm", "output", "attention.q_normed"),
        ("self_attn.q_a_proj", "output", "attention.q_latent"),
        ("self_attn.q_a_layernorm", "output", "attention.q_latent_norm"),
        ("self_attn.q_b_proj", "output", "attention.q_projection"),
        ("self_attn.kv_a_proj_with_mqa", "output", "attention.kv_latent"),
        ("self_attn.kv_a_layernorm", "output", "attention.kv_latent_norm"),
        ("self_attn.kv_b_proj", "output", "attention.kv_projection"),
        ("self_attn.k_proj", "output", "attention.k_projection"),
        ("self_attn.k_norm", "output", "attention.k_normed"),
        ("self_attn.v_proj", "output", "attention.v"),
        ("self_attn.o_proj", "input[0]", "attention.context"),
        ("self_attn.o_proj", "output", "attention.output"),
        ("post_attention_layernorm", "input[0]", "attention.residual"),
        ("post_attention_layernorm", "output", "moe.norm"),
        ("mlp.gate", "output[0]", "moe.router_logits"),
        ("mlp.gate", "output[1]", "moe.router_weights"),
        ("mlp.gate", "output[2]", "moe.router_choice"),
        ("mlp.router", "output[0]", "moe.router_logits"),
        ("mlp.router", "output[1]", "moe.router_weights"),
        ("mlp.router", "output[2]", "moe.router_choice"),
        ("mlp.experts", "output", "moe.output"),
        ("mlp.shared_expert.gate_proj", "output", "mlp.gate"),
        ("mlp.shared_expert.up_proj", "output", "mlp.up"),
        ("mlp.shared_expert.down_proj", "input[0]", "mlp.activation"),
        ("mlp.shared_expert", "output", "mlp.output"),
        ("mlp.shared_expert_gate", "output", "mlp.shared_gate"),
        ("mlp.shared_experts.gate_proj", "output", "mlp.gate"),
        ("mlp.shared_experts.up_proj", "output", "mlp.up"),
        ("mlp.shared_experts.down_proj", "input[0]", "mlp.activation"),
        ("mlp.shared_experts", "output", "mlp.output"),
        ("mlp.gate_proj", "output", "mlp.gate"),
        ("mlp.up_proj", "output", "mlp.up"),
        ("mlp.down_proj", "input[0]", "mlp.activation"),
        ("mlp.down_proj", "output", "mlp.output"),
        ("", "output", "moe.residual"),
    ]),
    Hook("model.norm", "output", "final_norm"),
    Hook("", "output.logits", "logits"),  # what some families divide is the head's output
]

#: vLLM. `qkv_proj` and `gate_up_proj` are fused: their outputs are no taps, what follows them is. A norm that takes the
#: residual returns (norm, residual). `o_proj` and `down_proj` return after their all-reduce.
VLLM = [
    Hook("model.embed_tokens", "output", "embedding"),
    *_layers("model.layers.{layer}", [
        ("input_layernorm", "output[0]", "attention.norm"),
        ("self_attn.q_norm", "output", "attention.q_normed"),
        ("self_attn.k_norm", "output", "attention.k_normed"),
        ("self_attn.rotary_emb", "output[0]", "attention.q"),
        ("self_attn.rotary_emb", "output[1]", "attention.k"),
        ("self_attn.attn", "input[2]", "attention.v"),
        ("self_attn.attn", "output", "attention.context"),
        ("self_attn.o_proj", "output[0]", "attention.output"),
        ("post_attention_layernorm", "output[0]", "moe.norm"),
        ("post_attention_layernorm", "output[1]", "attention.residual"),
        ("mlp.act_fn", "output", "mlp.activation"),
        ("mlp.down_proj", "output[0]", "mlp.output"),
        ("mlp.gate", "output[0]", "moe.router_logits"),
        ("block_sparse_moe.gate", "output[0]", "moe.router_logits"),
    ]),
    Hook("model.norm", "output[0]", "final_norm"),
    Hook("logits_processor", "output", "logits"),
]

#: SGLang, whose models follow vLLM's names; attention is `RadixAttention`, and `TopK` a module of its own.
SGLANG = [
    *(hook for hook in VLLM if hook.module != "logits_processor"),
    *_layers("model.layers.{layer}", [
        ("mlp.topk", "output[0]", "moe.router_weights"),
        ("mlp.topk", "output[1]", "moe.router_choice"),
    ]),
]

#: Megatron-LM (megatron.core). Activations are [sequence, batch, hidden]: give `NAME.rows`, or one sequence at a time.
#: With Transformer Engine the norms before `linear_qkv` and `linear_fc1` are inside these, and no module's output. Its
#: router gives maps over all experts, which are no taps.
MEGATRON = [
    Hook("embedding", "output", "embedding"),
    *_layers("decoder.layers.{layer}", [
        ("input_layernorm", "output", "attention.norm"),
        ("self_attention.q_layernorm", "output", "attention.q_normed"),
        ("self_attention.k_layernorm", "output", "attention.k_normed"),
        ("self_attention.core_attention", "input[0]", "attention.q"),
        ("self_attention.core_attention", "input[1]", "attention.k"),
        ("self_attention.core_attention", "input[2]", "attention.v"),
        ("self_attention.core_attention", "output", "attention.context"),
        ("self_attention.linear_proj", "output[0]", "attention.output"),
        ("pre_mlp_layernorm", "input[0]", "attention.residual"),
        ("pre_mlp_layernorm", "output", "moe.norm"),
        ("mlp.linear_fc2", "input[0]", "mlp.activation"),
        ("mlp.linear_fc2", "output[0]", "mlp.output"),
        ("", "output[0]", "moe.residual"),
    ]),
    Hook("decoder.final_layernorm", "output", "final_norm"),
    Hook("output_layer", "output[0]", "logits"),
]

HOOKS = {"transformers": TRANSFORMERS, "vllm": VLLM, "sglang": SGLANG, "megatron": MEGATRON}
