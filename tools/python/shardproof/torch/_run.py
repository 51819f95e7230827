"""Running a PyTorch program on virtual ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import torch
import torch.distributed as dist
import torch.nn as nn

from .. import _group, _scheme
from .._reports import VerifyReport
from . import _isolation
from ._process_group import VirtualProcessGroup, Work
from ._verdict import held_to_reference
from ._watch import Record

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
    isolation: str = "thread",
    algorithm: str = "rank_order",
    wire: Optional[str] = None,
    accumulate: Optional[str] = None,
    schedule: int = 0,
    schedules: int = 0,
    patience: float = 60.0,
    reference: Optional[Callable[[], nn.Module]] = None,
    step: Optional[Callable[[nn.Module], Any]] = None,
    max_amplification: Optional[float] = None,
) -> VerifyReport:
    """Runs main(*args) on every rank, as torchrun would, reports what stood in its way, and holds what it watches and taps
    to the reference.

    reference: makes the unsharded module, which gets the weights that main()'s watched model has; they have to cover it.
    step: step(module) runs it on the whole batch, loss.backward() included. It is run in float64, which is what is
    expected, and in the module's own format, whose error is the estimate of what rounding may do. An estimate decides only
    where max_amplification says how many times it is allowed: without it the verdict is inconclusive.

    isolation: "thread", the ranks are threads that run one at a time, up to their next call, in the order of the seed
    `schedule`; `schedules` more orders can be tried. Each has torch.distributed, the random numbers of torch and RANK,
    WORLD_SIZE, ... in os.environ of its own; other globals are shared. algorithm, wire, accumulate: of every reduction, as
    Group.all_reduce takes them. patience: see shardproof.run.

    Raises RankError for what a rank raises, ValueError for arguments that do not fit, and RuntimeError inside of another
    run.
    """
    if isolation != "thread":
        raise ValueError(f'isolation="{isolation}" does not exist: "thread" does; programs that keep a rank\'s state in '
                         "globals of their own need processes, which are not there yet")
    if world_size < 1:
        raise ValueError(f"world_size={world_size}: at least one rank is needed")
    if _isolation.seat() is not None:
        raise RuntimeError("shardproof.torch.run() was called by a rank of another run: call it outside")
    settings = _Settings(world_size, _isolation.Turns(world_size),
                         {"algorithm": algorithm, "wire": wire, "accumulate": accumulate})

    def body(rank: _scheme.Rank) -> None:
        _Program(rank, settings).run(main, args)

    with _isolation.threads_are_ranks():
        try:
            report = _scheme.run(body, dp=world_size, schedule=schedule, schedules=schedules, patience=patience)
        finally:
            settings.turns.restore()
    if reference is None or report.stall is not None:
        return report
    report.problems = []
    return held_to_reference([settings.records[rank] for rank in range(world_size)], world_size, reference, step,
                             max_amplification, report)


@dataclass
class _Settings:
    """Of one run."""

    world_size: int
    turns: _isolation.Turns
    reduce_options: dict[str, Any]
    stores: dict[int, dist.Store] = field(default_factory=dict)  # by how many times a rank has run main()
    begun: dict[int, int] = field(default_factory=dict)
    records: dict[int, Record] = field(default_factory=dict)  # of the last schedule

    def store_of(self, rank: int) -> dist.Store:
        """One for all ranks of a schedule, and another for the next."""
        round = self.begun[rank] = self.begun.get(rank, 0) + 1
        return self.stores.setdefault(round, dist.HashStore())


class _Program:
    """main() on one rank, in its thread."""

    def __init__(self, rank: _scheme.Rank, settings: _Settings) -> None:
        self._rank = rank.id
        self._settings = settings
        self._scheme = _isolation.InTurns(rank._scheme, settings.turns)
        self._pending: dict[int, Work] = {}

    def _make_group(self, name: str, members: list[int], group_rank: int) -> VirtualProcessGroup:
        handle = self._scheme.group(self._rank, f"pg{name[:8]}", members)
        calls = _group.Group(self._scheme, self._rank, handle)
        return VirtualProcessGroup(group_rank, len(members), calls, name, self._pending, self._settings.reduce_options)

    def run(self, main: Callable[..., Any], args: Sequence[Any]) -> None:
        self._settings.turns.enter(self._rank, fresh=True)
        record = self._settings.records[self._rank] = Record(self._rank)
        _isolation.take(_isolation.Seat(self._rank, self._settings.world_size, self._settings.store_of(self._rank),
                                        self._make_group, record))
        torch.set_num_threads(1)
        try:
            with torch.autograd.set_multithreading_enabled(False):
                main(*args)
                for work in list(self._pending.values()):
                    work.wait()
                record.gradients()
        finally:
            torch._C._distributed_c10d._unregister_all_process_groups()
            _isolation.take(None)
