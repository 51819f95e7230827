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
from dataclasses import dataclass
from typing import Any, Optional, Union

import numpy as np

from . import _arrays, _core
from . import _placement as placing
from ._errors import RankError
from ._group import PACKAGE, Group, said_of
from ._reports import VerifyReport, parse

AXES = ("tp", "cp", "dp", "pp", "etp", "ep", "edp")
_here = threading.local()


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
        return Group(self._scheme, self.id, self._scheme.group(self.id, "ranks", [int(r) for r in ranks]))

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


@dataclass(frozen=True)
class Block:
    """What a rank held of a tensor of shape `whole`: value [...] at the offsets; with partial_ranks a partial sum, which
    those ranks' add up to."""

    rank: int
    name: str
    value: Any
    whole: Sequence[int]
    offsets: Sequence[int]
    partial_ranks: Sequence[int] = ()


def judge_blocks(blocks: Sequence[Block], expected: Mapping[str, Any], degrees: Mapping[str, int],
                 bound: float) -> VerifyReport:
    """As run() with ranks that tap their blocks, in order, and do nothing else."""
    held = []
    at: dict[Any, placing.Block] = {}  # most ranks have a block in common with another, or in another tensor
    for block in blocks:
        array = _arrays.values(block.value)
        # A single number is a tensor of one element.
        whole, offsets = (tuple(block.whole), tuple(block.offsets)) if block.whole else ((1,), (0,))
        made = at.get((array.shape, whole, offsets))
        if made is None:
            made = at[array.shape, whole, offsets] = placing.block_at(array.shape, whole, offsets)
        held.append((block.rank, block.name, made.whole, made.rows, made.cols, made.row_list,
                     list(block.partial_ranks), _arrays.CODES[array.dtype.name], array))
    return parse(VerifyReport, _core.judge_blocks(dict(degrees), held, _tensors(expected), bound))


def _tensors(expected: Mapping[Any, Any]) -> list[tuple[str, int, list[int], np.ndarray]]:
    """name, step, shape of at least two dims, values."""
    tensors = []
    for key, value in expected.items():
        name, step = key if isinstance(key, tuple) else (key, -1)
        array = np.ascontiguousarray(_arrays.values(value), np.float64)
        tensors.append((str(name), int(step), list((1,) * (2 - array.ndim) + array.shape), array))
    return tensors


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
    tensors = _tensors(expected or {})
    shapes = {(name, step): array.shape for name, step, _, array in tensors}
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
                failure = getattr(error, "said", None) or said_of(error)
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
                         if not line.filename.startswith(PACKAGE) and not line.filename.endswith("threading.py")]
                stacks[rank] = "".join(traceback.format_list(found))
        return stacks
