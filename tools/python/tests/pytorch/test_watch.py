"""Sharded modules held to the unsharded one: right programs, and the bugs that people have had, each by its name."""

import os

import pytest
import torch
import torch.distributed as dist
import torch.distributed.fsdp
import torch.nn as nn
import torch.nn.functional as F
from ranks import run
from torch.distributed.device_mesh import init_device_mesh

import shardproof
import shardproof.torch
from shardproof.torch._pieces import Partial, Replicate, Shard

HERE = os.path.basename(__file__)
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_a_column_and_row_parallel_pair_passes_with_its_gradients(dtype):
    def verdict(skips):
        return judged(column_row, skips, dtype, reference=lambda: Block().to(dtype), max_amplification=8)

    report = verdict(skips=False)

    assert report.verdict == "pass", str(report)
    names = [tap.name for tap in report.taps]
    assert names[:4] == ["norm", "up", "down", "model"]
    assert names[4:] == ["down.weight.grad", "up.weight.grad", "norm.bias.grad", "norm.weight.grad"]
    assert 0 < report.amplification["max"] < 8
    assert "up: taken for Shard(1) along world" in report.notes
    assert verdict(skips=True).verdict == "mismatch"


def only_the_whole(skips):
    dist.init_process_group()
    shardproof.torch.watch(slice_of(4), "model")(X, skips)


def test_an_estimate_decides_nothing_unless_it_is_told_to():
    for skips in (False, True):
        report = judged(only_the_whole, skips, max_amplification=None, step=lambda block: block(X))
        assert (report.verdict, report.exit_code) == ("inconclusive", 4) and "decide nothing" in str(report)
        assert (report.first_divergence is not None) == skips


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
    assert [tap.name for tap in report.taps if "alone" in tap.other] == ["norm", "up", "down"]


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


def test_a_skipped_all_reduce_is_named_at_its_module():
    report = judged(column_row, True)

    assert (report.verdict, report.exit_code, report.first_divergence.tap) == ("mismatch", 1, "model")
    assert report.first_divergence.ranks == [0, 1, 2, 3]
    assert "estimated" in report.first_divergence.message


def sequence_parallel(sums_norm):
    dist.init_process_group()
    mesh = init_device_mesh("cpu", (4,), mesh_dim_names=("tp",))
    block = shardproof.torch.watch(slice_of(4, sp=True), mesh=mesh, placements={"down": Partial()})
    rank = dist.get_rank()
    loss_of(block(X.chunk(4)[rank]), TARGET.chunk(4)[rank]).backward()
    if sums_norm:
        for parameter in block.norm.parameters():
            dist.all_reduce(parameter.grad)


def test_a_norm_whose_gradients_nobody_sums_under_sequence_parallelism_is_named():
    assert judged(sequence_parallel, True).verdict == "pass"

    report = judged(sequence_parallel, False)

    assert report.first_divergence.tap in ("norm.weight.grad", "norm.bias.grad")
    assert report.first_divergence.cause.name == "reduction_dropped"
    assert "a tp group" in report.first_divergence.cause.evidence


class Routed(nn.Module):
    """Two experts, the router's balance as a loss of its own; the tokens lie on `dp` ranks."""

    def __init__(self, dp=1, doubled=False):
        super().__init__()
        self.dp, self.doubled = dp, doubled
        self.router = nn.Linear(WIDTH, 2, bias=False)
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(2))

    def forward(self, x):
        scores = self.router(x).softmax(-1)
        share = scores.sum(0) / TOKENS
        if self.dp > 1:
            share = Reduce.apply(share)
            if self.doubled:
                dist.all_reduce(share.data)  # in place: again
        balance = share.square().sum()
        shardproof.torch.tap("share", share)
        y = sum(scores[:, e:e + 1] * expert(x) for e, expert in enumerate(self.experts))
        return y, balance


torch.manual_seed(8)
ROUTED = Routed().state_dict()


def routed_step(module):
    y, balance = module(X)
    (y.square().sum() + balance).backward()


