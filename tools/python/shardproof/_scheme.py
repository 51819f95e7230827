"""Schemes of one's own: ordinary blocking Python, run once on every virtual rank, each in a thread of its own.

    def linear(rank):
        y = x[:, mine] @ w[:, mine].T                     # [tokens, out], a partial sum
        rank.tp.all_reduce(y)                             # in place, and returned
        rank.tap("linear.output", y)

    report = shardproof.run(linear, tp=2, expected={"linear.output": x @ w.T})
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np

from . import _arrays, _core
from . import _placement as placing
from ._errors import RankError
from ._reports import VerifyReport, parse

AXES = ("tp", "cp", "dp", "pp", "etp", "ep", "edp")
_PACKAGE = str(Path(__file__).parent)
_here = threading.local()


def _caller() -> tuple[str, str, int]:
    """File, function and line of the code that called into the package."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_code.co_name, frame.f_lineno


class Group:
    """Ranks that communicate: the calls of one rank. Arrays are numpy's or torch's (CPU) and are used where they lie;
    what is immutable (JAX) is returned anew. Every rank of the group makes the same calls in the same order.

    `algorithm` is the order of a reduction: rank_order, ring, tree, recursive_doubling, hierarchical. `wire` and
    `accumulate` name the formats of what is sent and of each addition: fp64, fp32, bf16, fp16.
    """

    def __init__(self, scheme: _core.Scheme, rank: int, handle: _core.Group) -> None:
        self._scheme = scheme
        self._global = rank
        self._handle = handle
        self.rank: int = handle.rank
        self.size: int = handle.size

    @property
    def name(self) -> str:
        return self._handle.name

    @property
    def members(self) -> list[int]:
        """The global ranks, in the order of their ranks here."""
        return self._handle.members

    def __repr__(self) -> str:
        return f"<{self.name}: rank {self.rank} of {self.size}>"

    def _call(self, operation: str, source: Optional[_arrays.Memory], target: Optional[_arrays.Memory], *,
              op: str = "sum", algorithm: str = "rank_order", wire: Optional[str] = None,
              accumulate: Optional[str] = None, gpus_per_node: int = 8, root: int = -1,
              counts: Optional[list[int]] = None, recv_counts: Sequence[int] = ()) -> None:
        held = source or target
        self._scheme.call(self._global, self._handle, operation, held.code if held else 0,
                          source.flat if source else None, target.flat if target else None, _reduction(op), algorithm,
                          wire or (held.wire if held else None), accumulate, gpus_per_node, root, counts,
                          list(recv_counts), *_caller())

    def all_reduce(self, x: Any, op: str = "sum", *, out: Any = None, algorithm: str = "rank_order",
                   wire: Optional[str] = None, accumulate: Optional[str] = None, gpus_per_node: int = 8) -> Any:
        """x [...] becomes the reduction (sum, max, min, average) of every rank's x; into `out`, if it is given."""
        source = _arrays.memory(x, write=out is None, reduce=True)
        target = source if out is None else _arrays.memory(out, write=True, reduce=True)
        self._call("all_reduce", source, target, op=op, algorithm=algorithm, wire=wire, accumulate=accumulate,
                   gpus_per_node=gpus_per_node)
        return target.give()

    def reduce(self, x: Any, root: int = 0, op: str = "sum", *, algorithm: str = "rank_order",
               wire: Optional[str] = None, accumulate: Optional[str] = None) -> Any:
        """As all_reduce, but only the root's x becomes the reduction."""
        held = _arrays.memory(x, write=self.rank == root, reduce=True)
        self._call("reduce", held, held if self.rank == root else None, op=op, root=root, algorithm=algorithm,
                   wire=wire, accumulate=accumulate)
        return held.give() if self.rank == root else x

    def all_gather(self, x: Any, *, out: Any = None, algorithm: str = "rank_order", gpus_per_node: int = 8) -> Any:
        """x [rows, ...] of every rank, one after another: [size * rows, ...]."""
        source = _arrays.memory(x, write=False)
        shape = tuple(np.shape(x)) or (1,)
        target = self._target(x, out, (self.size * shape[0], *shape[1:]))
        self._call("all_gather", source, target, algorithm=algorithm, gpus_per_node=gpus_per_node)
        return target.give()

    def reduce_scatter(self, x: Any, op: str = "sum", *, out: Any = None, algorithm: str = "rank_order",
                       wire: Optional[str] = None, accumulate: Optional[str] = None) -> Any:
        """Part `rank` of the reduction of every rank's x [size * rows, ...]: [rows, ...]."""
        source = _arrays.memory(x, write=False, reduce=True)
        shape = tuple(np.shape(x))
        if not shape or shape[0] % self.size:
            raise ValueError(f"reduce_scatter: dim 0 of shape {list(shape)} does not divide by {self.size} ranks")
        target = self._target(x, out, (shape[0] // self.size, *shape[1:]), reduce=True)
        self._call("reduce_scatter", source, target, op=op, algorithm=algorithm, wire=wire, accumulate=accumulate)
        return target.give()

    def all_to_all(self, x: Any, send_counts: Optional[Sequence[int]] = None,
                   recv_counts: Optional[Sequence[int]] = None, *, out: Any = None, algorithm: str = "rank_order",
                   gpus_per_node: int = 8) -> Any:
        """Part j of x [rows, ...] goes to rank j. Counts are rows to, and from, each rank; without them all parts are
        of one size."""
        source = _arrays.memory(x, write=False)
        shape = tuple(np.shape(x))
        width = int(np.prod(shape[1:], dtype=np.int64))
        counts = None if send_counts is None else [int(c) * width for c in send_counts]
        back = [] if recv_counts is None else [int(c) for c in recv_counts]
        if (send_counts is None) != (recv_counts is None) or min([*(counts or []), *back, 0]) < 0:
            raise ValueError("all_to_all: counts of what is sent and of what is received go together, none below 0")
        target = self._target(x, out, (shape[0] if counts is None else sum(back), *shape[1:]))
        self._call("all_to_all", source, target, counts=counts, recv_counts=[c * width for c in back],
                   algorithm=algorithm, gpus_per_node=gpus_per_node)
        return target.give()

    def broadcast(self, x: Any, root: int = 0) -> Any:
        """x [...] becomes the root's."""
        held = _arrays.memory(x, write=self.rank != root)
        # Both sides are one buffer; only who is not the root is written to.
        held.flat = held.flat if held.flat.flags.writeable else held.flat.copy()
        self._call("broadcast", held, held, root=root)
        return held.give()

    def barrier(self) -> None:
        """Returns once every rank of the group has called it."""
        self._call("barrier", None, None)

    def send(self, x: Any, to: int) -> None:
        """Returns once the receiver has x [...]. Messages between two ranks match in order."""
        self._call("send", _arrays.memory(x, write=False), None, root=to)

    def recv(self, x: Any, source: int) -> Any:
        """x [...] becomes what the rank `source` sends."""
        held = _arrays.memory(x, write=True)
        self._call("recv", None, held, root=source)
        return held.give()

    def _target(self, x: Any, out: Any, shape: tuple[int, ...], reduce: bool = False) -> _arrays.Memory:
        immutable = out is None and not isinstance(x, np.ndarray) and not _arrays.is_torch(x)
        made = _arrays.empty_like(x, shape) if out is None else out
        held = _arrays.memory(made, write=True, reduce=reduce)
        if immutable:
            held._give = lambda: _arrays._like(x, made)
        return held

    # torch.distributed's names
    def all_gather_into_tensor(self, output: Any, input: Any) -> Any:
        return self.all_gather(input, out=output)

    def reduce_scatter_tensor(self, output: Any, input: Any, op: str = "sum") -> Any:
        return self.reduce_scatter(input, op, out=output)

    def all_to_all_single(self, output: Any, input: Any, output_split_sizes: Optional[Sequence[int]] = None,
                          input_split_sizes: Optional[Sequence[int]] = None) -> Any:
        return self.all_to_all(input, input_split_sizes, output_split_sizes, out=output)

    # mpi4py's names
    def Get_rank(self) -> int:
        return self.rank

    def Get_size(self) -> int:
        return self.size

    def Barrier(self) -> None:
        self.barrier()

    def Allreduce(self, sendbuf: Any, recvbuf: Any, op: str = "sum") -> None:
        self.all_reduce(sendbuf, op, out=recvbuf)

    def Allgather(self, sendbuf: Any, recvbuf: Any) -> None:
        self.all_gather(sendbuf, out=recvbuf)

    def Alltoall(self, sendbuf: Any, recvbuf: Any) -> None:
        self.all_to_all(sendbuf, out=recvbuf)

    def Bcast(self, buf: Any, root: int = 0) -> None:
        self.broadcast(buf, root)

    def Send(self, buf: Any, dest: int) -> None:
        self.send(buf, dest)

    def Recv(self, buf: Any, source: int) -> None:
        self.recv(buf, source)

    # JAX's names: nothing is changed in place
    def psum(self, x: Any) -> Any:
        return self.all_reduce(_copied(x))

    def pmean(self, x: Any) -> Any:
        return self.all_reduce(_copied(x), "average")

    def pmax(self, x: Any) -> Any:
        return self.all_reduce(_copied(x), "max")

    def pmin(self, x: Any) -> Any:
        return self.all_reduce(_copied(x), "min")

    def psum_scatter(self, x: Any) -> Any:
        return self.reduce_scatter(x)


def _copied(x: Any) -> Any:
    if _arrays.is_torch(x):
        return x.clone()
    return x.copy() if isinstance(x, np.ndarray) else x


def _reduction(op: Any) -> str:
    """Names of ours, and torch's ReduceOp.SUM and the like."""
    name = str(op).rsplit(".", 1)[-1].lower()
    return {"avg": "average", "mean": "average"}.get(name, name)


class Rank:
    """One virtual rank, as its function sees it: `tp`, `cp`, `dp`, `pp`, `etp`, `ep`, `edp` and `world` are groups."""

    tp: Group
    cp: Group
    dp: Group
    pp: Group
    etp: Group
    ep: Group
    edp: Group
    world: Group

    def __init__(self, scheme: _core.Scheme, rank: int, shapes: Mapping[tuple[str, int], tuple[int, ...]]) -> None:
        self.id = rank
        self._scheme = scheme
        self._shapes = shapes

    def __getattr__(self, name: str) -> Group:
        if name not in AXES and name != "world":
            raise AttributeError(f"a rank has no {name!r}")
        made = Group(self._scheme, self.id, self._scheme.group(self.id, name, []))
        setattr(self, name, made)
        return made

    def __repr__(self) -> str:
        return f"<rank {self.id}>"

    def group(self, ranks: Sequence[int]) -> Group:
        """These global ranks, this one among them, in this order; all of them name the same list."""
        return Group(self._scheme, self.id, self._scheme.group(self.id, "", [int(r) for r in ranks]))

    def tap(self, name: str, value: Any,
            placement: Union[placing.Placement, Sequence[placing.Placement]] = placing.Replicate(), *,
            step: Optional[int] = None, replicas: Sequence[str] = ()) -> None:
        """Holds value [...] to the expected tensor of that name (and step), of which it is the part that `placement`
        says. Along the axes `replicas` every rank must tap the same block."""
        array = _arrays.values(value)
        number = -1 if step is None else step
        whole = self._shapes.get((name, number), array.shape)
        place = {axis: (getattr(self, axis).rank, getattr(self, axis).size) for axis in AXES}
        made = placing.block(placement, whole, array.shape, place)
        self._scheme.tap(self.id, name, number, made.whole, made.rows, made.cols, made.row_list, made.partial,
                         made.partial_ranks, list(replicas), _arrays.CODES[array.dtype.name], array)


def run(
    fn: Callable[[Rank], Any],
    *,
    tp: int = 1,
    cp: int = 1,
    dp: int = 1,
    pp: int = 1,
    ep: int = 1,
    etp: int = 1,
    expected: Optional[Mapping[Any, Any]] = None,
    bound: float = 0.0,
    threads: int = 0,
    schedule: Optional[int] = None,
    schedules: int = 0,
    patience: float = 60.0,
) -> VerifyReport:
    """Runs fn(rank) on tp * cp * dp * pp ranks, one thread each, and holds what they tap to what is expected.

    expected: tensors by name, or by (name, step). bound: the largest error of a row relative to its size; 0 demands
    equality. schedule: one rank at a time, in the order of that seed. schedules: run it as often again, under the seeds
    1, 2, ..., and hold every run to the first. patience: after so many seconds in which a rank that runs code of its own
    neither calls nor returns, the run ends with stall.kind no_progress.

    Raises RankError for what a rank raises, ValueError for degrees and tensors that do not fit, and RuntimeError inside
    of another run.
    """
    if getattr(_here, "rank", None) is not None:
        raise RuntimeError("run() was called by a rank of another run: call it outside, or use rank.group([...])")
    tensors, shapes = [], {}
    for key, value in (expected or {}).items():
        name, step = key if isinstance(key, tuple) else (key, -1)
        array = np.ascontiguousarray(_arrays.values(value), np.float64)
        dims = (1,) * (2 - array.ndim) + array.shape
        tensors.append((str(name), int(step), list(dims), array))
        shapes[str(name), int(step)] = array.shape
    degrees = {"tp": tp, "cp": cp, "dp": dp, "pp": pp, "ep": ep, "etp": etp}
    return _Run(_core.Scheme(degrees, patience), fn, tp * cp * dp * pp, shapes).verdict(
        tensors, bound, threads, schedule, schedules)


class _Run:
    def __init__(self, scheme: _core.Scheme, fn: Callable[[Rank], Any], ranks: int, shapes: Any) -> None:
        self._scheme = scheme
        self._fn = fn
        self._shapes = shapes
        self._errors: dict[int, BaseException] = {}
        self._threads = [threading.Thread(target=self._serve, args=(rank,), name=f"rank {rank}", daemon=True)
                         for rank in range(ranks)]

    def _serve(self, number: int) -> None:
        _here.rank = number
        while self._scheme.begin(number):
            failure = None
            try:
                self._fn(Rank(self._scheme, number, self._shapes))
            except _core.RunOver:
                pass
            except BaseException as error:  # noqa: BLE001: whatever it is, it is the rank's
                self._errors[number] = error
                where = traceback.extract_tb(error.__traceback__)[-1]
                failure = f"{type(error).__name__}: {error} at {where.filename}:{where.lineno}"
            self._scheme.end(number, failure)

    def verdict(self, *arguments: Any) -> VerifyReport:
        for thread in self._threads:
            thread.start()
        results: list[Any] = []
        ended = threading.Event()

        def work() -> None:
            try:
                results.append(self._scheme.run(*arguments))
            except BaseException as error:  # noqa: BLE001: raised below
                results.append(error)
            ended.set()

        # In a thread of its own, so that this one sees a KeyboardInterrupt.
        worker = threading.Thread(target=work, name="shardproof", daemon=True)
        worker.start()
        try:
            ended.wait()
        except BaseException:
            self._scheme.interrupt()
            worker.join()
            self._scheme.close()
            self._join(1.0)
            raise
        worker.join()
        self._scheme.close()
        return self._report(results[0])

    def _report(self, result: Any) -> VerifyReport:
        if isinstance(result, BaseException):
            raise result
        text, failed, message = result
        if failed >= 0:
            self._join(2.0)
            raise RankError(failed, message) from self._errors.get(failed)
        report = parse(VerifyReport, text)
        if report.stall is not None and report.stall.kind == "no_progress":
            self._join(0.2)
            report.stall.stacks = self._stacks()
        else:
            self._join(2.0)
        return report

    def _join(self, seconds: float) -> None:
        """Waits for the ranks' threads, all together no longer than this: one may never come back."""
        until = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _stacks(self) -> dict[int, str]:
        frames = sys._current_frames()
        stacks = {}
        for rank, thread in enumerate(self._threads):
            if thread.is_alive() and thread.ident in frames:
                found = [line for line in traceback.extract_stack(frames[thread.ident])
                         if not line.filename.startswith(_PACKAGE) and not line.filename.endswith("threading.py")]
                stacks[rank] = "".join(traceback.format_list(found))
        return stacks
