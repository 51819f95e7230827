"""Where a rank's part of a tensor lies, in DTensor's words. A tensor of more than two dims is a matrix whose rows are all
dims but the last."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Optional, Union


@dataclass(frozen=True)
class Replicate:
    """Every rank holds the whole, bit for bit the same."""


@dataclass(frozen=True)
class Shard:
    """The rank holds a part of `dim`: that of its index along `axis`, the first ranks one longer; or, with `begin`, what
    begins there and is as long as the tensor that is tapped."""

    dim: int
    axis: str = "tp"
    begin: Optional[int] = None


@dataclass(frozen=True)
class Partial:
    """The rank holds a partial sum; those of all ranks along the axes, or of the listed ranks, add up to the tensor."""

    over: Union[str, tuple[str, ...], tuple[int, ...], list[str], list[int]] = "tp"


@dataclass(frozen=True)
class Listed:
    """The rank holds these rows, in this order."""

    rows: Sequence[int]


Placement = Union[Replicate, Shard, Partial, Listed]


@dataclass
class Block:
    """Which elements of the [rows, cols] matrix a part is."""

    whole: tuple[int, int]
    rows: tuple[int, int]
    cols: tuple[int, int]
    row_list: list[int] = field(default_factory=list)
    partial: list[str] = field(default_factory=list)
    partial_ranks: list[int] = field(default_factory=list)


def partition(count: int, shards: int, shard: int) -> tuple[int, int]:
    """(begin, count) of the part that `shard` of `shards` holds: partition(10, 4, 1) is (3, 3)."""
    quotient, remainder = divmod(count, shards)
    return shard * quotient + min(shard, remainder), quotient + (shard < remainder)


def block(
    placements: Union[Placement, Sequence[Placement]],
    whole: tuple[int, ...],
    part: tuple[int, ...],
    place: dict[str, tuple[int, int]],
) -> Block:
    """`place` has a rank's (index, size) along every axis. Raises ValueError where the shapes do not fit."""
    every = [placements] if isinstance(placements, (Replicate, Shard, Partial, Listed)) else list(placements)
    whole, part = _two_dims(whole), _two_dims(part)
    extents = [(0, count) for count in whole]
    made = Block((math.prod(whole[:-1]), whole[-1]), (0, 0), (0, 0))
    for placement in every:
        if isinstance(placement, Shard):
            dim = placement.dim + len(whole) if placement.dim < 0 else placement.dim
            if not 0 <= dim < len(whole) or placement.axis not in place or len(part) != len(whole):
                raise ValueError(f"{placement} does not fit a tensor of shape {list(whole)} tapped as {list(part)}")
            index, size = place[placement.axis]
            begin, count = extents[dim]
            if placement.begin is not None:
                extents[dim] = (placement.begin, part[dim])
            else:
                first, count = partition(count, size, index)
                extents[dim] = (begin + first, count)
        elif isinstance(placement, Partial):
            for over in [placement.over] if isinstance(placement.over, str) else placement.over:
                if isinstance(over, str):
                    made.partial.append(over)
                else:
                    made.partial_ranks.append(over)
        elif isinstance(placement, Listed):
            made.row_list = [int(row) for row in placement.rows]
    made.cols = extents[-1]
    counts = [count for _, count in extents]
    if made.row_list:
        made.rows = (0, len(made.row_list))
        counts = [len(made.row_list), counts[-1]]
        part = (math.prod(part[:-1]), part[-1])
    else:
        _place_rows(made, extents, whole)
    if list(part) != counts:
        raise ValueError(f"a part of shape {list(part)} is tapped where {placements} of {list(whole)} is {counts}")
    return made


def block_at(part: tuple[int, ...], whole: tuple[int, ...], offsets: tuple[int, ...]) -> Block:
    """Of that shape, at these offsets of the whole. Raises ValueError where it does not lie within."""
    if not len(part) == len(whole) == len(offsets):
        raise ValueError(f"a part of shape {list(part)} at {list(offsets)} of {list(whole)}")
    offsets = (0,) * (2 - len(offsets)) + offsets
    part, whole = _two_dims(part), _two_dims(whole)
    if any(begin < 0 or begin + count > size for begin, count, size in zip(offsets, part, whole)):
        raise ValueError(f"a part of shape {list(part)} at {list(offsets)} does not lie in {list(whole)}")
    extents = list(zip(offsets, part))
    made = Block((math.prod(whole[:-1]), whole[-1]), (0, 0), extents[-1])
    _place_rows(made, extents, whole)
    return made


def _place_rows(made: Block, extents: Sequence[tuple[int, int]], whole: tuple[int, ...]) -> None:
    if all(count == size for (_, count), size in zip(extents[1:-1], whole[1:-1])):
        inner = math.prod(whole[1:-1])
        made.rows = (extents[0][0] * inner, extents[0][1] * inner)
        return
    rows = [0]
    for (begin, count), size in zip(extents[:-1], whole[:-1]):
        rows = [row * size + begin + i for row in rows for i in range(count)]
    made.row_list, made.rows = rows, (0, len(rows))


def _two_dims(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (1,) * (2 - len(shape)) + tuple(shape)
