#!/usr/bin/env python3
"""Ops by PyTorch and by this project's ops_bench, on one CPU thread, in turns.

  ops_torch.py OPS_BENCH OUT.json [--filter REGEX] [--repetitions 9] [--min-time 0.05]

Needs PyTorch; ./tools/bench peers --torch installs it. A case bears the name of its benchmark, its result is held to its
definition once, and each repetition measures both next to each other. The file has the names GROUP/torch/CASE and
GROUP/shardproof/CASE, which compare.py --peers shardproof tabulates. Of several ways to write an op in PyTorch the
fastest here is taken.
"""

import argparse
import json
import os
import pathlib
import re
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import gate  # noqa: E402

# One thread: a BLAS may bring some of its own. And outputs in memory that is there already, as those of ops_bench are:
# else each call of a large one would pay for fresh pages.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1",
               "MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "4294967296"}


class Cases:
    """Benchmark name -> function that makes the ways to compute it, and what they should give."""

    def __init__(self, torch):
        self.torch, self.functional = torch, torch.nn.functional
        self.cases = {}
        for sequence in (128, 512, 2048):
            for head_dim in (32, 64, 128):
                self.cases[f"attention/sequence:{sequence}/heads:4/head_dim:{head_dim}"] = (
                    self.attention, sequence, head_dim, head_dim)
        for sequence in (512, 2048):
            self.cases[f"latent_attention/sequence:{sequence}/heads:4/key:192/value:128"] = (
                self.attention, sequence, 192, 128)
        for heads in (1, 4, 16, 128):
            self.cases[f"absorbed_decode/past:65535/heads:{heads}/rank:512"] = (self.absorbed, 1, 65535, heads)
        self.cases["absorbed_prefill/sequence:512/heads:4/rank:512"] = (self.absorbed, 512, 0, 4)
        self.cases["window_attention/sequence:2048/window:128/heads:8/kv_heads:1/head_dim:64"] = (
            self.window_attention, 2048, 128)
        for past in (128, 1024, 8192):
            self.cases[f"decode_attention_rows/past:{past}"] = (self.decode, 8, past)
        self.cases["long_cache/past:131071/heads:8/kv_heads:2/head_dim:128"] = (self.decode, 1, 131071)
        for experts in (4, 16, 64):
            self.cases[f"route/experts:{experts}/top_k:2"] = (self.route, 16384, experts, 2)
        self.cases["route_in_groups/experts:256/top_k:8/groups:8/top_groups:4"] = (self.route_in_groups, 4096, 256, 8)
        self.cases["swiglu/fp32"] = (self.swiglu, 16384, 1024)
        self.cases["clamped_swiglu/cols:2880"] = (self.clamped_swiglu, 4096, 2880)
        self.cases["rms_norm/fp32"] = (self.rms_norm, 16384, 1024)
        self.cases["layer_norm/cols:4096"] = (self.layer_norm, 4096, 4096)
        for hidden, width in ((512, 1024), (1024, 2048)):
            for tokens in (1, 4, 16, 64, 256):
                self.cases[f"expert/tokens:{tokens}/hidden:{hidden}/width:{width}"] = (
                    self.expert, tokens, hidden, width)
        for tokens in (1, 16, 256):
            self.cases[f"expert_with_bias/tokens:{tokens}/hidden:2880/width:2880"] = (
                self.expert_with_bias, tokens, 2880, 2880)
        for rows in (8, 256):
            self.cases[f"linear_with_bias/m:{rows}/n:1024/k:2880"] = (self.linear_with_bias, rows, 1024, 2880)

    def uniform(self, *shape):
        return self.torch.rand(*shape) * 2 - 1

    def attention(self, sequence, key, value):
        torch, functional = self.torch, self.functional
        q, k, v = (self.uniform(1, 4, sequence, width) for width in (key, key, value))
        mask = torch.full((sequence, sequence), float("-inf")).triu(1)
        wide = functional.pad(v, (0, key - value))
        return [lambda: functional.scaled_dot_product_attention(q, k, v, is_causal=True),
                lambda: functional.scaled_dot_product_attention(q, k, wide, is_causal=True)[..., :value]], \
            torch.softmax(q @ k.transpose(2, 3) / key**0.5 + mask, -1) @ v

    def absorbed(self, rows, past, heads):
        """Latent attention with each head's keys and values in its queries and behind its context, as engines decode."""
        torch, functional = self.torch, self.functional
        q, latents = self.uniform(heads, rows, 192), self.uniform(past + rows, 576)
        keys, values = (self.uniform(heads, 128, 512) for _ in range(2))
        turned_values = values.transpose(1, 2)
        mask = torch.full((rows, rows), float("-inf")).triu(1)
        seen = torch.cat((torch.zeros(rows, past), mask), -1)

        def absorb():
            return torch.cat((torch.bmm(q[..., :128], keys), q[..., 128:]), -1)

        def products():
            scores = (absorb().view(heads * rows, 576) @ latents.T).view(heads, rows, -1) * 192**-0.5
            weights = torch.softmax(scores if rows == 1 else scores + seen, -1)
            weighed = (weights.view(heads * rows, -1) @ latents[:, :512]).view(heads, rows, 512)
            return torch.bmm(weighed, turned_values)

        def fused():
            # One head of keys, of whose queries all heads are rows.
            query = absorb().view(1, 1, heads * rows, 576)
            key = latents.view(1, 1, -1, 576)
            weighed = functional.scaled_dot_product_attention(
                query, key, key, scale=192**-0.5, attn_mask=None if rows == 1 else seen.repeat(heads, 1))
            return torch.bmm(weighed.view(heads, rows, 576)[..., :512], turned_values)

        def plain(head):
            """By its definition: the head's keys and values are made."""
            key = torch.cat((latents[:, :512] @ keys[head].T, latents[:, 512:]), -1)
            weights = torch.softmax(q[head] @ key.T * 192**-0.5 + seen, -1)
            return weights @ (latents[:, :512] @ values[head].T)

        return [products, fused], torch.stack([plain(head) for head in range(heads)])

    def window_attention(self, sequence, window):
        torch, functional = self.torch, self.functional
        q, k, v, sinks = (self.uniform(*shape) for shape in ((1, 8, sequence, 64), (1, 1, sequence, 64),
                                                             (1, 1, sequence, 64), (8,)))
        place = torch.arange(sequence)
        seen = (place[:, None] >= place) & (place[:, None] - place < window)
        mask = torch.zeros(sequence, sequence).masked_fill(~seen, float("-inf"))
        column = sinks.view(1, 8, 1, 1).expand(1, 8, sequence, 1)

        def plain():
            scores = torch.cat((q @ k.transpose(2, 3) * 64**-0.5 + mask, column), -1)
            return torch.softmax(scores, -1)[..., :-1] @ v

        def fused():
            # A key of zeros whose value is zero, and whose score the mask makes the sink.
            return functional.scaled_dot_product_attention(q, longer_k, longer_v, attn_mask=longer_mask)

        longer_k, longer_v = (torch.cat((x, torch.zeros(1, 1, 1, 64)), 2).expand(1, 8, -1, 64) for x in (k, v))
        longer_mask = torch.cat((mask.expand(1, 8, -1, -1), column), -1)
        return [fused, plain], plain()

    def decode(self, sequences, past):
        torch, functional = self.torch, self.functional
        q = self.uniform(sequences, 8, 1, 128)
        k, v = (self.uniform(sequences, 2, past + 1, 128) for _ in range(2))
        grouped = q.view(sequences, 2, 4, 128)

        def products():
            return (torch.softmax(grouped @ k.transpose(2, 3) * 128**-0.5, -1) @ v).view(sequences, 8, 1, 128)

        return [products, lambda: functional.scaled_dot_product_attention(q, k, v, enable_gqa=True),
                lambda: functional.scaled_dot_product_attention(grouped, k, v).view(sequences, 8, 1, 128)], products()

    def route(self, tokens, experts, top_k):
        torch = self.torch
        logits = self.uniform(tokens, experts)

        def softmax_first():
            weights, ids = torch.topk(torch.softmax(logits, -1), top_k, -1)
            return weights / weights.sum(-1, keepdim=True), ids

        def softmax_last():
            weights, ids = torch.topk(logits, top_k, -1)
            return torch.softmax(weights, -1), ids

        return [lambda: softmax_first()[0], lambda: softmax_last()[0]], softmax_first()[0]

    def route_in_groups(self, tokens, experts, top_k):
        torch = self.torch
        logits, bias = self.uniform(tokens, experts), self.uniform(experts)

        def route():
            scores = logits.sigmoid()
            choice = scores + bias
            groups = choice.view(tokens, 8, -1).topk(2, dim=-1)[0].sum(-1).topk(4, dim=-1, sorted=False)[1]
            closed = torch.ones(tokens, 8, dtype=torch.bool).scatter_(1, groups, False)
            open_choice = choice.view(tokens, 8, -1).masked_fill(closed.unsqueeze(-1), float("-inf")).view(tokens, -1)
            weights = scores.gather(1, open_choice.topk(top_k, dim=-1)[1])
            return weights / (weights.sum(-1, keepdim=True) + 1e-20) * 2.5

        return [route], route()

    def swiglu(self, rows, cols):
        gate_rows, up = self.uniform(rows, cols), self.uniform(rows, cols)
        return [lambda: self.functional.silu(gate_rows) * up], gate_rows / (1 + (-gate_rows).exp()) * up

    def clamped(self, gate_rows, up):
        gate_rows, up = gate_rows.clamp(max=7), up.clamp(-7, 7)
        return (up + 1) * (gate_rows * self.torch.sigmoid(gate_rows * 1.702))

    def clamped_swiglu(self, rows, cols):
        gate_rows, up = self.uniform(rows, cols), self.uniform(rows, cols)
        return [lambda: self.clamped(gate_rows, up)], (up + 1) * gate_rows / (1 + (-1.702 * gate_rows).exp())

    def rms_norm(self, rows, cols):
        x, weight = self.uniform(rows, cols), self.uniform(cols)
        return [lambda: self.functional.rms_norm(x, (cols,), weight, 1e-5)], \
            x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight

    def layer_norm(self, rows, cols):
        x, weight, bias = self.uniform(rows, cols), self.uniform(cols), self.uniform(cols)
        centred = x - x.mean(-1, keepdim=True)
        return [lambda: self.functional.layer_norm(x, (cols,), weight, bias, 1e-5)], \
            centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight + bias

    def expert(self, tokens, hidden, width):
        linear, silu = self.functional.linear, self.functional.silu
        x, gate_w, up_w, down_w = (self.uniform(*shape) for shape in ((tokens, hidden), (width, hidden), (width, hidden),
                                                                      (hidden, width)))
        return [lambda: linear(silu(linear(x, gate_w)) * linear(x, up_w), down_w)], \
            (silu(x @ gate_w.T) * (x @ up_w.T)) @ down_w.T

    def expert_with_bias(self, tokens, hidden, width):
        linear = self.functional.linear
        x, gate_w, up_w, down_w = (self.uniform(*shape) for shape in ((tokens, hidden), (width, hidden), (width, hidden),
                                                                      (hidden, width)))
        biases = self.uniform(3, hidden)
        return [lambda: linear(self.clamped(linear(x, gate_w, biases[0]), linear(x, up_w, biases[1])), down_w, biases[2])], \
            self.clamped(x @ gate_w.T + biases[0], x @ up_w.T + biases[1]) @ down_w.T + biases[2]

    def linear_with_bias(self, rows, cols, inner):
        x, w, bias = self.uniform(rows, inner), self.uniform(cols, inner), self.uniform(cols)
        return [lambda: self.functional.linear(x, w, bias)], x @ w.T + bias

    def fastest(self, name, min_time):
        make, *sizes = self.cases[name]
        ways, expected = make(*sizes)
        for way in ways:
            scale = expected.abs().max().item()
            assert self.torch.allclose(way(), expected, rtol=1e-3, atol=1e-4 * scale), f"{name}: results differ"
        return min(ways, key=lambda way: min(gate.seconds_of(way, min_time / 2) for _ in range(3)))


