"""The calls of one rank in one group: blocking, or under way until their handle is waited for."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

import numpy as np

from . import _arrays, _core

PACKAGE = str(Path(__file__).parent)
#: Whose lines are nobody's own: this package, and PyTorch where it calls us.
LIBRARIES = [PACKAGE]

# How a call is made, as the core numbers it.
_BLOCKING, _ISSUED, _BOTH = range(3)


def caller() -> tuple[str, str, int]:
    """File, function and line of the code that called into the package."""
    frame = sys._getframe(1)
    libraries = tuple(LIBRARIES)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(libraries):
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_code.co_name, frame.f_lineno


def said_of(error: BaseException) -> str:
    """What was raised, and at which line: the innermost one that is no library's, where there is one."""
    libraries = tuple(LIBRARIES)
    frames = traceback.extract_tb(error.__traceback__)
    where = ([frame for frame in frames if not frame.filename.startswith(libraries)] or frames)[-1]
    return f"{type(error).__name__}: {error} at {where.filename}:{where.lineno}"


class _Prepared:
    """A call with its memory, not made yet."""

    def __init__(self, operation: str, source: Optional[_arrays.Memory], target: Optional[_arrays.Memory], given: Any,
                 *, op: str = "sum", algorithm: str = "rank_order", wire: Optional[str] = None,
                 accumulate: Optional[str] = None, gpus_per_node: int = 8, root: int = -1,
                 counts: Optional[list[int]] = None, recv_counts: Sequence[int] = ()) -> None:
        held = source or target
        if source is not None and target is not None and source.code != target.code:
            raise TypeError(f"{operation}: the input's elements are {source.flat.dtype}, the output's "
                            f"{target.flat.dtype}")
        self.source = source
        self.target = target
        self.given = given
        self._arguments = (operation, held.code if held else 0, source.flat if source else None,
                           target.flat if target else None, _reduction(op), algorithm,
                           wire or (held.wire if held else None), accumulate, gpus_per_node, root, counts,
                           list(recv_counts))

    def make(self, scheme: Any, rank: int, group: Any, how: int) -> Any:
        return scheme.call(rank, group, *self._arguments, *caller(), how)

    def result(self) -> Any:
        return self.given if self.target is None else self.target.give()


class Handle:
    """A call under way. Until wait() has returned, its output must be neither read nor written (it holds bytes of 0xff:
    NaN) and its input must not be written; every handle is to be waited for before its rank returns."""

    def __init__(self, group: Group, call: _Prepared) -> None:
        self._group = group
        self._call: Optional[_Prepared] = call
        if group.waits_at_once:
            call.make(group._scheme, group._global, group._handle, _BOTH)
            self._watched: list[tuple[_arrays.Memory, np.ndarray]] = []
            self._issued = None
            return
        # The core watches the memory that it is given. Where that is a copy, what is written to the caller's own memory
        # is handed on to it.
        self._watched = []
        for held, cover in ((call.source, False), (None if call.target is call.source else call.target, True)):
            if held is None or held.bits is None:
                continue
            if cover:
                held.bits.fill(-1)
            self._watched.append((held, held.bits.copy()))
        self._issued = call.make(group._scheme, group._global, group._handle, _ISSUED)

    def wait(self) -> Any:
        """Blocks until the call is complete; returns what the blocking call returns. Throws InvalidCall where the
        input, or the output, was written meanwhile, and RuntimeError the second time."""
        call = self._call
        if call is None:
            raise RuntimeError("this handle was waited for before")
        self._call = None
        for held, was in self._watched:
            held.flat.view(np.int32)[held.bits != was] ^= 1
        if self._issued is not None:
            self._group._scheme.wait(self._group._global, self._issued)
            self._issued = None
        return call.result()


