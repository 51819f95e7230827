"""Tensors as the arrays that the core moves and reduces."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, Optional

import torch
import torch.distributed as dist

_REDUCTIONS = {dist.ReduceOp.SUM: "sum", dist.ReduceOp.AVG: "average", dist.ReduceOp.MAX: "max",
               dist.ReduceOp.MIN: "min"}
_OF_BOOL = {dist.ReduceOp.SUM: "max", dist.ReduceOp.MAX: "max", dist.ReduceOp.BOR: "max", dist.ReduceOp.MIN: "min",
            dist.ReduceOp.PRODUCT: "min", dist.ReduceOp.BAND: "min"}
_FOLDS: dict[Any, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    dist.ReduceOp.PRODUCT: torch.mul, dist.ReduceOp.BAND: torch.bitwise_and, dist.ReduceOp.BOR: torch.bitwise_or,
    dist.ReduceOp.BXOR: torch.bitwise_xor}


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory without autograd. Raises TypeError, and ValueError that says what to do."""
    if tensor.device.type != "cpu":
        raise TypeError(f"a tensor on {tensor.device} is not in this machine's memory: virtual ranks compute on "
                        "device 'cpu'")
    if tensor.is_sparse:
        raise TypeError("a sparse tensor cannot be sent: pass x.to_dense()")
    if not tensor.is_contiguous():
        raise ValueError(f"a tensor of shape {list(tensor.shape)} with strides {tensor.stride()} is not contiguous: "
                         "pass x.contiguous()")
    return torch.view_as_real(tensor.detach()) if tensor.is_complex() else tensor.detach()


def moved(tensor: torch.Tensor) -> torch.Tensor:
    """What is sent of it where nothing is computed: of formats that the core does not know, the bytes."""
    plain = _plain(tensor)
    return plain.view(torch.uint8) if "float8" in str(plain.dtype) or plain.dtype == torch.bool else plain


def reduction_of(op: Any, tensor: torch.Tensor) -> tuple[Optional[str], Optional[Callable[..., torch.Tensor]]]:
    """The core's name of the reduction of such tensors, or what folds two of them where it has none."""
    names = _OF_BOOL if tensor.dtype == torch.bool else _REDUCTIONS
    for known, name in names.items():
        if op == known:
            if name == "average" and not (tensor.is_floating_point() or tensor.is_complex()):
                raise TypeError(f"ReduceOp.AVG of {tensor.dtype} is not defined")
            if tensor.is_complex() and name in ("max", "min"):
                raise TypeError(f"complex numbers have no {name}")
            return name, None
    for known, fold in _FOLDS.items():
        if op == known:
            return None, fold
    raise ValueError(f"{op} is not known here: SUM, AVG, MAX, MIN, PRODUCT, BAND, BOR and BXOR are")


def reduced(tensor: torch.Tensor) -> torch.Tensor:
    plain = _plain(tensor)
    if "float8" in str(plain.dtype):
        raise TypeError(f"{plain.dtype} cannot be summed: pass x.float()")
    return plain.view(torch.uint8) if plain.dtype == torch.bool else plain


def fold_all(parts: Sequence[torch.Tensor], fold: Callable[..., torch.Tensor]) -> torch.Tensor:
    """In the order of the ranks."""
    return reduce(fold, parts)


def cover(tensors: Sequence[torch.Tensor]) -> None:
    """Bytes of 0xff, until what belongs there has come: what is read too early is no number."""
    for tensor in tensors:
        if tensor.is_contiguous() and tensor.numel():
            moved(tensor).reshape(-1).view(torch.uint8).fill_(255)
