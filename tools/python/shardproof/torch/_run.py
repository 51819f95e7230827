"""Running a PyTorch program on virtual ranks."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Optional

import torch
import torch.distributed as dist

from .. import _group, _scheme
from .._reports import VerifyReport
from . import _isolation
from ._process_group import VirtualProcessGroup, Work

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
    schedule: Optional[int] = 0,
    schedules: int = 0,
    patience: float = 60.0,
) -> VerifyReport:
    """Runs main(*args) on that many ranks, as torchrun would, and reports what stood in its way.

    Raises RankError for what a rank raises, ValueError for arguments that do not fit, and RuntimeError inside of another
    run.
    """
    if isolation != "thread":
        raise ValueError(f'isolation="{isolation}": "thread" is what there is')
    if world_size < 1:
        raise ValueError(f"world_size={world_size}: at least one rank is needed")
    reduce_options = {"algorithm": algorithm, "wire": wire, "accumulate": accumulate}
    turns = _isolation.Turns(world_size) if schedule is not None else None
    store = dist.HashStore()

    def body(rank: _scheme.Rank) -> None:
        _Program(rank, world_size, store, turns, reduce_options).run(main, args)

    with _isolation.threads_are_ranks():
        try:
            return _scheme.run(body, dp=world_size, schedule=schedule, schedules=schedules, patience=patience)
        finally:
            if turns is not None:
                turns.restore()


class _Program:
    """main() on one rank, in its thread."""

    def __init__(self, rank: _scheme.Rank, world_size: int, store: dist.Store, turns: Optional[_isolation.Turns],
                 reduce_options: dict[str, Any]) -> None:
        self._rank = rank
        self._world_size = world_size
        self._store = dist.PrefixStore(str(id(self)), store) if False else store
        self._turns = turns
        self._scheme = rank._scheme if turns is None else _isolation.InTurns(rank._scheme, turns)
        self._options = reduce_options
        self._pending: dict[int, Work] = {}

    def _make_group(self, name: str, members: list[int], group_rank: int) -> VirtualProcessGroup:
        handle = self._scheme.group(self._rank.id, f"pg{name[:8]}", members)
        calls = _group.Group(self._scheme, self._rank.id, handle)
        return VirtualProcessGroup(group_rank, len(members), calls, name, self._pending, self._options)

    def run(self, main: Callable[..., Any], args: Sequence[Any]) -> None:
        if self._turns is not None:
            self._turns.enter(self._rank.id, fresh=True)
        _isolation.take(_isolation.Seat(self._rank.id, self._world_size, self._store, self._make_group))
        torch.set_num_threads(1)
        try:
            with torch.autograd.set_multithreading_enabled(False):
                main(*args)
                for work in list(self._pending.values()):
                    work.wait()
        finally:
            torch._C._distributed_c10d._unregister_all_process_groups()
            _isolation.take(None)