class Group:
    """Ranks that communicate: the calls of one rank. Arrays are numpy's or torch's (CPU) and are used where they lie;
    what is immutable (JAX) is returned anew. Every rank of the group makes the same calls in the same order.

    `algorithm` is the order of a reduction: rank_order, ring, tree, recursive_doubling, hierarchical. `wire` and
    `accumulate` name the formats of what is sent and of each addition: fp64, fp32, bf16, fp16.

    Each call has an i-variant (iall_reduce, isend, ...) of the same arguments, which returns a Handle.
    """

    def __init__(self, scheme: _core.Scheme, rank: int, handle: _core.Group) -> None:
        self._scheme = scheme
        self._global = rank
        self._handle = handle
        #: An i-variant is complete when it returns; to the other ranks it is the same call.
        self.waits_at_once = False
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

    def _now(self, call: _Prepared) -> Any:
        call.make(self._scheme, self._global, self._handle, _BLOCKING)
        return call.result()

    def all_reduce(self, x: Any, op: str = "sum", *, out: Any = None, algorithm: str = "rank_order",
                   wire: Optional[str] = None, accumulate: Optional[str] = None, gpus_per_node: int = 8) -> Any:
        """x [...] becomes the reduction (sum, max, min, average) of every rank's x; into `out`, if it is given."""
        return self._now(self._all_reduce(x, op, out=out, algorithm=algorithm, wire=wire, accumulate=accumulate,
                                          gpus_per_node=gpus_per_node))

    def reduce(self, x: Any, root: int = 0, op: str = "sum", *, algorithm: str = "rank_order",
               wire: Optional[str] = None, accumulate: Optional[str] = None) -> Any:
        """As all_reduce, but only the root's x becomes the reduction."""
        return self._now(self._reduce(x, root, op, algorithm=algorithm, wire=wire, accumulate=accumulate))

    def all_gather(self, x: Any, counts: Optional[Sequence[int]] = None, *, out: Any = None,
                   algorithm: str = "rank_order", gpus_per_node: int = 8) -> Any:
        """x [rows, ...] of every rank, one after another: [size * rows, ...]; with counts, counts[i] rows of rank i."""
        return self._now(self._all_gather(x, counts, out=out, algorithm=algorithm, gpus_per_node=gpus_per_node))

    def reduce_scatter(self, x: Any, op: str = "sum", counts: Optional[Sequence[int]] = None, *, out: Any = None,
                       algorithm: str = "rank_order", wire: Optional[str] = None,
                       accumulate: Optional[str] = None) -> Any:
        """Part `rank` of the reduction of every rank's x [size * rows, ...]: [rows, ...]; with counts, part i has
        counts[i] rows."""
        return self._now(self._reduce_scatter(x, op, counts, out=out, algorithm=algorithm, wire=wire,
                                              accumulate=accumulate))

    def all_to_all(self, x: Any, send_counts: Optional[Sequence[int]] = None,
                   recv_counts: Optional[Sequence[int]] = None, *, out: Any = None, algorithm: str = "rank_order",
                   gpus_per_node: int = 8) -> Any:
        """Part j of x [rows, ...] goes to rank j. Counts are rows to, and from, each rank; without them all parts are
        of one size."""
        return self._now(self._all_to_all(x, send_counts, recv_counts, out=out, algorithm=algorithm,
                                          gpus_per_node=gpus_per_node))

    def broadcast(self, x: Any, root: int = 0) -> Any:
        """x [...] becomes the root's."""
        return self._now(self._broadcast(x, root))

    def barrier(self) -> None:
        """Returns once every rank of the group has called it."""
        self._now(_Prepared("barrier", None, None, None))

    def send(self, x: Any, to: int) -> None:
        """Returns once the receiver has x [...]. Messages between two ranks match in order."""
        self._now(self._send(x, to))

    def recv(self, x: Any, source: int) -> Any:
        """x [...] becomes what the rank `source` sends."""
        return self._now(self._recv(x, source))

    def exchange(self, sends: Sequence[tuple[Any, int]] = (), recvs: Sequence[tuple[Any, int]] = ()) -> list[Any]:
        """All messages together, none waiting for another: (x, rank) each. Returns what was received."""
        given = [(_arrays.memory(x, write=False), int(peer)) for x, peer in sends]
        taken = [(_arrays.memory(x, write=True), int(peer)) for x, peer in recvs]
        self._scheme.exchange(self._global, self._handle, [(held.flat, held.code, peer) for held, peer in given],
                              [(held.flat, held.code, peer) for held, peer in taken], *caller())
        return [held.give() for held, _ in taken]

    def iall_reduce(self, x: Any, op: str = "sum", **options: Any) -> Handle:
        return Handle(self, self._all_reduce(x, op, **options))

    def ireduce(self, x: Any, root: int = 0, op: str = "sum", **options: Any) -> Handle:
        return Handle(self, self._reduce(x, root, op, **options))

    def iall_gather(self, x: Any, counts: Optional[Sequence[int]] = None, **options: Any) -> Handle:
        return Handle(self, self._all_gather(x, counts, **options))

    def ireduce_scatter(self, x: Any, op: str = "sum", counts: Optional[Sequence[int]] = None,
                        **options: Any) -> Handle:
        return Handle(self, self._reduce_scatter(x, op, counts, **options))

    def iall_to_all(self, x: Any, send_counts: Optional[Sequence[int]] = None,
                    recv_counts: Optional[Sequence[int]] = None, **options: Any) -> Handle:
        return Handle(self, self._all_to_all(x, send_counts, recv_counts, **options))

    def ibroadcast(self, x: Any, root: int = 0) -> Handle:
        return Handle(self, self._broadcast(x, root))

    def ibarrier(self) -> Handle:
        return Handle(self, _Prepared("barrier", None, None, None))

    def isend(self, x: Any, to: int) -> Handle:
        return Handle(self, self._send(x, to))

    def irecv(self, x: Any, source: int) -> Handle:
        return Handle(self, self._recv(x, source))

    def _all_reduce(self, x: Any, op: str, *, out: Any = None, **options: Any) -> _Prepared:
        source = _arrays.memory(x, write=out is None, reduce=True)
        target = source if out is None else _arrays.memory(out, write=True, reduce=True)
        return _Prepared("all_reduce", source, target, x, op=op, **options)

    def _reduce(self, x: Any, root: int, op: str, **options: Any) -> _Prepared:
        held = _arrays.memory(x, write=self.rank == root, reduce=True)
        return _Prepared("reduce", held, held if self.rank == root else None, x, op=op, root=root, **options)

    def _all_gather(self, x: Any, counts: Optional[Sequence[int]], *, out: Any = None, **options: Any) -> _Prepared:
        source = _arrays.memory(x, write=False)
        shape = tuple(np.shape(x)) or (1,)
        rows, elements = self._parts(counts, shape)
        target = self._target(x, out, (self.size * shape[0] if rows is None else sum(rows), *shape[1:]))
        return _Prepared("all_gather", source, target, x, counts=elements, **options)

    def _reduce_scatter(self, x: Any, op: str, counts: Optional[Sequence[int]], *, out: Any = None,
                        **options: Any) -> _Prepared:
        source = _arrays.memory(x, write=False, reduce=True)
        shape = tuple(np.shape(x))
        if counts is None and (not shape or shape[0] % self.size):
            raise ValueError(f"reduce_scatter: dim 0 of shape {list(shape)} does not divide by {self.size} ranks")
        rows, elements = self._parts(counts, shape or (1,))
        mine = shape[0] // self.size if rows is None else rows[self.rank]
        target = self._target(x, out, (mine, *shape[1:]), reduce=True)
        return _Prepared("reduce_scatter", source, target, x, op=op, counts=elements, **options)

    def _parts(self, counts: Optional[Sequence[int]],
               shape: tuple[int, ...]) -> tuple[Optional[list[int]], Optional[list[int]]]:
        """Counts in rows, and in elements."""
        if counts is None:
            return None, None
        rows = [int(c) for c in counts]
        if len(rows) != self.size or min(rows) < 0:
            raise ValueError(f"counts {rows}: one for each of {self.size} ranks is needed, none below 0")
        width = int(np.prod(shape[1:], dtype=np.int64))
        return rows, [c * width for c in rows]

    def _all_to_all(self, x: Any, send_counts: Optional[Sequence[int]], recv_counts: Optional[Sequence[int]], *,
                    out: Any = None, **options: Any) -> _Prepared:
        source = _arrays.memory(x, write=False)
        shape = tuple(np.shape(x))
        width = int(np.prod(shape[1:], dtype=np.int64))
        counts = None if send_counts is None else [int(c) * width for c in send_counts]
        back = [] if recv_counts is None else [int(c) for c in recv_counts]
        if (send_counts is None) != (recv_counts is None) or min([*(counts or []), *back, 0]) < 0:
            raise ValueError("all_to_all: counts of what is sent and of what is received go together, none below 0")
        target = self._target(x, out, (shape[0] if counts is None else sum(back), *shape[1:]))
        return _Prepared("all_to_all", source, target, x, counts=counts, recv_counts=[c * width for c in back],
                         **options)

    def _broadcast(self, x: Any, root: int) -> _Prepared:
        held = _arrays.memory(x, write=self.rank != root)
        # Both sides are one buffer; only who is not the root is written to.
        held.flat = held.flat if held.flat.flags.writeable else held.flat.copy()
        return _Prepared("broadcast", held, held, x, root=root)

    def _send(self, x: Any, to: int) -> _Prepared:
        return _Prepared("send", _arrays.memory(x, write=False), None, None, root=to)

    def _recv(self, x: Any, source: int) -> _Prepared:
        return _Prepared("recv", None, _arrays.memory(x, write=True), x, root=source)

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
