"""What torch keeps once a process, kept once a rank instead while ranks are threads of one."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Optional

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

BACKEND = "shardproof"
_mine = threading.local()


class Seat:
    """A rank, as torch.distributed finds it: `make_group(name, members, group_rank)` makes its process groups."""

    def __init__(self, rank: int, world_size: int, store: dist.Store, make_group: Callable[..., Any],
                 record: Any) -> None:
        self.rank = rank
        self.world_size = world_size
        self.store = store
        self.make_group = make_group
        self.record = record  # _watch.Record


def seat() -> Optional[Seat]:
    """Of this thread; None outside of a run."""
    return getattr(_mine, "seat", None)


def take(taken: Optional[Seat]) -> None:
    _mine.seat = taken
    _mine.world = _World()


class _World:
    """The fields of torch's own, by whatever names this version looks for."""

    def __init__(self) -> None:
        self.default_pg: Any = None
        self.group_count = 0
        self.comms: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made: dict[Any, Any] = {}
        setattr(self, name, made)
        return made

    if hasattr(c10d._World, "pg_config_info"):
        pg_config_info = c10d._World.pg_config_info


class _WorldOfThread:
    """Stands where torch keeps its world: of a rank's thread the rank's own, of any other what was there."""

    def __init__(self, outside: Any) -> None:
        object.__setattr__(self, "_outside", outside)

    def _now(self) -> Any:
        return self._outside if seat() is None else _mine.world

    def __getattr__(self, name: str) -> Any:
        return getattr(self._now(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._now(), name, value)


def _create(options: Any, _: Any = None) -> Any:
    taken = seat()
    if taken is None:
        raise RuntimeError(f'backend "{BACKEND}" exists inside of shardproof.torch.run(main, world_size=...) only')
    members = list(options.global_ranks_in_group) or list(range(taken.world_size))
    return taken.make_group(options.group_id, members, options.group_rank)


def register() -> None:
    if BACKEND.upper() not in dist.Backend._plugins:
        dist.Backend.register_backend(BACKEND, _create, extended_api=True, devices=["cpu"])


def _new_process_group(made: Callable[..., Any]) -> Callable[..., Any]:
    """Every group of a rank is one of ours, whatever backend its program names."""

    def helper(group_size: int, group_rank: int, members: list[int], backend: Any, *rest: Any, **named: Any) -> Any:
        taken = seat()
        if taken is None:
            return made(group_size, group_rank, members, backend, *rest, **named)
        if not members and (group_rank, group_size) != (taken.rank, taken.world_size):
            raise ValueError(f"init_process_group was given rank {group_rank} of {group_size}, and this is rank "
                             f"{taken.rank} of {taken.world_size}: leave rank and world_size out, or ask "
                             "shardproof.torch.rank()")
        for dropped in ("backend_options", "pg_options", "device_id"):
            if dropped in named:
                named[dropped] = None
        group, store = made(group_size, group_rank, members, BACKEND, *rest, **named)
        if isinstance(group, dist.ProcessGroup):
            group.made = True
        # Programs ask for it. One of GPUs would send them there.
        if str(backend) == "gloo" and group in c10d._world.pg_map:
            c10d._world.pg_map[group] = ("gloo", store)
        return group, store

    return helper


def _rendezvous(known: Callable[..., Any]) -> Callable[..., Any]:
    def rendezvous(url: str, rank: int = -1, world_size: int = -1, **named: Any) -> Any:
        taken = seat()
        if taken is None:
            yield from known(url, rank, world_size, **named)
            return
        yield (taken.store, taken.rank if rank == -1 else rank, taken.world_size if world_size == -1 else world_size)

    return rendezvous


def _barrier(known: Callable[..., Any]) -> Callable[..., Any]:
    # Ranks would wait in the store, where nobody sees them waiting; groups meet in their first call anyway.
    def barrier(*arguments: Any, **named: Any) -> None:
        if seat() is None:
            known(*arguments, **named)

    return barrier


@contextmanager
def threads_are_ranks() -> Iterator[None]:
    """While it lasts, torch.distributed is each rank thread's own."""
    kept = {name: getattr(c10d, name)
            for name in ("_world", "_new_process_group_helper", "rendezvous", "_store_based_barrier")}
    hook = sys.excepthook
    register()
    c10d._world = _WorldOfThread(kept["_world"])
    c10d._new_process_group_helper = _new_process_group(kept["_new_process_group_helper"])
    c10d.rendezvous = _rendezvous(kept["rendezvous"])
    c10d._store_based_barrier = _barrier(kept["_store_based_barrier"])
    torch._C._distributed_c10d._set_thread_isolation_mode(True)
    try:
        yield
    finally:
        torch._C._distributed_c10d._set_thread_isolation_mode(False)
        for name, value in kept.items():
            setattr(c10d, name, value)
        sys.excepthook = hook


_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")


def variables_of(rank: int, world_size: int) -> dict[str, str]:
    """What torchrun puts into the environment: one node."""
    return {"RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": str(rank),
            "LOCAL_WORLD_SIZE": str(world_size), "GROUP_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}


class Turns:
    """The one process's random numbers and environment, handed from rank to rank where one runs at a time."""

    def __init__(self, world_size: int) -> None:
        self._first = torch.get_rng_state()
        self._states: dict[int, torch.Tensor] = {}
        self._environment = {name: os.environ.get(name) for name in _VARIABLES}
        self._world_size = world_size
        self._turn = -1

    def enter(self, rank: int, fresh: bool = False) -> None:
        """The rank runs from here on. `fresh`: from the beginning of its program."""
        if self._turn >= 0 and self._turn != rank:
            self._states[self._turn] = torch.get_rng_state()
        if fresh or self._turn != rank:
            torch.set_rng_state(self._first if fresh else self._states[rank])
            os.environ.update(variables_of(rank, self._world_size))
        self._turn = rank

    def restore(self) -> None:
        torch.set_rng_state(self._first)
        for name, value in self._environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class InTurns:
    """The scheme of one rank that others take turns with: after every call that may have waited, the turn is taken."""

    def __init__(self, scheme: Any, turns: Turns) -> None:
        self._scheme = scheme
        self._turns = turns

    def call(self, rank: int, *arguments: Any) -> Any:
        try:
            return self._scheme.call(rank, *arguments)
        finally:
            self._turns.enter(rank)

    def wait(self, rank: int, call: Any) -> None:
        try:
            self._scheme.wait(rank, call)
        finally:
            self._turns.enter(rank)

    def group(self, rank: int, label: str, members: list[int]) -> Any:
        return self._scheme.group(rank, label, members)
