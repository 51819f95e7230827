"""What is recorded of a sharded module while it runs: weights, outputs and gradients, each with its place."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Optional, Union

import torch
import torch.nn as nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from . import _isolation
from ._pieces import Axis, Copies, Piece, Placements, axes_of, piece_of

#: What wrappers put into a module's path.
_WRAPPERS = ("module", "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")
MODEL = "model"  # the name of the module itself
INPUT = ".input"  # of what a module gets, behind its name


@functools.lru_cache(maxsize=1 << 16)
def own_path(path: str) -> str:
    return ".".join(part for part in path.split(".") if part not in _WRAPPERS)


@dataclass
class Watched:
    model: nn.Module
    axes: Sequence[Axis]
    placements: Mapping[str, Placements]
    #: By id(): the weights that were recorded, and their versions then.
    versions: dict[int, tuple[nn.Parameter, int]] = field(default_factory=dict)
    optimizer: Optional[torch.optim.Optimizer] = None

    def unchanged(self, module: nn.Module) -> bool:
        """Whether a module without modules in it has the weights that were recorded."""
        for weight in module._parameters.values():
            if weight is not None:
                recorded = self.versions.get(id(weight))
                if recorded is None or recorded[1] != weight._version:
                    return False
        return True

    def placements_of(self, name: str) -> Optional[Placements]:
        pattern = _first_fit(tuple(self.placements), name)
        if pattern is None:
            return None
        placements = self.placements[pattern]
        return placements if isinstance(placements, (list, tuple)) else [placements]


@functools.lru_cache(maxsize=1 << 16)  # every step, and every rank that is a thread, asks for the same names
def _first_fit(patterns: tuple[str, ...], name: str) -> Optional[str]:
    # "*" says something of what modules give; of what they get, "*.input".
    return next((pattern for pattern in patterns
                 if fnmatchcase(name, pattern) and pattern.endswith(INPUT) == name.endswith(INPUT)), None)


@dataclass
class Record:
    """Of one rank, or of the reference (rank -1)."""

    rank: int
    weights: list[Piece] = field(default_factory=list)
    taps: list[Piece] = field(default_factory=list)
    inputs: list[Piece] = field(default_factory=list)  # of modules without modules in them, named as what they give
    watched: list[Watched] = field(default_factory=list)
    calls: dict[str, int] = field(default_factory=dict)
    copies: Copies = field(default_factory=Copies)

    def next_step(self, name: str) -> int:
        step = self.calls.get(name, -1) + 1
        self.calls[name] = step
        return step

    def add(self, to: list[Piece], tensor: torch.Tensor, name: str, step: int, watched: Watched,
            placements: Optional[Placements] = None) -> None:
        if not (tensor.is_floating_point() or tensor.dtype in (torch.int32, torch.int64)):
            return
        placed = watched.placements_of(name) if placements is None else placements
        piece = piece_of(tensor, self.rank, name, step, watched.axes, placed, self.copies)
        if piece is not None:
            to.append(piece)

    def finished(self) -> Record:
        """Without the modules, whose hooks have the record: what may go to another process, and keeps no other alive."""
        for watched in self.watched:
            watched.model, watched.versions, watched.optimizer = nn.Identity(), {}, None
        self.copies = Copies()
        return self

    def gradients(self) -> None:
        """Those that are there now."""
        for watched in self.watched:
            # As backward reaches them: what is behind comes first.
            for path, parameter in reversed(list(watched.model.named_parameters())):
                if parameter.grad is not None:
                    name = own_path(path)
                    self.add(self.taps, parameter.grad, f"{name}.grad", -1, watched, watched.placements_of(name))
            if watched.optimizer is not None:
                self._optimizer(watched, watched.optimizer)

    def _optimizer(self, watched: Watched, optimizer: torch.optim.Optimizer) -> None:
        """What it keeps of each parameter, and the parameter after its steps."""
        for path, parameter in watched.model.named_parameters():
            name = own_path(path)
            kept = {key: value for key, value in optimizer.state.get(parameter, {}).items()
                    if isinstance(value, torch.Tensor) and value.shape == parameter.shape}
            for key, value in {**kept, "after": parameter}.items():
                if kept:
                    self.add(self.taps, value, f"{name}.{key}", -1, watched, watched.placements_of(name))


def watch(
    model: nn.Module,
    names: Union[str, Sequence[str]] = "*",
    *,
    mesh: Optional[DeviceMesh] = None,
    placements: Optional[Mapping[str, Any]] = None,
    optimizer: Optional[torch.optim.Optimizer] = None,
) -> nn.Module:
    """From a rank: what the modules of these names (patterns; the module itself is "model") give, and the gradients
    that its parameters have when main() returns, are held to the reference of shardproof.torch.run, which gets the
    weights that the model has now. Returns the model.

    placements: of plain tensors, by patterns of their names ("*.up.weight", "layers.0.mlp"): DTensor's placements, one
    for each dim of `mesh` (all ranks in one dim, unless given). A DTensor has its own; where nothing is said, a tensor
    as large as the reference's is replicated, and one that only one mesh dim can have cut is a shard.

    optimizer: what it keeps of every parameter when main() returns ("up.weight.exp_avg"), and the parameter then
    ("up.weight.after"), are held to those of the optimizer that step(module) returns.
    """
    record = _record("watch")
    if mesh is None:
        mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),), mesh_dim_names=("world",))
    axes = axes_of(mesh)
    if axes is None:
        raise ValueError(f"rank {record.rank} watches a module on a mesh that it is no part of: {mesh}")
    watched = Watched(model, axes, dict(placements or {}), optimizer=optimizer)
    record.watched.append(watched)
    for path, parameter in model.named_parameters():
        record.add(record.weights, parameter, own_path(path), -1, watched)
        watched.versions[id(parameter)] = (parameter, parameter._version)
    hook(model, [names] if isinstance(names, str) else list(names), record, watched)
    return model


def tap(name: str, tensor: torch.Tensor, *placements: Any, mesh: Optional[DeviceMesh] = None) -> None:
    """Holds a tensor that no module gives, a loss for one, to what the reference's step taps under the same name.
    placements: one for each dim of `mesh`, as watch has them; nothing is said of a replicated one. Outside of a run it
    does nothing."""
    if _isolation.seat() is None and _reference is None:
        return
    record = _record("tap")
    axes: Sequence[Axis] = ()
    if record.rank >= 0 and placements:
        if mesh is None:
            mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
        axes = axes_of(mesh) or ()
    watched = Watched(nn.Identity(), axes, {})
    record.add(record.taps, torch.as_tensor(tensor), name, record.next_step(name), watched, placements if axes else ())


_reference: Optional[Record] = None


class recording_reference:
    """While it lasts, what is tapped outside of any rank is the reference's."""

    def __init__(self, record: Record) -> None:
        self._record = record

    def __enter__(self) -> None:
        global _reference
        _reference = self._record

    def __exit__(self, *_: Any) -> None:
        global _reference
        _reference = None


