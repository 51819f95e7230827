"""PyTorch programs on virtual ranks: every call of torch.distributed, and what stands on it."""

import copy
import os

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
import torch.nn as nn
from ranks import completes, me
from torch.distributed.device_mesh import init_device_mesh

import shardproof.torch

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int8, torch.int16, torch.int32,
          torch.int64, torch.uint8]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_collectives_give_what_torch_defines(dtype):
    def main():
        dist.init_process_group("gloo")
        r, n = me(), 4
        x = torch.full((3,), r + 1, dtype=dtype)
        for op, value in ((dist.ReduceOp.SUM, 10), (dist.ReduceOp.MAX, 4), (dist.ReduceOp.MIN, 1),
                          (dist.ReduceOp.PRODUCT, 24)):
            y = x.clone()
            dist.all_reduce(y, op)
            assert y.dtype == dtype and y.tolist() == [value] * 3
        y = x.clone()
        dist.reduce(y, 2)
        assert y.tolist() == ([10] * 3 if r == 2 else x.tolist())
        y = x.clone()
        dist.broadcast(y, 1)
        assert y.tolist() == [2] * 3
        parts = [torch.zeros_like(x) for _ in range(n)]
        dist.all_gather(parts, x)
        assert [p[0].item() for p in parts] == [1, 2, 3, 4]
        whole = torch.zeros(12, dtype=dtype)
        dist.all_gather_into_tensor(whole, x)
        assert whole.tolist() == [1] * 3 + [2] * 3 + [3] * 3 + [4] * 3
        mine = torch.zeros(3, dtype=dtype)
        dist.reduce_scatter_tensor(mine, torch.arange(12).to(dtype))
        assert mine.tolist() == [4 * (3 * r + i) for i in range(3)]
        dist.reduce_scatter(mine, [x * 0 + i for i in range(n)])
        assert mine.tolist() == [4 * r] * 3
        got = torch.zeros(4, dtype=dtype)
        dist.all_to_all_single(got, torch.arange(4).to(dtype) + 10 * r)
        assert got.tolist() == [r, 10 + r, 20 + r, 30 + r]
        got = [torch.zeros(2, dtype=dtype) for _ in range(n)]
        dist.all_to_all(got, [torch.full((2,), 10 * r + j, dtype=dtype) for j in range(n)])
        assert [g[1].item() for g in got] == [r, 10 + r, 20 + r, 30 + r]
        dist.scatter(mine, [x * 0 + i for i in range(n)] if r == 3 else None, src=3)
        assert mine.tolist() == [r] * 3
        dist.gather(x, parts if r == 1 else None, dst=1)
        assert r != 1 or [p[2].item() for p in parts] == [1, 2, 3, 4]
        dist.barrier()

    completes(main)


def test_bool_and_complex_are_what_they_are_in_torch():
    def main():
        dist.init_process_group()
        flag = torch.tensor([me() == 1, False, True])
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        assert flag.tolist() == [True, False, True]
        flags = [torch.zeros(1, dtype=torch.bool) for _ in range(2)]
        dist.all_gather(flags, torch.tensor([me() == 1]))
        assert [f.item() for f in flags] == [False, True]
        z = torch.tensor([1j * (me() + 1)])
        dist.all_reduce(z)
        assert z.item() == 3j
        bits = torch.tensor([1 << me()])
        dist.all_reduce(bits, dist.ReduceOp.BOR)
        assert bits.item() == 3

    completes(main, 2)


def test_uneven_splits_are_rows_and_object_collectives_carry_anything():
    def main():
        dist.init_process_group()
        r = me()
        rows = torch.full((r + 1, 2), float(r))
        out = torch.zeros(3, 2) if r == 0 else torch.zeros(0, 2)
        dist.all_to_all_single(out, rows, [1, 2] if r == 0 else [0, 0], [r + 1, 0])
        assert r == 1 or out.tolist() == [[0, 0], [1, 1], [1, 1]]
        things = [None, None]
        dist.all_gather_object(things, {"rank": r, "list": [r] * (r + 1)})
        assert things == [{"rank": 0, "list": [0]}, {"rank": 1, "list": [1, 1]}]
        box = [("from", r)]
        dist.broadcast_object_list(box, src=1)
        assert box == [("from", 1)]
        lists = [torch.zeros(1), torch.zeros(2)]
        dist.all_gather(lists, torch.full((r + 1,), r + 1.0))
        assert [t.tolist() for t in lists] == [[1], [2, 2]]

    completes(main, 2, schedules=3)


