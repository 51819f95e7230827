#!/usr/bin/env python3
"""Judges Hugging Face Transformers models, whole and sharded by hand, right and with faults planted.

Nightly: PyTorch and Transformers come from PyPI, at the versions of tests/golden/make_family_golden.py and into the same
virtual environment; the models are the golden checkpoints, whose tensors these versions made. The package is taken from
PYTHONPATH. Says what it judged, and exits 1 at the first verdict that is not the right one.
"""
import importlib.util
import json
import os
import sys
import tempfile
import threading
from pathlib import Path

ROOT = Path(os.environ["SHARDPROOF_SOURCE_DIR"])
GOLDEN = ROOT / "tests" / "golden"
WHOLE = [f"families/{path.name}" for path in sorted((GOLDEN / "families").iterdir())] + [
    "grouped", "tied_top1", "sharded_one_kv_head", "bfloat16_all_experts", "float16_tied"]


def enter_environment():
    source = GOLDEN / "make_family_golden.py"
    spec = importlib.util.spec_from_file_location("make_family_golden", source)
    golden = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(golden)
    golden.enter_environment()


def sequences(case):
    return json.loads((GOLDEN / case / "sequences.json").read_text())


def plan_of(case, **parallel):
    return {"name": case, "model": str(GOLDEN / case / "config.json"), "parallel": parallel,
            "workload": {"lengths": [len(ids) for ids in sequences(case)]}}


def load(case, kind, attention="eager"):
    import torch
    import transformers

    dtype = getattr(torch, kind)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        GOLDEN / case, dtype=dtype, attn_implementation=attention, experts_implementation="eager")
    for weight in model.parameters():  # a router's too, which else stays in float32
        weight.data = weight.data.to(dtype)
    return model.eval()


class AllReduce:
    """The sum over two ranks that are threads, in the order of the ranks."""

    def __init__(self):
        self.barrier = threading.Barrier(2, timeout=60)
        self.parts = [None, None]

    def __call__(self, rank, part):
        self.parts[rank] = part
        self.barrier.wait()
        total = self.parts[0] + self.parts[1]
        self.barrier.wait()
        return total


def sharded(case, kind, rank, all_reduce):
    """A rank's part of the model over tp 2: heads, the MLP's or each expert's columns."""
    import torch

    class Reduced(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, *arguments):
            return all_reduce(rank, self.inner(*arguments))

    def half(tensor, dim):
        return torch.nn.Parameter(tensor.detach().chunk(2, dim)[rank].clone(), requires_grad=False)

    def split(linear, dim):
        linear.weight = half(linear.weight, dim)
        if linear.bias is not None and dim == 0:
            linear.bias = half(linear.bias, 0)

    model = load(case, kind)
    for layer in model.model.layers:
        attention = layer.self_attn
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj):
            split(linear, 0)
        split(attention.o_proj, 1)
        attention.o_proj = Reduced(attention.o_proj)
        mlp = layer.mlp
        if hasattr(mlp, "experts"):
            gate, up = mlp.experts.gate_up_proj.detach().chunk(2, 1)
            mlp.experts.gate_up_proj = torch.nn.Parameter(torch.cat([half(gate, 1), half(up, 1)], 1), requires_grad=False)
            mlp.experts.down_proj = half(mlp.experts.down_proj, 2)
            mlp.experts = Reduced(mlp.experts)
        else:
            split(mlp.gate_proj, 0)
            split(mlp.up_proj, 0)
            split(mlp.down_proj, 1)
            mlp.down_proj = Reduced(mlp.down_proj)
    return model


def run_sharded(case, kind, folder, fault=None):
    """Both ranks at once, each in a thread; the dump lies in the folder."""
    import shardproof

    plan = plan_of(case, tp=2, etp=2)
    all_reduce = AllReduce()
    models = [sharded(case, kind, rank, all_reduce) for rank in (0, 1)]
    for rank, model in enumerate(models):
        if fault:
            fault(model, rank)
    errors = []

    def run(rank):
        try:
            shardproof.capture(models[rank], plan, sequences(case), folder, rank=rank)
        except Exception as error:
            errors.append(error)
            all_reduce.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return shardproof.judge(folder, plan, checkpoint=GOLDEN / case)


# Each fault is planted in a rank's model; with it stand the tap that is wrong first and, where one is sure, the cause.

def skip_all_reduce(model, rank):
    attention = model.model.layers[1].self_attn
    attention.o_proj = attention.o_proj.inner


def scale_twice(model, rank):
    model.model.layers[0].self_attn.scaling *= 2


