"""Schemes in Python: values, verdicts, stalls, schedules and bad input."""

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import shardproof
from shardproof import Listed, Partial, Shard

HERE = os.path.basename(__file__)
SUM = np.arange(8.0).reshape(2, 4)


def passing(fn, **options):
    report = shardproof.run(fn, **options)
    assert report.verdict == "pass", str(report)
    return report


@pytest.mark.parametrize("algorithm", ["rank_order", "ring", "tree", "recursive_doubling"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.int64])
def test_all_reduce_changes_the_array_in_place_and_returns_it(algorithm, dtype):
    def sums(rank):
        x = (SUM * (rank.world.rank + 1)).astype(dtype)
        assert rank.world.all_reduce(x, algorithm=algorithm) is x
        rank.tap("sum", x)

    passing(sums, dp=5, expected={"sum": SUM * 15})


def test_every_operation_moves_what_its_name_says():
    def moves(rank):
        world, me = rank.world, rank.world.rank
        rows = np.full((2, 3), me, np.int64)
        assert world.all_gather(rows)[::2, 0].tolist() == [0, 1, 2]
        assert world.reduce_scatter(np.arange(6.0)).tolist() == [6.0 * me, 6.0 * me + 3]
        assert world.all_to_all(np.arange(3) + 10 * me).tolist() == [me, 10 + me, 20 + me]
        assert world.broadcast(np.full(2, me), root=1).tolist() == [1, 1]
        assert world.reduce(np.full(1, me + 1.0), root=2).tolist() == ([6.0] if me == 2 else [me + 1.0])
        assert world.all_reduce(np.array([me]), "max").tolist() == [2]
        got = world.all_to_all(np.full((me, 2), me), [me if j == 0 else 0 for j in range(3)],
                               [0, 1, 2] if me == 0 else [0, 0, 0])
        assert got.tolist() == ([[1, 1], [2, 2], [2, 2]] if me == 0 else [])
        if me == 0:
            world.send(np.array([7.0]), to=2)
        if me == 2:
            assert world.recv(np.zeros(1), source=0).tolist() == [7]
        if me != 1:
            pair = rank.group([2, 0])
            assert (pair.members, pair.size) == ([2, 0], 2)
            assert pair.all_gather(np.array([me])).tolist() == [2, 0]
        world.barrier()
        rank.tap("done", np.array([[1.0, 2.0]]))

    passing(moves, cp=3, schedules=3, expected={"done": [[1, 2]]})


def test_aliases_do_what_torch_mpi4py_and_jax_call_so():
    def aliases(rank):
        world, me = rank.world, rank.world.rank
        out = np.empty(2)
        world.all_gather_into_tensor(out, np.array([float(me)]))
        assert out.tolist() == [0, 1]
        world.Allreduce(np.full(2, me + 1.0), out, "ReduceOp.SUM")
        assert out.tolist() == [3, 3]
        kept = np.full(2, float(me))
        assert (world.pmean(kept).tolist(), kept.tolist()) == ([0.5, 0.5], [me, me])
        one = np.empty(1)
        world.reduce_scatter_tensor(one, np.array([1.0, 2.0]))
        assert one.tolist() == [2.0 * (me + 1)]
        world.all_to_all_single(out, np.array([me, me + 10.0]))
        assert out.tolist() == ([0, 1] if me == 0 else [10, 11])
        assert (world.Get_rank(), world.Get_size()) == (me, 2)
        rank.tap("done", np.array([[1.0, 2.0]]))

    passing(aliases, tp=2, expected={"done": [[1, 2]]})


def test_float16_is_reduced_in_its_own_format_and_moved_by_its_bits():
    def half(rank):
        x = np.full(2, 2048 + rank.id, np.float16)  # 2049 is none of float16: it is 2048
        assert rank.tp.all_gather(x).dtype == np.float16
        rank.tap("sum", rank.tp.all_reduce(x))
        rank.tap("id", np.arange(2.0))

    report = shardproof.run(half, tp=2, expected={"sum": [4096.0, 4097.0], "id": [0, 1]})
    assert report.first_divergence.got == 4096


def test_placements_say_which_part_of_the_whole_a_rank_holds():
    whole = np.arange(2 * 6 * 4, dtype=float).reshape(2, 6, 4)
    flat = whole.reshape(12, 4)

    def parts(rank):
        t, d = rank.tp.rank, rank.dp.rank
        rank.tap("middle", whole[:, 3 * t:3 * t + 3], Shard(1))
        rank.tap("grid", flat[6 * d:6 * d + 6, 2 * t:2 * t + 2], [Shard(0, "dp"), Shard(1, "tp")])
        rank.tap("last", flat[:, 2 * t:2 * t + 2], Shard(-1))
        rank.tap("partial", flat * (t + 1), Partial("tp"))
        rank.tap("listed", flat[t::2], Listed(range(t, 12, 2)))
        rank.tap("uneven", flat[:5] if t == 0 else flat[5:], Shard(0, begin=0 if t == 0 else 5))
        for step in range(2):
            rank.tap("loss", np.array([step + 1.0, 5.0]), step=step, replicas=["dp"])

    passing(parts, tp=2, dp=2, expected={
        "middle": whole, "grid": flat, "last": flat, "partial": flat * 3, "listed": flat, "uneven": flat,
        ("loss", 0): [1.0, 5.0], ("loss", 1): [2.0, 5.0]})


