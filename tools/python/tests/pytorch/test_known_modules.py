"""Modules whose arithmetic is known: judged alone, within the bound of their op."""

import pytest
import torch
import torch.distributed as dist
import torch.nn as nn
from blocks import INNER, WIDTH, Block, X, column_row, judged, slice_of

import shardproof.torch
from shardproof.torch._pieces import Partial, Shard


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("profile", ["eager", "fused"])
def test_modules_of_known_arithmetic_are_judged_alone(dtype, profile):
    report = judged(column_row, False, dtype, reference=lambda: Block().to(dtype), max_amplification=None,
                    profile=profile)

    assert (report.verdict, report.first_divergence) == ("pass", None), str(report)
    alone = {tap.name: tap.other["alone"] for tap in report.taps if "alone" in tap.other}
    assert list(alone) == ["norm", "up", "down"] and max(alone.values()) <= 1
    assert (min(alone.values()) > 0) == (dtype != torch.float64)  # where the reference runs through the same kernels
    assert "3 of 8 tensors are judged alone" in str(report)


def test_what_an_estimate_would_let_pass_is_beyond_the_bound_of_its_op():
    class Nudged(torch.autograd.Function):
        """One element by 64 units in the last place."""

        @staticmethod
        def forward(ctx, y):
            y = y.clone()
            y[0, 0] *= 1 + (2 ** -18 if dist.get_rank() == 2 else 0)
            return y

        @staticmethod
        def backward(ctx, gradient):
            return gradient

    def main(told):
        dist.init_process_group()
        block = slice_of(4)
        block.up.register_forward_hook(lambda module, arguments, y: Nudged.apply(y))
        shardproof.torch.watch(block, placements={"down": Partial(), **told})
        block(X)

    report = judged(main, {}, max_amplification=1000, step=lambda block: block(X))

    assert (report.verdict, report.first_divergence.tap) == ("mismatch", "up")
    assert report.first_divergence.index == [0, 2 * INNER // 4] and report.first_divergence.ranks == [2]
    assert "of the module alone" in report.first_divergence.message
    # What a module got is not known if the place that is named does not hold it.
    report = judged(main, {"up.input": [Shard(0)]}, max_amplification=None, step=lambda block: block(X))
    assert "up" not in [tap.name for tap in report.taps if "alone" in tap.other]


def test_a_wrong_slice_of_what_a_module_gets_is_named_at_the_module():
    def main():
        dist.init_process_group()
        block, rank = slice_of(4), dist.get_rank()
        with torch.no_grad():  # after its weights were right
            shardproof.torch.watch(block, placements={"down": Partial()})
            right = block.down.forward
            block.down.forward = lambda x: right(x.flip(-1)) if rank == 1 else right(x)
        block(X)

    report = judged(main, max_amplification=None, step=lambda block: block(X))

    assert (report.verdict, report.first_divergence.tap) == ("mismatch", "down")


class Summed(nn.Module):
    """Linears one after the other; what the first gives is summed over the ranks where it lies."""

    def __init__(self, ranks=1):
        super().__init__()
        self.ranks = ranks
        self.down = nn.Linear(INNER // ranks, WIDTH, bias=False)
        self.last = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x):
        y = self.down(x)
        if self.ranks > 1:
            dist.all_reduce(y)
        return self.last(y)


def test_what_a_collective_changes_in_place_is_recorded_as_it_was_and_as_it_is():
    with torch.random.fork_rng():
        whole = Summed()
    x = X.repeat(1, INNER // WIDTH)

    def main():
        dist.init_process_group()
        rank, block = dist.get_rank(), Summed(4)
        block.load_state_dict({"down.weight": whole.down.weight.chunk(4, 1)[rank], "last.weight": whole.last.weight})
        with torch.no_grad():
            shardproof.torch.watch(block, placements={"down": Partial()})
            block(x.chunk(4, 1)[rank].contiguous())

    report = judged(main, max_amplification=None, reference=lambda: whole, step=lambda block: block(x))

    assert report.verdict == "pass", str(report)
    assert [tap.name for tap in report.taps if "alone" in tap.other] == ["down", "last"]


def test_weights_that_change_on_the_way_are_not_held_to_what_they_were():
    def main():
        dist.init_process_group()
        block = shardproof.torch.watch(slice_of(4), placements={"down": Partial()})
        block(X)
        with torch.no_grad():
            block.up.weight.mul_(2)
        block(X)

    def step(block):
        block(X)
        with torch.no_grad():
            block.up.weight.mul_(2)
        block(X)

    report = judged(main, max_amplification=None, step=step)

    assert report.verdict == "pass", str(report)
    assert [tap.name for tap in report.taps if "alone" in tap.other] == ["norm", "up", "down", "norm#1", "down#1"]


def test_what_converts_on_the_way_is_not_held_to_the_format_that_it_gives():
    def main():
        dist.init_process_group()
        block = shardproof.torch.watch(slice_of(4), placements={"down": Partial()})
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            block(X)

    report = judged(main, max_amplification=None, step=lambda block: block(X))

    assert "up" in [tap.name for tap in report.taps]
    assert [tap.name for tap in report.taps if "alone" in tap.other] == ["norm"]


class EveryKnown(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(16, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.rms = nn.RMSNorm(WIDTH, eps=1e-5)
        self.biased = nn.Linear(WIDTH, 2 * WIDTH)
        self.activations = nn.ModuleList([nn.SiLU(), nn.GELU(), nn.GELU("tanh"), nn.Sigmoid(), nn.Tanh(), nn.ReLU()])

    def forward(self, ids):
        h = self.biased(self.rms(self.norm(self.embedding(ids)) + 3))
        return sum(activation(8 * h) for activation in self.activations)


@pytest.mark.skipif(not hasattr(nn, "RMSNorm"), reason="since 2.4")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_every_known_module_is_within_its_bound(dtype):
    ids = torch.arange(2 * 128).reshape(2, 128) * 7 % 16

    def main():
        dist.init_process_group()
        torch.manual_seed(9)
        module = EveryKnown().to(dtype)
        shardproof.torch.watch(module)(ids[dist.get_rank()][None])

    report = judged(main, world_size=2, reference=lambda: EveryKnown().to(dtype), step=lambda module: module(ids),
                    max_amplification=None)

    assert report.verdict == "pass", str(report)
    alone = {tap.name: tap.other["alone"] for tap in report.taps if "alone" in tap.other}
    assert len(alone) == 10 and (max(alone.values()) > 0.1 or dtype == torch.float64)