def test_messages_async_works_and_batches():
    def main():
        dist.init_process_group()
        r, n = me(), 4
        if r == 0:
            dist.send(torch.arange(3.0), 1)
        if r == 1:
            x = torch.zeros(3)
            assert dist.recv(x, 0) == 0 and x.tolist() == [0, 1, 2]
        if r < 2:  # tags are met in any order
            sent = [dist.isend(torch.full((1,), float(tag)), 1 - r, tag=tag) for tag in (1, 2)]
            for tag in (2, 1):
                dist.recv(one := torch.zeros(1), 1 - r, tag=tag)
                assert one.item() == tag
            for work in sent:
                work.wait()
        got = torch.zeros(2)
        ops = [dist.P2POp(dist.isend, torch.full((2,), float(r)), (r + 1) % n),
               dist.P2POp(dist.irecv, got, (r - 1) % n)]
        for work in dist.batch_isend_irecv(ops):
            work.wait()
        assert got.tolist() == [(r - 1) % n] * 2
        x = torch.ones(2)
        out = torch.zeros(8)
        first = dist.all_reduce(x, async_op=True)
        second = dist.all_gather_into_tensor(out, torch.full((2,), float(r)), async_op=True)
        assert out.isnan().all()  # until it is waited for
        second.wait()
        first.wait()
        assert x.tolist() == [4, 4] and out[::2].tolist() == [0, 1, 2, 3]
        future = dist.all_reduce(x, async_op=True).get_future().then(lambda f: f.value()[0] / 4)
        assert future.wait().tolist() == [4, 4]
        dist.all_reduce(torch.ones(1), async_op=True)  # never waited for: at the end

    completes(main, schedules=3)


def test_groups_meshes_and_functional_collectives():
    def main():
        dist.init_process_group("gloo")
        assert dist.get_backend() == "gloo"
        dist.monitored_barrier()
        pair = dist.new_group([0, 2])
        same = dist.new_group([0, 2])
        if me() in (0, 2):
            x, y = torch.ones(1) * me(), torch.ones(1)
            # Groups of the same ranks are two: their calls may cross.
            works = [dist.all_reduce(x, group=pair, async_op=True), dist.all_reduce(y, group=same, async_op=True)]
            for work in works if me() == 0 else works[::-1]:
                work.wait()
            assert (x.item(), y.item()) == (2, 2)
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
        y = funcol.all_reduce(torch.ones(2) * me(), "sum", mesh["tp"])
        assert (y + 0).tolist() == [1 if me() < 2 else 5] * 2
        z = funcol.all_gather_tensor(torch.ones(1) * me(), 0, mesh["dp"].get_group())
        assert (z + 0).tolist() == [me() % 2, 2 + me() % 2]
        s = funcol.reduce_scatter_tensor(torch.arange(4.0), "avg", 0, dist.group.WORLD)
        assert (s + 0).tolist() == [me()]
        a = funcol.all_to_all_single(torch.arange(4.0), [1] * 4, [1] * 4, dist.group.WORLD)
        assert (a + 0).tolist() == [me()] * 4
        dist.destroy_process_group()
        assert not dist.is_initialized()

    completes(main)


@pytest.mark.threads
def test_every_rank_has_its_own_random_numbers_and_environment():
    seen = {}

    def main():
        dist.init_process_group()
        torch.manual_seed(me())
        first = torch.rand(2)
        dist.barrier()
        seen[me()] = (first.tolist() + torch.rand(2).tolist(), os.environ["RANK"], shardproof.torch.rank())

    completes(main, 3)

    for rank, (numbers, variable, asked) in seen.items():
        generator = torch.Generator().manual_seed(rank)
        assert numbers == torch.rand(2, generator=generator).tolist() + torch.rand(2, generator=generator).tolist()
        assert (variable, asked) == (str(rank), rank)