def _record(asker: str) -> Record:
    seat = _isolation.seat()
    record = seat.record if seat is not None else _reference
    if record is None:
        raise RuntimeError(f"shardproof.torch.{asker}() was called outside of shardproof.torch.run")
    return record


def hook(model: nn.Module, names: Iterable[str], record: Record, watched: Watched) -> None:
    patterns = list(names)
    found = False
    for path, module in model.named_modules():
        name = own_path(path) or MODEL
        if path and not own_path(path):
            continue  # a wrapper, which gives what the model gives
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            found = True
            module.register_forward_hook(_hook(name, record, watched))
    if not found:
        there = ", ".join(path for path, _ in model.named_modules() if path)
        raise ValueError(f"no module is named {' or '.join(patterns)}: {there}")


def _hook(name: str, record: Record, watched: Watched) -> Any:
    def after(module: nn.Module, arguments: Any, output: Any) -> None:
        step = record.next_step(name)
        leaf = next(module.children(), None) is None
        if leaf and len(arguments) == 1 and isinstance(arguments[0], torch.Tensor) and watched.unchanged(module):
            record.add(record.inputs, arguments[0], name + INPUT, step, watched)
        for suffix, tensor in _tensors(output):
            record.add(record.taps, tensor, name + suffix, step, watched)

    return after


def _tensors(output: Any, suffix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(output, torch.Tensor):
        yield suffix, output
    elif isinstance(output, Mapping):
        for key, value in output.items():
            yield from _tensors(value, f"{suffix}.{key}")
    elif isinstance(output, (list, tuple)):
        for i, value in enumerate(output):
            yield from _tensors(value, f"{suffix}.{i}")
