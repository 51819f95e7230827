"""A sharded block, its unsharded reference, and how the tests hold one to the other."""

import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from ranks import run

import shardproof.torch
from shardproof.torch._pieces import Partial

TOKENS, WIDTH, INNER = 8, 8, 32
DATA = torch.Generator().manual_seed(3)
X = torch.randn(TOKENS, WIDTH, generator=DATA)
TARGET = torch.randn(TOKENS, WIDTH, generator=DATA)


class Reduce(torch.autograd.Function):
    """Megatron's g: sums forward."""

    @staticmethod
    def forward(ctx, x):
        y = x.clone()
        dist.all_reduce(y)
        return y

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Copy(torch.autograd.Function):
    """Megatron's f: sums backward."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return Reduce.forward(ctx, gradient)


class GatherTokens(torch.autograd.Function):
    """Megatron's g-bar: gathers the sequence forward, reduces and scatters backward."""

    @staticmethod
    def forward(ctx, x):
        whole = x.new_empty(dist.get_world_size() * x.shape[0], *x.shape[1:])
        dist.all_gather_into_tensor(whole, x.contiguous())
        return whole

    @staticmethod
    def backward(ctx, gradient):
        mine = gradient.new_empty(gradient.shape[0] // dist.get_world_size(), *gradient.shape[1:])
        dist.reduce_scatter_tensor(mine, gradient.contiguous())
        return mine


class ScatterTokens(torch.autograd.Function):
    forward = GatherTokens.backward
    backward = GatherTokens.forward


class Block(nn.Module):
    """Norm, up, down; `tp` ranks share the inner width, and with `sp` the tokens outside of it."""

    def __init__(self, tp=1, sp=False):
        super().__init__()
        self.tp, self.sp = tp, sp
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, INNER // tp, bias=False)
        self.down = nn.Linear(INNER // tp, WIDTH, bias=False)

    def forward(self, x, skips=False):
        h = self.norm(x)
        if self.tp > 1:
            h = GatherTokens.apply(h) if self.sp else Copy.apply(h)
        y = self.down(F.gelu(self.up(h)))
        if self.tp > 1 and not skips:
            y = ScatterTokens.apply(y) if self.sp else Reduce.apply(y)
        return x + y


torch.manual_seed(7)
WEIGHTS = Block().state_dict()
WEIGHTS["norm.weight"] = torch.rand(WIDTH) + 0.5


def slice_of(tp, sp=False, dtype=torch.float32):
    block, rank = Block(tp, sp).to(dtype), dist.get_rank() % tp
    with torch.no_grad():
        block.norm.weight.copy_(WEIGHTS["norm.weight"])
        block.norm.bias.copy_(WEIGHTS["norm.bias"])
        block.up.weight.copy_(WEIGHTS["up.weight"].chunk(tp, 0)[rank])
        block.down.weight.copy_(WEIGHTS["down.weight"].chunk(tp, 1)[rank])
    return block


def loss_of(y, target):
    return (y - target.to(y.dtype)).square().sum()


def whole_step(block):
    loss_of(block(X), TARGET).backward()


def judged(main, *args, reference=Block, step=whole_step, max_amplification=32, world_size=4, **options):
    return run(main, world_size=world_size, args=args, reference=reference, step=step,
               max_amplification=max_amplification, **options)


def column_row(skips=False, dtype=torch.float32):
    dist.init_process_group()
    block = shardproof.torch.watch(slice_of(4, dtype=dtype), placements={"down": Partial()})
    loss_of(block(X.to(dtype), skips), TARGET).backward()
