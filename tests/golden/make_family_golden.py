#!/usr/bin/env python3
"""Makes the golden checkpoints of this folder's `families` with current Hugging Face Transformers on the CPU, in float64.

    ./make_family_golden.py [NAME ...]

Each case is a folder as make_golden.py makes it, of a tiny random model of one family: config.json and the weights as
Transformers saves them, sequences.json, and expected.safetensors:
    embedding, final_norm                      [tokens, hidden]
    layer.N.attention.output                   [tokens, hidden]
    layer.N.FEED_FORWARD                       [tokens, hidden]: moe.output, moe.sum or mlp.output, what the layer has
    layer.N.moe.residual                       [tokens, hidden]
    logits                                     [tokens, vocab]

Attention is eager. Weights that are constant when a model is made are not left at that: norms, biases, sinks, and the
biases of the experts' choice, which make some scores negative. PyTorch and the rest come from PyPI at pinned versions
into a virtual environment of the script's own (build/family-golden-venv). Sequences run one at a time, so there is no
padding.
"""
import json
import os
import pathlib
import shutil
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
FAMILIES = HERE / "families"
VENV = HERE.parent.parent / "build" / "family-golden-venv"
REQUIREMENTS = ["torch==2.15.0", "transformers==5.24.0", "safetensors==0.8.0", "numpy==2.4.6",
                "compressed-tensors==0.20.0"]

SMALL = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, vocab_size=64, max_position_embeddings=128)
GROUPED = dict(SMALL, num_key_value_heads=2, head_dim=8)
LATENT = dict(SMALL, num_key_value_heads=4, kv_lora_rank=12, qk_nope_head_dim=6, qk_rope_head_dim=8, v_head_dim=10)
YARN = dict(rope_type="yarn", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=16, beta_fast=32.0,
            beta_slow=1.0)