@pytest.mark.threads
@pytest.mark.parametrize("algorithm", ["rank_order", "ring", "tree", "recursive_doubling"])
def test_sums_are_taken_in_the_order_that_was_chosen(algorithm):
    values = torch.randn(4, 64, generator=torch.Generator().manual_seed(1)) * 10.0 ** torch.arange(-3, 61).fmod(4)
    results = {}

    def main():
        dist.init_process_group()
        x = values[me()].clone()
        dist.all_reduce(x)
        results.setdefault(me(), []).append(x)

    completes(main, schedules=2, algorithm=algorithm)

    assert all(torch.equal(x, results[0][0]) for runs in results.values() for x in runs)
    if algorithm == "rank_order":
        assert torch.equal(results[0][0], ((values[0] + values[1]) + values[2]) + values[3])


def mlp():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    return model, copy.deepcopy(model), torch.randn(8, 8)


def test_ddp_trains_as_one_process_would():
    def main():
        dist.init_process_group("gloo")
        model, whole, x = mlp()
        ddp = nn.parallel.DistributedDataParallel(model)
        for module, batch in ((ddp, x[2 * me():2 * me() + 2]), (whole, x)):
            for _ in range(2):
                module(batch).square().mean().backward()
        for mine, theirs in zip(model.parameters(), whole.parameters()):
            torch.testing.assert_close(mine.grad, theirs.grad)

    completes(main)


def test_dtensor_and_tensor_parallel_modules():
    tensor = pytest.importorskip("torch.distributed.tensor", reason="private in this version")
    if not hasattr(tensor, "distribute_tensor"):
        pytest.skip("private in this version")
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    def main():
        dist.init_process_group("gloo")
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
        model, whole, x = mlp()
        d = distribute_tensor(x[:5], mesh, [Shard(0), Shard(1)])
        assert torch.equal(d.redistribute(mesh, [Shard(1), Replicate()]).full_tensor(), x[:5])
        torch.testing.assert_close(torch.softmax(d, -1).full_tensor(), torch.softmax(x[:5], -1))
        parallelize_module(model, mesh["tp"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
        for module in (model, whole):
            module(x).square().mean().backward()
        for mine, theirs in zip(model.parameters(), whole.parameters()):
            torch.testing.assert_close(mine.grad.full_tensor(), theirs.grad)

    completes(main)


def test_fsdp2_shards_and_trains():
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    if not hasattr(fsdp, "fully_shard"):
        pytest.skip("needs a GPU in this version")

    def main():
        dist.init_process_group("gloo")
        mesh = init_device_mesh("cpu", (4,))
        model, whole, x = mlp()
        for layer in (model[0], model[2], model):
            fsdp.fully_shard(layer, mesh=mesh)
        optimizers = [torch.optim.Adam(module.parameters(), lr=0.01) for module in (model, whole)]
        for _ in range(2):
            for module, batch, optimizer in zip((model, whole), (x[2 * me():2 * me() + 2], x), optimizers):
                optimizer.zero_grad()
                module(batch).square().mean().backward()
                optimizer.step()
        for mine, theirs in zip(model.parameters(), whole.parameters()):
            torch.testing.assert_close(mine.full_tensor(), theirs)

    completes(main)


@pytest.mark.parametrize("schedule", ["ScheduleGPipe", "Schedule1F1B"])
def test_pipeline_schedules_move_their_microbatches(schedule):
    pipelining = pytest.importorskip("torch.distributed.pipelining")
    if not hasattr(dist.tensor, "distribute_tensor"):
        pytest.skip("stages of this version want their input's shapes")

    def main():
        dist.init_process_group("gloo")
        torch.manual_seed(0)
        layers = [nn.Linear(8, 8) for _ in range(4)]
        stage = pipelining.PipelineStage(layers[me()], me(), 4, torch.device("cpu"))
        steps = getattr(pipelining, schedule)(stage, 4, loss_fn=lambda a, b: (a - b).square().mean())
        x, target = torch.randn(8, 8), torch.randn(8, 8)
        out = steps.step(*([x] if me() == 0 else []), **({"target": target, "losses": []} if me() == 3 else {}))
        if me() == 3:
            torch.testing.assert_close(out, nn.Sequential(*layers)(x))

    completes(main)
