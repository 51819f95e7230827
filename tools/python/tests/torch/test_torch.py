"""PyTorch programs on virtual ranks: every call of torch.distributed, what stands on it, and what goes wrong."""

import copy
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
import torch.nn as nn
from torch.distributed.device_mesh import init_device_mesh

import shardproof
import shardproof.torch

HERE = os.path.basename(__file__)
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int8, torch.int16, torch.int32, torch.int64,
          torch.uint8]


ISOLATION = "process"


@pytest.fixture(autouse=True, params=["process", "thread"])
def isolation(request):
    """Every test runs in both, but those that look into the ranks' memory from outside."""
    if request.param == "process" and "threads" in request.keywords:
        pytest.skip("looks into the ranks' memory")
    globals()["ISOLATION"] = request.param


def run(main, **options):
    return shardproof.torch.run(main, **{"isolation": ISOLATION, **options})


def completes(main, world_size=4, **options):
    """Every rank comes to the end; nothing is expected, so that nothing is proven."""
    if ISOLATION == "process":
        options.pop("schedules", None)
    report = run(main, world_size=world_size, patience=20, **options)
    assert report.stall is None, str(report)
    assert report.verdict == "inconclusive" and "no tap is expected" in str(report)


def me():
    return dist.get_rank()


@pytest.fixture(autouse=True)
def nothing_stays_behind():
    threads, world, state = threading.active_count(), dist.distributed_c10d._world, torch.get_rng_state()
    files = len(os.listdir("/proc/self/fd"))
    yield
    deadline = time.monotonic() + 2
    while threading.active_count() > threads and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == threads
    assert dist.distributed_c10d._world is world and not dist.is_initialized()
    assert torch.equal(torch.get_rng_state(), state) and "RANK" not in os.environ
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= files


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
            for module, batch, optimizer in ((model, x[2 * me():2 * me() + 2], optimizers[0]), (whole, x, optimizers[1])):
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


def test_a_skipped_collective_is_a_proven_deadlock_with_its_lines():
    def main():
        dist.init_process_group()
        if me() != 2:
            dist.all_reduce(torch.ones(4))
        dist.barrier()

    began = time.monotonic()
    report = run(main, world_size=4)

    line = main.__code__.co_firstlineno
    assert time.monotonic() - began < 5 and report.stall.kind == "collective_mismatch"
    assert f"{HERE}:{line + 3}" in report.deadlock and f"{HERE}:{line + 4}" in report.deadlock
    assert "rank 2" in report.deadlock


def test_a_rank_that_leaves_is_named():
    def main():
        dist.init_process_group()
        if me() != 1:
            dist.barrier()

    report = run(main, world_size=3)

    assert report.stall.kind == "deadlock" and report.exit_code == 3 and f"{HERE}:{main.__code__.co_firstlineno + 3}" in report.deadlock
    assert "rank 1" in report.deadlock


def test_transposed_splits_are_named_by_their_edge():
    sent = [[1, 3], [2, 2]]

    def main():
        dist.init_process_group()
        splits = sent[me()]
        dist.all_to_all_single(torch.zeros(4), torch.ones(4), splits, splits)  # should be the column of `sent`

    report = run(main, world_size=2)

    assert report.stall.kind == "collective_mismatch"
    assert "rank 1 sends 2 elements to rank 0, which expects 3 from it" in report.deadlock


def test_a_collective_in_the_wrong_group_of_two_is_named():
    def main():
        dist.init_process_group()
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
        axis = "dp" if me() == 3 else "tp"
        dist.all_reduce(torch.ones(4), group=mesh[axis].get_group())

    report = run(main, world_size=4)

    assert report.stall.kind == "deadlock" and "[1,3]" in report.deadlock and "[2,3]" in report.deadlock


def test_what_a_rank_raises_is_the_cause_with_the_line_of_its_own_code():
    def main():
        dist.init_process_group()
        if me() == 1:
            torch.ones(2) @ torch.ones(3)
        dist.barrier()

    with pytest.raises(shardproof.RankError, match=f"{HERE}:{main.__code__.co_firstlineno + 3}") as error:
        run(main, world_size=3)
    assert error.value.rank == 1 and isinstance(error.value.__cause__, RuntimeError)
    assert "size" in str(error.value.__cause__)


def test_bad_input_says_what_to_do():
    def refuses(call, error, match):
        with pytest.raises(error, match=match):
            call()

    def main():
        with pytest.raises(ValueError, match="leave rank and world_size out"):
            dist.init_process_group("gloo", rank=5, world_size=9)
        dist.init_process_group("gloo")
        square = torch.ones(4, 4)
        refuses(lambda: dist.all_reduce(square.t()[:2]), ValueError, "pass x.contiguous")
        refuses(lambda: dist.all_reduce(torch.ones(2, device="meta")), TypeError, "device 'cpu'")
        refuses(lambda: dist.recv(square), ValueError, "depend on the schedule")
        refuses(lambda: dist.all_reduce(torch.ones(2, dtype=torch.int32), dist.ReduceOp.AVG), TypeError, "not defined")
        refuses(lambda: dist.all_gather_into_tensor(torch.ones(3), torch.ones(2)), ValueError, "3 elements, not 4")
        refuses(lambda: dist.all_to_all_single(square, square, [1, 1], [2, 2]), ValueError, "do not add up to dim 0")
        refuses(lambda: shardproof.torch.run(print, world_size=2), RuntimeError, "rank of another run")

    completes(main, 2)
    with pytest.raises(ValueError, match="at least one rank"):
        run(main, world_size=0)
    with pytest.raises(ValueError, match='"process" or "thread" is needed'):
        shardproof.torch.run(main, world_size=1, isolation="fibre")
    with pytest.raises(RuntimeError, match="outside of shardproof.torch.run"):
        shardproof.torch.rank()


