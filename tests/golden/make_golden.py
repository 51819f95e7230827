#!/usr/bin/env python3
"""Makes the golden checkpoints of this folder with Hugging Face Transformers on the CPU, in float32.

    ./make_golden.py            # on Debian 12, after: apt-get install --no-install-recommends python3-torch

Each case is a folder: config.json and model.safetensors (or shards with model.safetensors.index.json) as Transformers
saves them; sequences.json, the token ids of each sequence; expected.safetensors, what Transformers computes, the
sequences one after another:
    embedding, final_norm                      [tokens, hidden]
    layer.N.attention.output                   [tokens, hidden]
    layer.N.moe.router_logits                  [tokens, experts]
    layer.N.moe.output, layer.N.moe.residual   [tokens, hidden]
    logits                                     [tokens, vocab]

PyTorch is Debian's, since its wheel on PyPI brings CUDA along; the rest comes from PyPI at pinned versions, into a
virtual environment of the script's own (build/golden-venv). Sequences run one at a time, so there is no padding.
"""
import json
import os
import pathlib
import shutil
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
VENV = HERE.parent.parent / "build" / "golden-venv"
PYTHON = "/usr/bin/python3"  # the interpreter that Debian's python3-torch belongs to
TORCH = "1.13.0"  # how Debian 12's package of 1.13.1 names itself
REQUIREMENTS = ["transformers==4.36.2", "tokenizers==0.15.2", "safetensors==0.4.5", "huggingface-hub==0.20.3",
                "numpy==1.24.4"]

# hidden, layers, heads, kv_heads, width, experts, top_k, vocab, further config keys, dtype kept, shard size, sequences
CASES = {
    "grouped": dict(hidden=32, layers=2, heads=4, kv_heads=2, width=48, experts=4, top_k=2, vocab=64,
                    lengths=[7, 1, 12], seed=1),
    "tied_top1": dict(hidden=64, layers=1, heads=8, kv_heads=8, width=32, experts=3, top_k=1, vocab=50,
                      lengths=[9, 5], seed=2, more=dict(tie_word_embeddings=True)),
    "sharded_one_kv_head": dict(hidden=24, layers=3, heads=4, kv_heads=1, width=20, experts=8, top_k=3, vocab=40,
                                lengths=[40, 3], seed=3, more=dict(rope_theta=10000.0), shard="60KB"),
    "bfloat16_all_experts": dict(hidden=24, layers=2, heads=6, kv_heads=3, width=28, experts=5, top_k=5, vocab=33,
                                 lengths=[6, 6, 6, 2], seed=4, more=dict(rms_norm_eps=1e-6), dtype="bfloat16"),
    "float16_tied": dict(hidden=48, layers=2, heads=6, kv_heads=2, width=24, experts=6, top_k=2, vocab=37,
                         lengths=[17], seed=5, more=dict(tie_word_embeddings=True, rope_theta=500000.0),
                         dtype="float16"),
}


def enter_environment():
    """Runs this script again inside its virtual environment, made on first use."""
    if pathlib.Path(sys.prefix) == VENV:
        return
    if not (VENV / "bin" / "python").exists():
        subprocess.run([PYTHON, "-m", "venv", "--system-site-packages", str(VENV)], check=True)
    subprocess.run([str(VENV / "bin" / "pip"), "install", "--quiet", *REQUIREMENTS], check=True)
    os.execv(str(VENV / "bin" / "python"), [str(VENV / "bin" / "python"), str(HERE / "make_golden.py")])


def make_model(case, torch, transformers):
    torch.manual_seed(case["seed"])
    config = transformers.MixtralConfig(
        hidden_size=case["hidden"], num_hidden_layers=case["layers"], num_attention_heads=case["heads"],
        num_key_value_heads=case["kv_heads"], intermediate_size=case["width"], num_local_experts=case["experts"],
        num_experts_per_tok=case["top_k"], vocab_size=case["vocab"], max_position_embeddings=64,
        attn_implementation="eager", **case.get("more", {}))
    model = transformers.MixtralForCausalLM(config).eval()
    dtype = getattr(torch, case.get("dtype", "float32"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # The default initialisation is too small for the routers and the softmax to have anything to decide.
            if "norm" in name:
                parameter.copy_(1 + 0.2 * torch.randn_like(parameter))
            else:
                parameter.copy_(torch.randn_like(parameter) * (0.7 if "embed" in name else parameter.shape[1] ** -0.5))
            parameter.copy_(parameter.to(dtype).to(torch.float32))
    return model


def run(model, sequences, torch):
    taps = {}

    def keep(name, index=None):
        def hook(_module, _inputs, output):
            value = output if index is None else output[index]
            taps.setdefault(name, []).append(value.detach().reshape(-1, value.shape[-1]).clone())
        return hook

    model.model.embed_tokens.register_forward_hook(keep("embedding"))
    for n, layer in enumerate(model.model.layers):
        layer.self_attn.register_forward_hook(keep(f"layer.{n}.attention.output", 0))
        layer.block_sparse_moe.register_forward_hook(keep(f"layer.{n}.moe.output", 0))
        layer.block_sparse_moe.register_forward_hook(keep(f"layer.{n}.moe.router_logits", 1))
        layer.register_forward_hook(keep(f"layer.{n}.moe.residual", 0))
    model.model.norm.register_forward_hook(keep("final_norm"))
    with torch.no_grad():
        for sequence in sequences:
            logits = model(torch.tensor([sequence]), use_cache=False).logits
            taps.setdefault("logits", []).append(logits[0].clone())
    return {name: torch.cat(parts).contiguous() for name, parts in taps.items()}


def main():
    enter_environment()
    import safetensors.torch
    import torch
    import transformers

    if not torch.__version__.startswith(TORCH):
        sys.exit(f"PyTorch is {torch.__version__}, the golden outputs are of {TORCH} (python3-torch of Debian 12)")
    torch.set_num_threads(1)
    for name, case in CASES.items():
        folder = HERE / name
        shutil.rmtree(folder, ignore_errors=True)
        model = make_model(case, torch, transformers)
        generator = torch.Generator().manual_seed(case["seed"])
        sequences = [torch.randint(0, case["vocab"], (length,), generator=generator).tolist()
                     for length in case["lengths"]]
        expected = run(model, sequences, torch)
        folder.mkdir()
        safetensors.torch.save_file(expected, folder / "expected.safetensors")
        (folder / "sequences.json").write_text(json.dumps(sequences) + "\n")
        model.to(getattr(torch, case.get("dtype", "float32")))
        model.save_pretrained(folder, safe_serialization=True, max_shard_size=case.get("shard", "10GB"))
        (folder / "generation_config.json").unlink(missing_ok=True)
        margins = [(top := torch.sort(value, descending=True).values)[:, case["top_k"] - 1] - top[:, case["top_k"]]
                   for key, value in expected.items()
                   if key.endswith("router_logits") and case["top_k"] < case["experts"]]
        print(f"{name}: smallest routing margin {float(torch.cat(margins).min()) if margins else float('nan'):.2e}, "
              f"{sum(f.stat().st_size for f in folder.iterdir()) / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
