"""Running a PyTorch program on virtual ranks."""

from __future__ import annotations

import gc
import os
import pickle
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import torch
import torch.distributed as dist
import torch.nn as nn

from .. import _group, _scheme
from .._reports import VerifyReport
from . import _isolation, _processes
from ._local import PROFILES
from ._process_group import VirtualProcessGroup
from ._verdict import held_to_reference
from ._watch import Record
from ._work import Work

_group.LIBRARIES.append(str(Path(torch.__file__).parent))


def rank() -> int:
    """Of the rank that asks; its program's RANK."""
    seat = _isolation.seat()
    if seat is None:
        raise RuntimeError("shardproof.torch.rank() was asked outside of shardproof.torch.run")
    return seat.rank


def run(
    main: Callable[..., Any],
    *,
    world_size: int,
    args: Sequence[Any] = (),
    isolation: str = "process",
    algorithm: str = "rank_order",
    wire: Optional[str] = None,
    accumulate: Optional[str] = None,
    schedule: Optional[int] = None,
    schedules: int = 0,
    patience: float = 60.0,
    reference: Optional[Callable[[], nn.Module]] = None,
    step: Optional[Callable[[nn.Module], Any]] = None,
    max_amplification: Optional[float] = None,
    profile: str = "eager",
) -> VerifyReport:
    """Runs main(*args) on every rank, as torchrun would, reports what stood in its way, and holds what it watches and
    taps to the reference.

    reference: makes the unsharded module, which gets the weights that main()'s watched model has; they have to cover
    it. step: step(module) runs it on the whole batch, loss.backward() included. A module of torch's whose arithmetic is
    known (Linear, Embedding, LayerNorm, RMSNorm, activations) is judged alone: what the ranks have of its result
    against what it gives in float64 for what they gave it, within its op's rounding in that profile ("eager": each op
    stores its result, "fused": the module does). All else is held to the whole run in float64 within an estimate, the
    error that the module's own format makes. An estimate decides only where max_amplification says how many times it is
    allowed: without it a tensor beyond 16 times makes the verdict inconclusive, and so does a run in which nothing was
    judged alone.

    isolation: "process", the ranks are forked from this process, which may have one thread only: globals are each
    rank's own. "thread": they are threads that run one at a time, up to their next call, in the order of the seed
    `schedule`; `schedules` more orders can be tried. Each has torch.distributed, torch's random numbers and RANK,
    WORLD_SIZE, ... in os.environ of its own, and shares every other global.

    algorithm, wire, accumulate: of every reduction, as Group.all_reduce takes them. patience: see shardproof.run.

    Raises RankError for what a rank raises, ValueError for arguments that do not fit, and RuntimeError inside of
    another run, or where this process cannot be forked.
    """
    if isolation not in ("process", "thread"):
        raise ValueError(f'isolation="{isolation}": "process" or "thread" is needed')
    if world_size < 1:
        raise ValueError(f"world_size={world_size}: at least one rank is needed")
    if _isolation.seat() is not None:
        raise RuntimeError("shardproof.torch.run() was called by a rank of another run: call it outside")
    if isolation == "process" and schedules:
        raise ValueError('schedules runs main() again and again, in the same process: isolation="thread" can')
    if profile not in PROFILES:
        raise ValueError(f'profile="{profile}": "eager" or "fused" is needed')
    settings = _Settings(world_size, {"algorithm": algorithm, "wire": wire, "accumulate": accumulate})
    with _only_own_garbage():
        if isolation == "process":
            report = _in_processes(settings, main, args, schedule, patience)
        else:
            report = _in_threads(settings, main, args, schedule=0 if schedule is None else schedule,
                                 schedules=schedules, patience=patience)
        if reference is None or report.stall is not None:
            return report
        report.problems = []
        with torch.random.fork_rng(devices=[]):  # reference() may draw its weights
            return held_to_reference([settings.records[rank] for rank in range(world_size)], world_size, reference,
                                     step, max_amplification, profile, report)