def test_a_part_of_the_wrong_shape_is_refused_with_both_shapes():
    with pytest.raises(shardproof.RankError, match=r"a part of shape \[2, 4\] is tapped") as error:
        shardproof.run(lambda rank: rank.tap("y", SUM, Shard(0)), tp=2, expected={"y": SUM})
    assert isinstance(error.value.__cause__, ValueError)


def test_a_dropped_reduction_is_named_with_its_ranks():
    def forgets(rank):
        y = SUM * (rank.tp.rank + 1)
        if rank.dp.rank == 0:
            rank.tp.all_reduce(y)
        rank.tap("y", y)

    report = shardproof.run(forgets, tp=2, dp=2, expected={"y": 3 * SUM})

    assert (report.verdict, report.first_divergence.ranks) == ("mismatch", [2, 3])
    assert report.first_divergence.cause.name == "reduction_dropped"
    assert "reduction_dropped" in str(report) and "<table>" in report._repr_html_()


def test_a_deadlock_is_proven_at_once_and_names_file_and_line():
    def leaves(rank):
        if rank.id != 1:
            rank.world.barrier()

    began = time.monotonic()
    report = shardproof.run(leaves, tp=3)

    assert time.monotonic() - began < 5
    assert (report.verdict, report.stall.kind) == ("deadlock", "deadlock")
    assert f"{HERE}:" in report.deadlock and "rank 1" in report.deadlock
    assert report.wait_graph["meetings"][0]["arrived"][0]["line"] == leaves.__code__.co_firstlineno + 2


def test_calls_that_do_not_match_are_shown_with_both_lines():
    def differs(rank):
        if rank.id == 0:
            rank.tp.all_reduce(np.zeros(3))
        else:
            rank.tp.all_reduce(np.zeros(4))

    report = shardproof.run(differs, tp=2)

    line = differs.__code__.co_firstlineno
    assert report.stall.kind == "collective_mismatch"
    assert sorted(call["line"] for call in report.mismatched_calls) == [line + 2, line + 4]


def test_a_rank_that_stays_in_its_own_code_is_no_progress_with_its_stack():
    release = threading.Event()

    def outside(rank):
        if rank.id == 1:
            release.wait()
        rank.world.barrier()

    report = shardproof.run(outside, tp=2, patience=0.2)
    release.set()

    assert report.stall.kind == report.word.replace(" ", "_") == "no_progress"
    assert "release.wait()" in report.stall.stacks[1]


def test_what_a_rank_raises_ends_the_run_and_is_the_cause():
    def raises(rank):
        if rank.id == 1:
            raise KeyError("lost")
        rank.world.barrier()

    with pytest.raises(shardproof.RankError, match="lost") as error:
        shardproof.run(raises, tp=2)

    assert error.value.rank == 1 and isinstance(error.value.__cause__, KeyError)


def test_a_call_that_is_wrong_by_itself_can_be_caught_where_it_stands():
    def wrong(rank):
        with pytest.raises(shardproof.InvalidCall, match="4 elements, not 6"):
            rank.tp.all_gather(np.zeros(3), out=np.zeros(4))
        rank.tp.barrier()
        rank.tap("y", SUM)

    passing(wrong, tp=2, expected={"y": SUM})
    report = shardproof.run(lambda rank: rank.tp.all_gather(np.zeros(3), out=np.zeros(4)), tp=2)
    assert report.stall.kind == "collective_mismatch" and report.deadlock_cause.name == "invalid_call"


def test_schedules_find_what_depends_on_the_order_and_seeds_replay_it():
    def sweep(**options):
        orders = []

        def fn(rank):
            with lock:
                if not orders or len(orders[-1]) == 3:
                    orders.append([])
                order = orders[-1]
                order.append(rank.id)
            rank.world.barrier()
            rank.tap("first", np.array([[float(order[0]), 9.0]]))

        lock = threading.Lock()
        return shardproof.run(fn, tp=3, expected={"first": [[0.0, 9.0]]}, **options), orders

    report, _ = sweep(schedules=50)
    assert report.schedules["first_that_differs"] is not None
    assert sweep(schedule=5)[1] == sweep(schedule=5)[1]
    assert len({tuple(sweep(schedule=seed)[1][0]) for seed in range(8)}) > 1


