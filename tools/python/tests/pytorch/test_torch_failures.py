"""PyTorch programs that are wrong, stall, raise or die, and bad input."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ranks import completes, me, run
from torch.distributed.device_mesh import init_device_mesh

import shardproof
import shardproof.torch

HERE = os.path.basename(__file__)


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

    assert (report.stall.kind, report.exit_code) == ("deadlock", 3)
    assert f"{HERE}:{main.__code__.co_firstlineno + 3}" in report.deadlock
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


def test_an_interrupt_ends_a_run_in_which_a_rank_never_comes_back(isolation):
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
    child = subprocess.Popen([sys.executable, "-c", code, isolation], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                             text=True)
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
    # The estimate is a power of two times what this machine's kernels are off by.
    bound = re.compile(r"bound [0-9.e-]+")
    assert bound.search(done.stdout)
    assert example.read_text() in readme and bound.sub("bound", done.stdout) in bound.sub("bound", readme)
