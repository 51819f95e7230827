"""Sharded modules held to the unsharded one: right programs, and the bugs that people have had, each by its name."""

import gc
import weakref

import pytest
import torch
import torch.distributed as dist
import torch.distributed.fsdp
import torch.nn as nn
import torch.nn.functional as F
from blocks import TARGET, TOKENS, WIDTH, Block, Reduce, X, column_row, judged, loss_of, slice_of
from torch.distributed.device_mesh import init_device_mesh

import shardproof
import shardproof.torch
from shardproof.torch._pieces import Copies, Partial, Replicate, Shard


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


@pytest.mark.threads
def test_what_was_recorded_and_is_as_it_was_is_not_copied_again():
    copies, x = Copies(), torch.arange(6.0)
    first = copies.of(x)
    assert copies.of(x) is first and torch.equal(first, x)
    x.numpy()[0] = -0.0  # where autograd does not see it
    second = copies.of(x)
    assert second is not first and torch.signbit(second[0]) and not torch.signbit(first[0])
    turned = torch.tensor([1 + 2j, 3 + 4j]).conj().imag  # read through a sign that its memory does not have
    assert torch.equal(copies.of(turned), copies.of(turned))


@pytest.mark.threads
def test_a_run_leaves_nothing_behind_and_what_was_frozen_frozen():
    models = []

    def main(raises=False):
        dist.init_process_group()
        model = shardproof.torch.watch(slice_of(4), placements={"down": Partial()})
        models.append(weakref.ref(model))
        model(X)
        if raises:
            raise ValueError("on purpose")

    options = dict(world_size=4, isolation="thread", reference=Block, step=lambda block: block(X))
    shardproof.torch.run(main, **options)
    with pytest.raises(shardproof.RankError, match="on purpose"):
        shardproof.torch.run(main, args=(True,), **options)
    assert len(models) == 8 and not any(model() for model in models[:4])
    assert gc.get_freeze_count() == 0

    gc.freeze()
    try:
        shardproof.torch.run(main, **options)
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