def test_runs_leave_no_thread_and_no_memory_behind():
    def fn(rank):
        rank.tap("y", rank.tp.all_reduce(np.ones((256, 256))) + np.arange(256))

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    def stuck(rank):
        if rank.id == 0:
            rank.tp.barrier()

    expected = {"y": 2.0 + np.arange(256) + np.zeros((256, 1))}
    for _ in range(3):
        passing(fn, tp=2, expected=expected)
    threads, memory = threading.active_count(), resident()
    for _ in range(40):
        passing(fn, tp=2, expected=expected)
        shardproof.run(stuck, tp=2)
    assert threading.active_count() == threads
    assert resident() - memory < 40 * 2**20


@pytest.mark.parametrize("array, error, says", [
    (np.zeros((4, 4))[:, ::2], ValueError, "ascontiguousarray"),
    (np.zeros(3, np.complex64), TypeError, "complex64"),
    (np.broadcast_to(np.zeros(1), (1,)), ValueError, "read-only"),
    ([1.0, 2.0], TypeError, "is no array"),
], ids=["strided", "complex", "read-only", "list"])
def test_an_array_that_cannot_be_used_is_refused_with_what_to_do(array, error, says):
    with pytest.raises(shardproof.RankError, match=says) as raised:
        shardproof.run(lambda rank: rank.tp.all_reduce(array), tp=2)
    assert isinstance(raised.value.__cause__, error)


def test_bad_degrees_bounds_and_expectations_are_value_errors():
    for options in ({"tp": 0}, {"tp": 2048}, {"tp": 2, "ep": 3}, {"bound": 2.0}, {"patience": 0.0}, {"schedules": -1}):
        with pytest.raises(ValueError):
            shardproof.run(lambda rank: None, **options)
    with pytest.raises(TypeError, match="numbers are needed"):
        shardproof.run(lambda rank: None, expected={"y": np.array(["a"])})


def test_a_run_inside_of_a_run_is_refused():
    with pytest.raises(shardproof.RankError, match="a rank of another run"):
        shardproof.run(lambda rank: shardproof.run(lambda inner: None), tp=2)


def test_a_rank_used_by_another_thread_is_refused():
    def shares(rank):
        caught = []

        def other():
            try:
                rank.tp.barrier()
            except RuntimeError as error:
                caught.append(str(error))

        rank.tp  # noqa: B018
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert "another thread" in caught[0]

    shardproof.run(shares, tp=2)


def test_a_rank_kept_beyond_its_run_is_refused():
    kept = []
    shardproof.run(lambda rank: kept.append(rank.tp), tp=1)
    assert (kept[0].name, kept[0].members) == ("tp[0]", [0])
    with pytest.raises(BaseException, match="another thread|run is over"):
        kept[0].barrier()


def test_a_fork_of_a_run_is_refused_in_the_child():
    def forks(rank):
        group = rank.tp
        child = os.fork()
        if child == 0:
            try:
                group.barrier()
            except RuntimeError as error:
                os._exit(7 if "forked" in str(error) else 1)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7

    shardproof.run(forks, tp=1)


def test_ctrl_c_ends_a_blocked_run():
    code = """
import threading, shardproof
def fn(rank):
    if rank.id == 0: rank.world.barrier()
    print("blocked", flush=True)
    threading.Event().wait()
try:
    shardproof.run(fn, tp=2)
except KeyboardInterrupt:
    print("interrupted")
"""
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "blocked\n"
    time.sleep(0.2)
    child.send_signal(signal.SIGINT)
    assert child.communicate(timeout=20)[0] == "interrupted\n"
    assert child.returncode == 0


@pytest.mark.ranks(16)
def test_runs_on_every_rank(rank):
    assert rank.world.all_reduce(np.ones(1))[0] == 16


def test_jax_arrays_are_returned_anew():
    jnp = pytest.importorskip("jax.numpy")

    def fn(rank):
        x = jnp.full((2, 3), rank.id + 1.0)
        y = rank.tp.all_reduce(x)
        assert type(y) is type(x) and x[0, 0] == rank.id + 1
        assert rank.tp.all_gather(x).shape == (4, 3) and rank.tp.broadcast(x, root=1)[0, 0] == 2
        assert rank.tp.psum(jnp.ones(2, jnp.float16)).dtype == jnp.float16
        rank.tap("y", y + jnp.arange(3))

    passing(fn, tp=2, expected={"y": [[3.0, 4.0, 5.0]] * 2})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int64"])
def test_torch_tensors_are_changed_where_they_lie(dtype):
    torch = pytest.importorskip("torch")

    def fn(rank):
        x = torch.full((3,), rank.id + 1, dtype=getattr(torch, dtype))
        assert rank.tp.all_reduce(x) is x and x.tolist() == [3, 3, 3]
        assert rank.tp.all_gather(x).shape == (6,)
        rank.tap("y", x + torch.arange(3).to(x.dtype))

    passing(fn, tp=2, expected={"y": [3.0, 4.0, 5.0]})