def routed(doubled):
    dist.init_process_group()
    module = Routed(4, doubled)
    module.load_state_dict(ROUTED)
    mesh = init_device_mesh("cpu", (4,), mesh_dim_names=("dp",))
    shardproof.torch.watch(module, ["experts.*", "router"], mesh=mesh)
    y, balance = module(X.chunk(4)[dist.get_rank()])
    (y.square().sum() + balance).backward()
    for parameter in module.parameters():
        dist.all_reduce(parameter.grad)


def test_an_auxiliary_loss_that_is_summed_twice_is_named():
    assert judged(routed, False, reference=Routed, step=routed_step).verdict == "pass"

    report = judged(routed, True, reference=Routed, step=routed_step)

    assert (report.first_divergence.tap, report.first_divergence.cause.name) == ("share", "counted_n_times")


def trained(scales):
    """Adam's epsilon makes its steps depend on the size of gradients."""
    dist.init_process_group()
    block = slice_of(4)
    optimizer = torch.optim.Adam(block.parameters(), lr=0.1, eps=1e-2)
    shardproof.torch.watch(block, placements={"down": Partial()}, optimizer=optimizer)
    for _ in range(2):
        optimizer.zero_grad()
        loss_of(block(X), TARGET).backward()
        if scales and dist.get_rank() == 1:
            block.up.weight.grad *= 2
        optimizer.step()
    block.up.weight.grad /= 1 + scales * (dist.get_rank() == 1)


