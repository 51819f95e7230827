#!/usr/bin/env python3
"""One tensor-parallel MoE transformer in PyTorch on 16 virtual ranks of one machine, from the start to a verdict, by four
ways of running it, and by none. Prints medians after the import, and each peer's time as a multiple of isolation="thread".

  torch_ranks.py [--ranks 16] [--repetitions 5]

- shardproof.torch.run with isolation="thread" and "process": every module of known arithmetic within its op's bound
- torch's threaded process group, whose outputs allclose holds to the unsharded model
- torch's LocalTensor, one process that plays all ranks, held the same way
- the floor: the ranks' modules made and run one after another, without a call between them and without a verdict

The model is the embedded plan's at --scale auto: 8 layers, hidden 48, 64 heads of 4, 4 experts of width 16, top 2, 128 tokens.
Needs torch 2.9 or newer (LocalTensor) and the package: `pip install torch ./tools/python`.
"""

import argparse
import statistics
import threading
import time

import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from torch.distributed.tensor import Partial

import shardproof.torch

LAYERS, HIDDEN, HEADS, HEAD, EXPERTS, WIDTH, TOP, VOCABULARY, BATCH, TOKENS = 8, 48, 64, 4, 4, 16, 2, 96, 8, 16


class Layer(nn.Module):
    """The ranks share the heads and every expert's inner width: two all-reduces."""

    def __init__(self, ranks):
        super().__init__()
        self.ranks, inner = ranks, HEADS * HEAD // ranks
        self.attention_norm, self.moe_norm = nn.LayerNorm(HIDDEN), nn.LayerNorm(HIDDEN)
        self.q, self.k, self.v = (nn.Linear(HIDDEN, inner, bias=False) for _ in range(3))
        self.o = nn.Linear(inner, HIDDEN, bias=False)
        self.router = nn.Linear(HIDDEN, EXPERTS, bias=False)
        self.up = nn.ModuleList(nn.Linear(HIDDEN, WIDTH // ranks, bias=False) for _ in range(EXPERTS))
        self.down = nn.ModuleList(nn.Linear(WIDTH // ranks, HIDDEN, bias=False) for _ in range(EXPERTS))

    def summed(self, y):
        if self.ranks > 1:
            dist.all_reduce(y)
        return y

    def forward(self, x):
        h = self.attention_norm(x)
        q, k, v = (f(h).unflatten(-1, (-1, HEAD)).transpose(1, 2) for f in (self.q, self.k, self.v))
        scores = (q @ k.transpose(-1, -2) / HEAD ** 0.5).masked_fill(~torch.ones(TOKENS, TOKENS).tril().bool(), -1e9)
        x = x + self.summed(self.o((scores.softmax(-1) @ v).transpose(1, 2).flatten(2)))
        h = self.moe_norm(x)
        scores = self.router(h)
        scores = scores.masked_fill(scores < scores.topk(TOP).values[..., -1:], -1e9).softmax(-1)
        y = sum(scores[..., e:e + 1] * self.down[e](F.silu(self.up[e](h))) for e in range(EXPERTS))
        return x + self.summed(y)


class Model(nn.Module):
    def __init__(self, ranks=1):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, HIDDEN)
        self.layers = nn.ModuleList(Layer(ranks) for _ in range(LAYERS))

    def forward(self, ids):
        h = self.embedding(ids)
        outputs = []
        for layer in self.layers:
            h = layer(h)
            outputs.append(h)
        return outputs


torch.manual_seed(1)
WHOLE = Model()
IDS = torch.randint(VOCABULARY, (BATCH, TOKENS))
CUT = {"q": 0, "k": 0, "v": 0, "o": 1, "up": 0, "down": 1}  # the dim of the weight that the ranks share


def part_of(name, ranks):
    return next((CUT[part] for part in name.split(".") if part in CUT), None) if ranks > 1 else None


def sliced(ranks, rank):
    model, whole = Model(ranks), WHOLE.state_dict()
    model.load_state_dict({name: value if part_of(name, ranks) is None else value.chunk(ranks, part_of(name, ranks))[rank]
                           for name, value in whole.items()})
    return model


def ours(ranks, isolation):
    def main():
        dist.init_process_group()
        model = sliced(ranks, dist.get_rank())
        partial = Partial()
        shardproof.torch.watch(model, placements={"*.o": partial, "*.down.?": partial})
        with torch.no_grad():
            model(IDS)

    report = shardproof.torch.run(main, world_size=ranks, isolation=isolation, reference=lambda: WHOLE,
                                  step=lambda model: model(IDS))
    assert report.verdict == "pass", str(report)


def agree(outputs):
    with torch.no_grad():
        for got, expected in zip(outputs, WHOLE(IDS), strict=True):
            assert torch.allclose(got, expected, rtol=1e-4, atol=1e-5)


def threaded(ranks):
    from torch.testing._internal.distributed import multi_threaded_pg as threads

    threads._install_threaded_pg()
    torch._C._distributed_c10d._set_thread_isolation_mode(True)
    store, failures = dist.HashStore(), []

    def body(rank):
        try:
            dist.init_process_group("threaded", rank=rank, world_size=ranks, store=store)
            with torch.no_grad():
                agree(sliced(ranks, rank)(IDS))
            dist.destroy_process_group()
        except BaseException as error:
            failures.append(error)

    running = [threading.Thread(target=body, args=(rank,)) for rank in range(ranks)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    torch._C._distributed_c10d._set_thread_isolation_mode(False)
    threads._uninstall_threaded_pg()
    assert not failures, failures


def local_tensor(ranks):
    from torch.distributed._local_tensor import LocalTensor, LocalTensorMode

    dist.init_process_group("fake", rank=0, world_size=ranks)
    try:
        parts = [sliced(ranks, rank) for rank in range(ranks)]
        model = Model(ranks)
        with LocalTensorMode(ranks), torch.no_grad():
            for name, parameter in list(model.named_parameters()):
                owner = model.get_submodule(name.rpartition(".")[0])
                local = {rank: dict(part.named_parameters())[name].detach() for rank, part in enumerate(parts)}
                del owner._parameters[name.rpartition(".")[2]]
                setattr(owner, name.rpartition(".")[2], LocalTensor(local))
            outputs = model(LocalTensor({rank: IDS for rank in range(ranks)}))
        for rank in range(ranks):
            agree([output._local_tensors[rank] for output in outputs])
    finally:
        dist.destroy_process_group()


def floor(ranks):
    summed, Layer.summed = Layer.summed, lambda self, y: y
    try:
        with torch.no_grad():
            for rank in range(ranks):
                sliced(ranks, rank)(IDS)
    finally:
        Layer.summed = summed


def seconds(function, repetitions):
    samples = []
    for _ in range(repetitions + 1):
        begin = time.perf_counter()
        function()
        samples.append(time.perf_counter() - begin)
    return statistics.median(samples[1:])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=16)
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    ways = {'isolation="process"': lambda: ours(options.ranks, "process"),
            'isolation="thread"': lambda: ours(options.ranks, "thread"),
            "threaded group and allclose": lambda: threaded(options.ranks),
            "LocalTensor and allclose": lambda: local_tensor(options.ranks),
            "the modules alone": lambda: floor(options.ranks)}
    times = {name: seconds(way, options.repetitions) for name, way in ways.items()}
    for name, time_of in times.items():
        print(f"{name:28} {time_of:8.3f} s  {time_of / times['isolation=' + chr(34) + 'thread' + chr(34)]:6.2f}")


if __name__ == "__main__":
    main()