def entry(name, library, nanoseconds):
    group, _, case = name.partition("/")
    full = f"{group}/{library}/{case}"
    return {"name": full, "run_name": full, "run_type": "iteration", "time_unit": "ns", "cpu_time": nanoseconds,
            "real_time": nanoseconds}


def measure(args, torch):
    cases, entries = Cases(torch), []
    known = gate.names_of(args.program, ".")
    for name in [name for name in cases.cases if re.search(args.filter, name)]:
        if name not in known:
            raise gate.ProgramError(f"{args.program} has no benchmark {name}")
        function = cases.fastest(name, args.min_time)
        for _ in range(args.repetitions):
            entries.append(entry(name, "torch", gate.seconds_of(function, args.min_time) * 1e9))
            entries.append(entry(name, "shardproof", gate.measure(args.program, name, "cpu_time", args.min_time)[1]))
    return entries


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", metavar="OPS_BENCH")
    parser.add_argument("out", metavar="OUT.json")
    parser.add_argument("--filter", default=".", metavar="REGEX", help="cases by the name of their benchmark")
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--min-time", type=float, default=0.05, help="seconds of one measurement")
    args = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in ENVIRONMENT.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ENVIRONMENT})
    try:
        import torch
    except ImportError:
        print("PyTorch is not installed: nothing measured", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    torch.manual_seed(1)
    print(f"PyTorch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, one thread")
    try:
        with torch.inference_mode():
            entries = measure(args, torch)
    except gate.ProgramError as error:
        print(error, file=sys.stderr)
        return 2
    with open(args.out, "w", encoding="utf-8") as file:
        json.dump({"context": {"library": f"torch {torch.__version__}"}, "benchmarks": entries}, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