# the class, what its config is made with, the sequences
CASES = {
    "llama3_scaled": dict(
        kind="Llama", lengths=[40, 3],
        config=dict(GROUPED, intermediate_size=48,
                    rope_parameters=dict(rope_type="llama3", rope_theta=500.0, factor=8.0, low_freq_factor=1.0,
                                         high_freq_factor=4.0, original_max_position_embeddings=16))),
    "llama_linear_biased": dict(
        kind="Llama", lengths=[19, 6],
        config=dict(GROUPED, intermediate_size=48, attention_bias=True, tie_word_embeddings=True,
                    rope_parameters=dict(rope_type="linear", rope_theta=10000.0, factor=2.5))),
    "mistral_window": dict(kind="Mistral", lengths=[23, 9],
                           config=dict(GROUPED, intermediate_size=48, sliding_window=5)),
    "qwen2_later_windows": dict(
        kind="Qwen2", lengths=[23, 9],
        config=dict(SMALL, num_key_value_heads=2, intermediate_size=48, use_sliding_window=True, sliding_window=6,
                    max_window_layers=1)),
    "qwen3": dict(kind="Qwen3", lengths=[17, 2], config=dict(GROUPED, intermediate_size=48)),
    "mixtral_window": dict(kind="Mixtral", lengths=[21, 8],
                           config=dict(GROUPED, intermediate_size=24, num_local_experts=4, num_experts_per_tok=2,
                                       sliding_window=7)),
    "qwen3_moe_mixed": dict(
        kind="Qwen3Moe", lengths=[13, 5],
        config=dict(GROUPED, num_hidden_layers=4, intermediate_size=48, moe_intermediate_size=16, num_experts=6,
                    num_experts_per_tok=3, norm_topk_prob=True, decoder_sparse_step=2, mlp_only_layers=[3])),
    "qwen2_moe_shared": dict(
        kind="Qwen2Moe", lengths=[13, 5],
        config=dict(SMALL, num_key_value_heads=4, intermediate_size=40, moe_intermediate_size=16,
                    shared_expert_intermediate_size=24, num_experts=6, num_experts_per_tok=2, mlp_only_layers=[1])),
    "deepseek_v3": dict(
        kind="DeepseekV3", lengths=[31, 4], negative_scores=True,
        config=dict(LATENT, q_lora_rank=16, intermediate_size=48, moe_intermediate_size=16, n_routed_experts=8,
                    n_shared_experts=2, num_experts_per_tok=3, n_group=4, topk_group=2, first_k_dense_replace=1,
                    routed_scaling_factor=2.5, num_mtp_layers=0,
                    rope_parameters=dict(YARN, mscale=1.0, mscale_all_dim=1.0))),
    "deepseek_v3_mscale": dict(
        kind="DeepseekV3", lengths=[12, 7],
        config=dict(LATENT, q_lora_rank=None, intermediate_size=48, moe_intermediate_size=16, n_routed_experts=6,
                    n_shared_experts=1, num_experts_per_tok=2, n_group=1, topk_group=1, first_k_dense_replace=1,
                    routed_scaling_factor=1.5, norm_topk_prob=False, num_mtp_layers=0,
                    rope_parameters=dict(YARN, mscale=0.707, mscale_all_dim=1.2))),
    "deepseek_v2_groups": dict(
        kind="DeepseekV2", lengths=[11, 9],
        config=dict(LATENT, q_lora_rank=16, intermediate_size=48, moe_intermediate_size=16, n_routed_experts=8,
                    n_shared_experts=2, num_experts_per_tok=3, topk_method="group_limited_greedy", n_group=4,
                    topk_group=2, first_k_dense_replace=1, routed_scaling_factor=4.0,
                    rope_parameters=dict(YARN, mscale=0.707, mscale_all_dim=0.707))),
    "glm4_moe": dict(
        kind="Glm4Moe", lengths=[18, 5], negative_scores=True,
        config=dict(GROUPED, intermediate_size=48, moe_intermediate_size=16, n_routed_experts=6, n_shared_experts=1,
                    num_experts_per_tok=2, first_k_dense_replace=1, routed_scaling_factor=2.5, attention_bias=True,
                    use_qk_norm=True, num_mtp_layers=0,
                    rope_parameters=dict(rope_type="default", rope_theta=10000.0, partial_rotary_factor=0.5))),
    "gpt_oss": dict(
        kind="GptOss", lengths=[29, 6],
        config=dict(GROUPED, intermediate_size=20, num_local_experts=6, num_experts_per_tok=3, sliding_window=6,
                    rope_parameters=dict(YARN, truncate=False))),
    "olmoe": dict(
        kind="Olmoe", lengths=[14, 6],
        config=dict(SMALL, num_key_value_heads=2, intermediate_size=16, num_experts=6, num_experts_per_tok=3)),
    "granitemoe": dict(
        kind="GraniteMoe", lengths=[12, 7],
        config=dict(SMALL, num_key_value_heads=2, intermediate_size=16, num_local_experts=6, num_experts_per_tok=3,
                    embedding_multiplier=12.0, residual_multiplier=0.22, attention_multiplier=0.2,
                    logits_scaling=6.0)),
    "phimoe": dict(
        kind="Phimoe", lengths=[15, 4],
        config=dict(SMALL, num_key_value_heads=2, intermediate_size=16, num_local_experts=6, num_experts_per_tok=2,
                    router_jitter_noise=0.2, attention_bias=True, lm_head_bias=True,
                    rope_parameters=dict(rope_type="longrope", rope_theta=10000.0,
                                         original_max_position_embeddings=64, short_mscale=1.243, long_mscale=1.3,
                                         short_factor=[1.0, 1.25, 2.5, 3.0], long_factor=[1.0, 2.0, 4.0, 8.0]))),
    "deepseek_v3_biases": dict(
        kind="DeepseekV3", lengths=[9, 6],
        config=dict(LATENT, q_lora_rank=16, intermediate_size=48, moe_intermediate_size=16, n_routed_experts=6,
                    n_shared_experts=1, num_experts_per_tok=2, n_group=1, topk_group=1, first_k_dense_replace=1,
                    routed_scaling_factor=1.5, num_mtp_layers=0, attention_bias=True)),
    "olmoe_clipped": dict(
        kind="Olmoe", lengths=[11, 6],
        config=dict(SMALL, num_key_value_heads=2, intermediate_size=16, num_experts=6, num_experts_per_tok=3,
                    clip_qkv=0.8125)),
}