def test_an_input_that_is_written_under_way_is_refused_with_the_line_of_the_call():
    def main():
        dist.init_process_group()
        x = torch.ones(4, dtype=torch.bfloat16)
        work = dist.all_reduce(x, async_op=True)
        x[2] = 3
        work.wait()

    report = run(main, world_size=2)

    assert "its input was written between issue and await, element 2" in report.deadlock
    assert f"{HERE}:{main.__code__.co_firstlineno + 3}" in report.deadlock


def test_an_interrupt_ends_a_run_in_which_a_rank_never_comes_back():
    code = """
import sys, threading, torch.distributed as dist, shardproof.torch
def main():
    dist.init_process_group()
    if dist.get_rank() == 1:
        print("waits", flush=True)
        threading.Event().wait()
    dist.barrier()
shardproof.torch.run(main, world_size=3, isolation=sys.argv[1])
"""
    child = subprocess.Popen([sys.executable, "-c", code, ISOLATION], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "waits\n"
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=30)
    assert child.returncode != 0 and "KeyboardInterrupt" in said


@pytest.mark.threads
def test_a_rank_that_stays_in_its_own_code_is_no_progress_with_its_stack():
    release = threading.Event()

    def main():
        dist.init_process_group()
        if me() == 1:
            release.wait()
        dist.barrier()

    report = run(main, world_size=2, patience=0.3)
    release.set()

    assert report.stall.kind == "no_progress" and "release.wait()" in report.stall.stacks[1]


def test_128_ranks_run():
    def main():
        dist.init_process_group()
        x = torch.ones(3)
        dist.all_reduce(x)
        assert x.tolist() == [128] * 3

    completes(main, 128)


GLOBAL = None


def test_globals_are_each_process_s_own():
    def main():
        global GLOBAL
        dist.init_process_group()
        GLOBAL = me()
        torch.manual_seed(me())
        dist.barrier()
        assert (GLOBAL, os.environ["RANK"], os.environ["WORLD_SIZE"]) == (me(), str(me()), "4")
        assert torch.rand(1) == torch.rand(1, generator=torch.Generator().manual_seed(me()))

    completes(main, isolation="process")
    assert GLOBAL is None


def test_a_process_that_dies_ends_the_run_and_is_named():
    def main():
        dist.init_process_group()
        if me() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        dist.barrier()

    with pytest.raises(shardproof.RankError, match="the process of rank 1 was ended by SIGKILL") as error:
        run(main, world_size=3, isolation="process")
    assert error.value.rank == 1


def test_a_process_that_stays_in_its_own_code_is_ended_and_shown():
    def main():
        dist.init_process_group()
        while me() == 1:
            time.sleep(0.01)
        dist.barrier()

    report = run(main, world_size=3, isolation="process", patience=0.4)

    assert report.stall.kind == "no_progress" and list(report.stall.stacks) == [1]
    assert f'{HERE}", line {main.__code__.co_firstlineno + 3}' in report.stall.stacks[1]
    assert "rank 1 runs code of its own" in report.deadlock or "rank 1 run code of" in report.deadlock


def test_a_process_with_threads_is_not_forked():
    release = threading.Event()
    thread = threading.Thread(target=release.wait, name="prefetch")
    thread.start()
    try:
        with pytest.raises(RuntimeError, match='this one has threads prefetch: call .* isolation="thread"'):
            run(print, world_size=2, isolation="process")
    finally:
        release.set()
        thread.join()
    with pytest.raises(ValueError, match="again and again"):
        run(print, world_size=2, isolation="process", schedules=3)


def test_memory_of_processes_grows_with_what_they_send_and_large_sums_are_right():
    def main():
        dist.init_process_group()
        for count in (10, 100_000, 3_000_000):
            x = torch.ones(count)
            works = [dist.all_reduce(x, async_op=True), dist.all_reduce(y := torch.ones(7), async_op=True)]
            for work in works[::-1]:
                work.wait()
            assert (x == 3).all() and (y == 3).all()

    completes(main, 3)


def test_the_readme_holds_the_example_and_what_it_prints():
    root = Path(os.environ["SHARDPROOF_SOURCE_DIR"])
    example = root / "tools" / "python" / "examples" / "torch_tensor_parallel.py"
    done = subprocess.run([sys.executable, str(example)], capture_output=True, text=True, check=True)

    readme = (root / "README.md").read_text()
    assert example.read_text() in readme and done.stdout in readme