def swap_rows(model, rank):
    def swapped(_, arguments, output):
        return output[[1, 0, *range(2, len(output))]] if len(output) > 1 else output

    model.model.layers[0].mlp.experts.register_forward_hook(swapped)


def one_value(model, rank):
    def edited(_, arguments, output):
        output = output.clone()
        output[0, 0, 3] += 0.5
        return output

    model.model.layers[1].input_layernorm.register_forward_hook(edited)


def other_kv_head(model, rank):
    if rank == 1:
        weight = model.model.layers[1].self_attn.k_proj.weight
        weight.data = load("grouped", str(weight.dtype).removeprefix("torch.")).model.layers[1].self_attn.k_proj \
            .weight.data.chunk(2, 0)[0].clone()


def norm_of_another_layer(model, rank):
    layers = model.model.layers
    layers[1].input_layernorm.weight = layers[0].input_layernorm.weight


def weights_not_renormalised(model, rank):
    import torch

    def raw(_, arguments, output):
        logits, _, chosen = output
        return logits, torch.softmax(logits.float(), -1).gather(-1, chosen), chosen

    model.model.layers[0].mlp.gate.register_forward_hook(raw)


def second_best_expert(model, rank):
    def worse(_, arguments, output):
        logits, weights, chosen = output
        left = [e for e in range(logits.shape[-1]) if e not in chosen[0].tolist()]
        chosen = chosen.clone()
        chosen[0, 1] = left[0]
        return logits, weights, chosen

    model.model.layers[1].mlp.gate.register_forward_hook(worse)


def narrow_frequencies(model, rank):
    import torch

    rotary = model.model.rotary_emb
    rotary.inv_freq = rotary.inv_freq.to(torch.bfloat16).to(rotary.inv_freq.dtype)


def late_positions(model, rank):
    if rank == 1:
        model.model.rotary_emb.register_forward_pre_hook(
            lambda _, arguments, keywords: ((arguments[0], arguments[1] + 1), keywords) if len(arguments) > 1
            else (arguments, keywords | {"position_ids": keywords["position_ids"] + 1}), with_kwargs=True)


FAULTS = [
    ("grouped", skip_all_reduce, "layer.1.attention.output", "reduction_dropped"),
    ("grouped", scale_twice, "layer.0.attention.context", None),
    ("grouped", swap_rows, "layer.0.moe.output", "rows_permuted"),
    ("grouped", one_value, "layer.1.attention.norm", None),
    ("grouped", other_kv_head, "layer.1.attention.k", "heads_permuted"),
    ("grouped", norm_of_another_layer, "layer.1.attention.norm", "weights_of_another_layer"),
    ("grouped", weights_not_renormalised, "layer.0.moe.router_weights", None),
    ("grouped", second_best_expert, "layer.1.moe.router_choice", None),
    ("families/llama3_scaled", narrow_frequencies, "layer.0.attention.q", None),  # far enough into a sequence
    ("grouped", late_positions, "layer.0.attention.q", "positions"),
]


def expect(what, report, verdict, tap=None, cause=None):
    found = report.first_divergence
    named = found.cause.name if found and found.cause else None
    right = report.verdict == verdict and (tap is None or (found and found.tap == tap))
    right = right and (cause is None or named == cause)
    judged = report.dump["judged"]
    print(f"{'ok   ' if right else 'WRONG'} {what}: {report.verdict}, {judged} judged, {len(report.dump['computed'])} "
          f"computed{f', first {found.tap} on ranks {found.ranks}: {named}' if found else ''}", flush=True)
    if not right:
        sys.exit(f"expected {verdict} {tap or ''} {cause or ''}\n{report}")
    return judged


def main():
    enter_environment()
    import shardproof
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        for case in WHOLE:
            for kind in ("bfloat16", "float32"):
                folder = Path(scratch) / "whole" / case / kind
                plan = plan_of(case)
                shardproof.capture(load(case, kind), plan, sequences(case), folder)
                judged = expect(f"{case} {kind}", shardproof.judge(folder, plan, checkpoint=GOLDEN / case), "pass")
                assert judged > 12, "hardly anything of the model was captured"
        for case in ("grouped", "families/mixtral_window", "families/llama3_scaled", "families/qwen3"):
            for kind in ("bfloat16", "float32"):
                folder = Path(scratch) / "sharded" / case / kind
                expect(f"{case} {kind} tp2", run_sharded(case, kind, folder), "pass")
        for case, fault, tap, cause in FAULTS:
            for kind in ("bfloat16", "float32"):
                folder = Path(scratch) / fault.__name__ / kind
                report = run_sharded(case, kind, folder, fault)
                expect(f"{case} {kind} tp2 {fault.__name__}", report, "mismatch", tap, cause)


if __name__ == "__main__":
    main()
