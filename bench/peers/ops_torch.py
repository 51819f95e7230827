#!/usr/bin/env python3
"""Attention and a Mixtral block by PyTorch on one CPU thread, as Google Benchmark JSON.

  ops_torch.py OUT.json [--repetitions 9]

Optional: needs PyTorch (Debian: apt-get install python3-torch, then /usr/bin/python3; 1.13 has the function under its
older name, and without a fused CPU kernel). The names equal those of
ops_bench (attention/sequence:S/heads:H/head_dim:D, expert/tokens:T/hidden:N/width:W), so that
compare.py OUT.json ops_bench.json tabulates ops_bench against it.
"""

import argparse
import json
import os
import sys
import time


def measure(function, repetitions):
    function()
    begin = time.thread_time()
    function()
    rounds = max(1, int(0.1 / max(time.thread_time() - begin, 1e-6)))
    samples = []
    for _ in range(repetitions):
        begin = time.thread_time()
        for _ in range(rounds):
            function()
        samples.append((time.thread_time() - begin) / rounds * 1e9)
    return samples


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--repetitions", type=int, default=9)
    args = parser.parse_args()
    # Its BLAS may bring threads of its own, which neither set_num_threads nor the time of this thread sees.
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = "1"
    try:
        import torch
        from torch.nn import functional
    except ImportError:
        print("PyTorch is not installed: nothing measured", file=sys.stderr)
        return 2
    if hasattr(functional, "scaled_dot_product_attention"):
        def attention(q, k, v):
            return functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    else:
        def attention(q, k, v):
            return functional._scaled_dot_product_attention(q, k, v, is_causal=True)[0]
    torch.set_num_threads(1)
    torch.manual_seed(1)
    entries = []

    def add(name, function):
        for sample in measure(function, args.repetitions):
            entries.append({"name": name, "run_name": name, "run_type": "iteration", "time_unit": "ns",
                            "cpu_time": sample, "real_time": sample})

    with torch.inference_mode():
        for sequence in (128, 512, 2048):
            for head_dim in (32, 64, 128):
                q, k, v = (torch.rand(1, 4, sequence, head_dim) * 2 - 1 for _ in range(3))
                out = attention(q, k, v)
                mask = torch.full((sequence, sequence), float("-inf")).triu(1)
                expected = torch.softmax(q @ k.transpose(2, 3) / head_dim**0.5 + mask, -1) @ v
                assert torch.allclose(out, expected, atol=1e-4), "results differ"
                add(f"attention/sequence:{sequence}/heads:4/head_dim:{head_dim}",
                    lambda q=q, k=k, v=v: attention(q, k, v))
        for hidden, width in ((512, 1024), (1024, 2048)):
            gate, up, down = torch.rand(width, hidden), torch.rand(width, hidden), torch.rand(hidden, width)
            for tokens in (1, 4, 16, 64, 256):
                x = torch.rand(tokens, hidden)
                add(f"expert/tokens:{tokens}/hidden:{hidden}/width:{width}",
                    lambda x=x: functional.linear(
                        functional.silu(functional.linear(x, gate)) * functional.linear(x, up), down))
    with open(args.out, "w", encoding="utf-8") as file:
        json.dump({"context": {"library": f"torch {torch.__version__}"}, "benchmarks": entries}, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
