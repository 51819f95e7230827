"""Every test runs on ranks that are processes and on ranks that are threads, and leaves nothing behind."""

import gc
import os
import threading
import time

import pytest
import torch
import torch.distributed as dist

import ranks

torch.set_num_threads(1)  # what a test computes itself starts no thread: the next one's ranks are forked


@pytest.fixture(autouse=True, params=["process", "thread"])
def isolation(request):
    """Every test runs in both, but those that look into the ranks' memory from outside."""
    if request.param == "process" and "threads" in request.keywords:
        pytest.skip("looks into the ranks' memory")
    ranks.ISOLATION = request.param
    return request.param


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