@contextmanager
def _only_own_garbage() -> Iterator[None]:
    """While it lasts, Python does not search for cycles in what was there before, which is all of torch: a tenth of a
    short run. A gc.freeze() of main()'s own ends with it."""
    if gc.get_freeze_count():
        yield  # the caller's own: gc.unfreeze() would undo it
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.collect()  # of the run alone: freeze() let the next full search begin to count anew
        gc.unfreeze()


@dataclass
class _Settings:
    """Of one run."""

    world_size: int
    reduce_options: dict[str, Any]
    records: dict[int, Record] = field(default_factory=dict)  # of the last schedule


def _in_threads(settings: _Settings, main: Callable[..., Any], args: Sequence[Any], **how: Any) -> VerifyReport:
    turns = _isolation.Turns(settings.world_size)
    stores: dict[int, dist.Store] = {}  # by how many times a rank has run main(): each schedule has another
    begun: dict[int, int] = {}

    def body(rank: _scheme.Rank) -> None:
        begun[rank.id] = begun.get(rank.id, 0) + 1
        store = stores.setdefault(begun[rank.id], dist.HashStore())
        turns.enter(rank.id, fresh=True)
        program = _Program(rank.id, _isolation.InTurns(rank._scheme, turns), store, settings)
        settings.records[rank.id] = program.record
        program.run(main, args)
        program.record.finished()

    with _isolation.threads_are_ranks():
        try:
            return _scheme.run(body, dp=settings.world_size, **how)
        finally:
            turns.restore()


def _in_processes(settings: _Settings, main: Callable[..., Any], args: Sequence[Any], schedule: Optional[int],
                  patience: float) -> VerifyReport:
    _processes.refuse_unless_alone()
    children: list[_processes.Child] = []
    with tempfile.TemporaryDirectory() as folder:

        def program_of(rank: int) -> Callable[[_processes.RemoteScheme], bytes]:
            def program(scheme: _processes.RemoteScheme) -> bytes:
                os.environ.update(_isolation.variables_of(rank, settings.world_size))
                store = dist.FileStore(os.path.join(folder, "store"), settings.world_size)
                made = _Program(rank, scheme, store, settings)
                with _isolation.threads_are_ranks():
                    made.run(main, args)
                return pickle.dumps(made.record.finished())

            return program

        def body(rank: _scheme.Rank) -> None:
            settings.records[rank.id] = pickle.loads(children[rank.id].serve(rank._scheme, rank.id))

        try:
            for rank in range(settings.world_size):
                children.append(_processes.Child(rank))
                children[rank].fork(children[:rank], program_of(rank))
            report = _scheme.run(body, dp=settings.world_size, schedule=schedule, patience=patience)
            if report.stall is not None and report.stall.stacks:
                report.stall.stacks = {rank: children[rank].stack() for rank in report.stall.stacks}
            return report
        finally:
            for child in children:
                child.close()


class _Program:
    """main() on one rank, in the thread that is the rank's."""

    def __init__(self, rank: int, scheme: Any, store: dist.Store, settings: _Settings) -> None:
        self.record = Record(rank)
        self._scheme = scheme
        self._store = store
        self._settings = settings
        self._pending: dict[int, Work] = {}

    def _make_group(self, name: str, members: list[int], group_rank: int) -> VirtualProcessGroup:
        def make(label: str) -> _group.Group:
            return _group.Group(self._scheme, self.record.rank, self._scheme.group(self.record.rank, label, members))

        return VirtualProcessGroup(group_rank, len(members), make, name, self._pending, self._settings.reduce_options)

    def run(self, main: Callable[..., Any], args: Sequence[Any]) -> None:
        _isolation.take(_isolation.Seat(self.record.rank, self._settings.world_size, self._store, self._make_group,
                                        self.record))
        torch.set_num_threads(1)
        try:
            with torch.autograd.set_multithreading_enabled(False):
                main(*args)
                for work in list(self._pending.values()):
                    work.wait()
                self.record.gradients()
        finally:
            torch._C._distributed_c10d._unregister_all_process_groups()
            _isolation.take(None)
