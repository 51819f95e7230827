"""Which part of a tensor a rank holds, from DTensor's placements, whether it is a DTensor or a plain local tensor."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Optional

import torch

try:
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
except ImportError:  # before 2.5 they are private
    from torch.distributed._tensor import DTensor, Partial, Replicate, Shard
    from torch.distributed._tensor._utils import compute_local_shape_and_global_offset

Placements = Sequence[Any]


@dataclass(frozen=True)
class Axis:
    """A dim of a device mesh, as one rank sees it."""

    name: str
    index: int
    size: int
    ranks: tuple[int, ...]


def axes_of(mesh: Any) -> Optional[list[Axis]]:
    """None on a rank that the mesh does not hold."""
    at = mesh.get_coordinate()
    if at is None:
        return None
    names = mesh.mesh_dim_names or [f"dim {i}" for i in range(mesh.mesh.dim())]
    axes = []
    for dim, index in enumerate(at):
        place: list[Any] = list(at)
        place[dim] = slice(None)
        ranks = tuple(mesh.mesh[tuple(place)].tolist())
        axes.append(Axis(str(names[dim]), index, len(ranks), ranks))
    return axes


@dataclass
class Block:
    """offsets and the part's own shape in the whole; partial: whose sum is the whole's block."""

    offsets: tuple[int, ...]
    partial: tuple[int, ...] = ()


@dataclass
class Piece:
    """What one rank holds of a tensor that the reference has under this name. `placements` of None: whatever the shapes
    say. `block`: known already, of a DTensor."""

    rank: int
    name: str
    step: int
    value: torch.Tensor
    axes: Sequence[Axis] = ()
    placements: Optional[Placements] = None
    block: Optional[Block] = None
    inferred: str = ""
    placed_in: Optional[tuple[int, ...]] = None

    def place(self, whole: tuple[int, ...]) -> Block:
        """Raises ValueError that says which placement to name."""
        if self.block is not None and self.placed_in == whole:
            return self.block
        if self.block is None:
            self.block = self._placed(whole)
        for begin, count, size in zip(self.block.offsets, self.value.shape, whole):
            if begin + count > size:
                raise ValueError(f"{self.name}: {list(self.value.shape)} at {list(self.block.offsets)} does not lie in "
                                 f"the reference's {list(whole)}")
        self.placed_in = whole
        return self.block

    def _placed(self, whole: tuple[int, ...]) -> Block:
        shape = tuple(self.value.shape)
        if shape == whole and self.placements is None:
            return Block((0,) * len(whole))
        if len(shape) != len(whole):
            raise ValueError(f"{self.name}: rank {self.rank} holds {list(shape)}, the reference {list(whole)}")
        placements = self._guess(whole) if self.placements is None else list(self.placements)
        if len(placements) != len(self.axes):
            raise ValueError(f"{self.name}: {len(placements)} placements for a mesh of {len(self.axes)} dims")
        extents = [(0, size) for size in whole]
        partial: tuple[int, ...] = ()
        for placement, axis in zip(placements, self.axes):
            if isinstance(placement, Partial):
                if partial:
                    raise ValueError(f"{self.name}: partial along one mesh dim is possible, not along several")
                partial = axis.ranks
            elif isinstance(placement, Shard):
                begin, count = extents[placement.dim]
                chunk = math.ceil(count / axis.size)  # as torch.chunk
                first = min(chunk * axis.index, count)
                extents[placement.dim] = (begin + first, min(chunk, count - first))
        expected = tuple(count for _, count in extents)
        if expected != shape:
            raise ValueError(f"{self.name}: rank {self.rank} holds {list(shape)} where {placements} of {list(whole)} "
                             f"is {list(expected)}")
        return Block(tuple(begin for begin, _ in extents), partial)

    def _guess(self, whole: tuple[int, ...]) -> Placements:
        """A plain tensor that is smaller in one dim is a shard of it, where only one mesh dim can have cut it."""
        shape = tuple(self.value.shape)
        dims = [dim for dim, (part, size) in enumerate(zip(shape, whole)) if part != size]
        if not dims:
            return [Replicate()] * len(self.axes)
        fits = []
        if len(dims) == 1:
            part, size = shape[dims[0]], whole[dims[0]]
            # Of the size that torch.chunk gives to every rank.
            fits = [i for i, axis in enumerate(self.axes) if part * axis.size == size]
        if len(fits) != 1:
            raise ValueError(f"{self.name}: rank {self.rank} holds {list(shape)} of {list(whole)}; say which part, for "
                             f'one: watch(..., placements={{"{self.name}": [Shard({dims[0]}), ...]}})')
        self.inferred = f"Shard({dims[0]}) along {self.axes[fits[0]].name}"
        return [Shard(dims[0]) if i == fits[0] else Replicate() for i in range(len(self.axes))]


class Copies:
    """Of tensors as they are now; of one that was copied not long ago, and is what it was, the same."""

    _KEPT = 64

    def __init__(self) -> None:
        self._made: dict[int, tuple[weakref.ref[torch.Tensor], torch.Tensor]] = {}  # by id()

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        original, copy = self._made.get(id(tensor), (None, None))
        # Looked at, not only asked for its version: a collective writes where autograd does not see it.
        if original is not None and original() is tensor and _same_bits(copy, tensor):
            return copy
        if len(self._made) >= self._KEPT:
            self._made.clear()
        copy = tensor.detach().clone()
        self._made[id(tensor)] = (weakref.ref(tensor), copy)
        return copy


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    b = b.detach()
    if a.shape != b.shape or a.dtype != b.dtype or not b.is_contiguous() or not a.is_contiguous():
        return False
    if b.is_neg():  # a view that torch negates when it is read
        return False
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}.get(a.element_size())
    return integer is not None and torch.equal(a.view(integer), b.view(integer))


def piece_of(tensor: torch.Tensor, rank: int, name: str, step: int, axes: Sequence[Axis],
             placements: Optional[Placements], copies: Copies) -> Optional[Piece]:
    """A copy; None on a rank that has no part in it."""
    if isinstance(tensor, DTensor):
        own = axes_of(tensor.device_mesh)
        if own is None:
            return None
        _, offsets = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
        partial = [axis.ranks for axis, placement in zip(own, tensor.placements) if isinstance(placement, Partial)]
        if len(partial) > 1:
            raise ValueError(f"{name}: partial along one mesh dim is possible, not along several")
        local = tensor.to_local().detach()
        if local.numel() == 0:
            return None
        return Piece(rank, name, step, local.clone(), block=Block(tuple(offsets), partial[0] if partial else ()))
    return Piece(rank, name, step, copies.of(tensor), axes, placements)


def cover(whole: torch.Tensor, pieces: Sequence[Piece]) -> tuple[torch.Tensor, bool]:
    """Writes pieces that have their places into the whole. Which elements they cover, and whether they agree where they
    meet: the first to be written stays."""
    seen = torch.zeros(whole.shape, dtype=torch.bool)
    agree = True
    of_block: dict[tuple[tuple[int, ...], torch.Size, torch.dtype], torch.Tensor] = {}
    for piece in pieces:
        block = (piece.block.offsets, piece.value.shape, piece.value.dtype)
        if block in of_block:  # a replica
            first = of_block[block]
            agree = agree and (torch.equal(first, piece.value)
                               or torch.equal(first.to(whole.dtype), piece.value.to(whole.dtype)))
            continue
        of_block[block] = piece.value
        values = piece.value.to(whole.dtype)
        place = tuple(slice(begin, begin + count) for begin, count in zip(piece.block.offsets, values.shape))
        again = seen[place]
        if bool(again.any()):
            agree = agree and not bool((again & (whole[place] != values)).any())
            whole[place] = torch.where(again, whole[place], values)
        else:
            whole[place] = values
        seen[place] = True
    return seen, agree