def whole_training(block):
    optimizer = torch.optim.Adam(block.parameters(), lr=0.1, eps=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        loss_of(block(X), TARGET).backward()
        optimizer.step()
    return optimizer


def test_what_an_optimizer_keeps_is_held_to_the_references():
    right = judged(trained, False, step=whole_training, max_amplification=64)
    assert right.verdict == "pass", str(right)
    assert {"up.weight.exp_avg", "up.weight.exp_avg_sq", "up.weight.after"} <= {tap.name for tap in right.taps}

    wrong = judged(trained, True, step=whole_training, max_amplification=64)

    assert wrong.verdict == "mismatch"
    verdicts = {tap.name: tap.verdict for tap in wrong.taps}
    assert verdicts["up.weight.exp_avg"] == verdicts["up.weight.after"] == "mismatch"
    with pytest.raises(ValueError, match="gives nothing named norm.weight.exp_avg"):
        judged(trained, False, step=lambda block: [whole_training(block)])


def fsdp(factor):
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group()
    mesh = init_device_mesh("cpu", (4,), mesh_dim_names=("dp",))
    block, rank = slice_of(1), dist.get_rank()
    for layer in (block.up, block.down, block):
        fully_shard(layer, mesh=mesh)
    shardproof.torch.watch(block, mesh=mesh)
    (loss_of(block(X.chunk(4)[rank]), TARGET.chunk(4)[rank]) * factor).backward()


@pytest.mark.skipif(not hasattr(torch.distributed.fsdp, "fully_shard"), reason="needs a GPU in this version")
def test_fsdp_that_takes_the_mean_where_the_sum_is_due_is_named():
    # FSDP divides by its ranks: a loss that is summed over tokens has to be multiplied by them.
    right = judged(fsdp, 4)
    assert right.verdict == "pass", str(right)

    report = judged(fsdp, 1)

    assert report.first_divergence.tap.endswith(".grad") and report.first_divergence.cause.name == "averaged"
    assert all(tap.verdict == "pass" for tap in report.taps if not tap.name.endswith(".grad"))


def test_tensor_parallel_modules_of_torch_bring_their_own_placements():
    tensor = pytest.importorskip("torch.distributed.tensor")
    if not hasattr(tensor, "distribute_tensor"):
        pytest.skip("private in this version")
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    def main(told):
        dist.init_process_group()
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
        block, replica = slice_of(1), mesh["dp"].get_local_rank()
        parallelize_module(block, mesh["tp"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
        rows = [Shard(0), Replicate()]
        shardproof.torch.watch(block, mesh=mesh, placements={
            "up": [Shard(0), Shard(-1)], **({"norm": rows, "down": rows, "model": rows} if told else {})})
        block(X.chunk(2)[replica])

    report = judged(main, True, step=lambda block: block(X))
    assert report.verdict == "pass", str(report)
    with pytest.raises(ValueError, match="norm: rank 0 holds .4, 8. of .8, 8.; say which part"):
        judged(main, False, step=lambda block: block(X))


def test_weights_have_to_cover_the_reference_and_to_agree():
    def main(how):
        dist.init_process_group()
        block = slice_of(4)
        if how == "replicas differ" and dist.get_rank() == 2:
            block.norm.weight.data[3] += 1
        if how == "too few" and dist.get_rank() == 2:
            return
        shardproof.torch.watch(block, placements={"down": Partial()}, mesh=dist_mesh())
        block(X)

    def dist_mesh():
        return init_device_mesh("cpu", (4,), mesh_dim_names=("tp",))

    report = judged(main, "replicas differ", step=lambda block: block(X), max_amplification=None)
    assert (report.verdict, report.first_divergence.tap) == ("mismatch", "norm.weight")
    assert report.first_divergence.ranks == [2]

    class Other(Block):
        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(WIDTH))

    with pytest.raises(ValueError, match="only in the reference: bias"):
        judged(main, "", reference=Other)
    with pytest.raises(ValueError, match="step= is needed"):
        judged(main, "", step=None)
    with pytest.raises(ValueError, match="step.module. gives nothing named norm"):
        judged(main, "", step=lambda block: None)
    with pytest.raises(TypeError, match="the unsharded nn.Module is needed"):
        judged(main, "", reference=lambda: 3)


def test_what_is_watched_is_named_right_or_refused():
    def main():
        dist.init_process_group()
        with pytest.raises(ValueError, match="no module is named nowhere: norm, up, down"):
            shardproof.torch.watch(slice_of(4), "nowhere")

    assert shardproof.torch.run(main, world_size=4).stall is None
    with pytest.raises(RuntimeError, match="outside of shardproof.torch.run"):
        shardproof.torch.watch(nn.Identity())
    shardproof.torch.tap("loss", torch.ones(1))  # in a program that runs without us: nothing


def test_every_call_of_a_module_is_a_step_of_its_own():
    def main():
        dist.init_process_group()
        block = shardproof.torch.watch(slice_of(4), "model")
        block(X)
        block(X * 2, dist.get_rank() == 9)
        block(X * 3)

    report = judged(main, step=lambda block: [block(X * k) for k in (1, 2, 4)])

    assert [tap.name for tap in report.taps] == ["model", "model#1", "model#2"]
    assert report.first_divergence.tap == "model#2"


class Rounding(nn.Module):
    """As many models do, it converts by name."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(WIDTH) * 1.1)

    def forward(self, x):
        h = x.float() * torch.tensor(1.0, dtype=torch.float32)
        h = h / h.to(torch.float32).square().mean(-1, keepdim=True).sqrt()
        return torch.softmax(h, -1, dtype=torch.float32).to(x.dtype) * self.scale


def test_the_reference_is_computed_in_float64_whatever_it_converts_to():
    from shardproof.torch._verdict import _run

    found, _ = _run(Rounding(), torch.float64, lambda module: F.mse_loss(module(X), TARGET).backward())

    x = X.double()
    expected = torch.softmax(x / x.square().mean(-1, keepdim=True).sqrt(), -1) * torch.tensor(1.1).double()
    assert abs(found["model", 0] - expected.numpy()).max() < 1e-15
    assert found["scale.grad", -1].dtype == float


def test_a_bound_as_large_as_the_values_proves_nothing():
    report = judged(only_the_whole, False, max_amplification=1e8, step=lambda block: block(X))

    assert report.verdict == "inconclusive" and "agreement proves nothing" in str(report)