def enter_environment():
    """Runs this script again inside its virtual environment, made on first use."""
    if pathlib.Path(sys.prefix).resolve() == VENV.resolve():
        return
    if not (VENV / "bin" / "python").exists():
        subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
        subprocess.run([str(VENV / "bin" / "pip"), "install", "--quiet", *REQUIREMENTS], check=True)
    os.execv(str(VENV / "bin" / "python"), [str(VENV / "bin" / "python"), *sys.argv])


def value_of(name, tensor, case, torch):
    noise = torch.randn(tensor.shape, dtype=torch.float64)
    if "norm" in name:
        return 1 + 0.2 * noise
    if "e_score_correction_bias" in name:
        # Scores lie between 0 and 1; some of their sums with this are negative.
        return 0.6 * noise if case.get("negative_scores") else 0.1 * noise
    if name.endswith("sinks"):
        return noise
    if name.endswith("gate_up_proj_bias"):
        return 5 * noise  # some gates and ups reach the limit that they are clamped to
    if name.endswith("bias"):
        return 0.3 * noise
    if "embed" in name:
        return 0.7 * noise
    # Stacked experts are [experts, rows, columns], gpt-oss's transposed: what is summed over is the dim of that width.
    return noise * tensor.shape[-1] ** -0.5


def make_model(case, seed, torch, transformers):
    torch.manual_seed(seed)
    config = getattr(transformers, case["kind"] + "Config")(**case["config"])
    config._attn_implementation = "eager"
    config._experts_implementation = "eager"
    model = getattr(transformers, case["kind"] + "ForCausalLM")(config).eval()
    with torch.no_grad():
        state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        for name, tensor in state.items():
            if "inv_freq" in name:
                continue
            # Every value is one of float32's: what is saved is what is computed with.
            tensor.copy_(value_of(name, tensor, case, torch).to(torch.float32))
    return model


def feed_forward_of(layer):
    return layer.mlp if hasattr(layer, "mlp") else layer.block_sparse_moe


def feed_forward_tap(layer):
    names = dict(feed_forward_of(layer).named_children())
    if "experts" not in names:
        return "mlp.output"
    return "moe.sum" if "shared_experts" in names or "shared_expert" in names else "moe.output"


def run(model, sequences, torch):
    taps = {}

    def keep(name):
        def hook(_module, _inputs, output):
            value = output[0] if isinstance(output, tuple) else output
            taps.setdefault(name, []).append(value.detach().reshape(-1, value.shape[-1]).to(torch.float32))
        return hook

    model.model.embed_tokens.register_forward_hook(keep("embedding"))
    for n, layer in enumerate(model.model.layers):
        layer.self_attn.register_forward_hook(keep(f"layer.{n}.attention.output"))
        feed_forward_of(layer).register_forward_hook(keep(f"layer.{n}.{feed_forward_tap(layer)}"))
        layer.register_forward_hook(keep(f"layer.{n}.moe.residual"))
    model.model.norm.register_forward_hook(keep("final_norm"))
    with torch.no_grad():
        for sequence in sequences:
            logits = model(torch.tensor([sequence]), use_cache=False).logits
            taps.setdefault("logits", []).append(logits[0].to(torch.float32))
    return {name: torch.cat(parts).contiguous() for name, parts in taps.items()}


def main():
    enter_environment()
    import safetensors.torch
    import torch
    import transformers

    torch.set_num_threads(1)
    wanted = sys.argv[1:] or list(CASES)
    for seed, (name, case) in enumerate(CASES.items(), start=1):
        if name not in wanted:
            continue
        folder = FAMILIES / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        model = make_model(case, seed, torch, transformers)
        generator = torch.Generator().manual_seed(seed)
        sequences = [torch.randint(0, case["config"]["vocab_size"], (length,), generator=generator).tolist()
                     for length in case["lengths"]]
        model.save_pretrained(folder, safe_serialization=True)
        (folder / "generation_config.json").unlink(missing_ok=True)
        expected = run(model.to(torch.float64), sequences, torch)
        safetensors.torch.save_file(expected, folder / "expected.safetensors")
        (folder / "sequences.json").write_text(json.dumps(sequences) + "\n")
        print(f"{name}: {sum(f.stat().st_size for f in folder.iterdir()) / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
