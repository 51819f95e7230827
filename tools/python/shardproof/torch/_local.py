"""Modules whose arithmetic is known, judged alone: what the ranks' parts add up to, against the unsharded module in
float64 on the ranks' own inputs, within the forward error bound of its format. No sample statistics, no end-to-end
error.

Two rounding profiles. "fused": a module's result is stored once. "eager": every op in it stores its own, a linear's
product before its bias and what a norm normalises before its weight. In both, sums are accumulated in float32 or
wider, in any order: with u a unit roundoff, n terms whose magnitudes sum to S are off by at most gamma(n) S, gamma(n)
= n u / (1 - n u) (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., 3.1). A linear whose terms lie on
r ranks stores r partial sums in the module's own format and adds them and a bias: gamma(r + 1) S more, S over all
terms. A variance is off by at most gamma(4 n) kappa, kappa^2 = 1 + mean^2 / variance, relative to itself (Chan,
Golub, LeVeque, The American Statistician 37, 1983, for the updating algorithms; 4 for their constant). exp, erf, tanh
and rsqrt are taken to be within 4 u, which torch's vector library states as at most 1 ulp = 2 u.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Optional

import numpy as np
import torch
import torch.nn as nn

from ._pieces import Piece, cover

PROFILES = ("eager", "fused")
UNIT = {torch.float64: 2.0 ** -53, torch.float32: 2.0 ** -24, torch.float16: 2.0 ** -11, torch.bfloat16: 2.0 ** -8}
#: What a store of a value below the normal range may lose.
_UNDERFLOW = {torch.float64: 2.0 ** -1075, torch.float32: 2.0 ** -150, torch.float16: 2.0 ** -25,
              torch.bfloat16: 2.0 ** -134}
#: Of exp, erf, tanh and rsqrt, in unit roundoffs.
_FUNCTION = 4


@dataclass(frozen=True)
class Rounding:
    """Of one call. unit, wide: roundoffs of what is stored and of what sums are accumulated in. splits: the ranks that
    a contraction's terms lie on."""

    unit: float
    wide: float
    eager: bool
    splits: int


@dataclass(frozen=True)
class Local:
    """What one call has to give, in float64, and how far each element may be off."""

    values: np.ndarray
    bound: np.ndarray


def gamma(terms: int, unit: float) -> float:
    return terms * unit / (1 - terms * unit) if terms * unit < 1 else float("inf")


Bound = Callable[[nn.Module, torch.Tensor, torch.Tensor, Rounding], torch.Tensor]


def _linear(module: nn.Linear, x: torch.Tensor, y: torch.Tensor, of: Rounding) -> torch.Tensor:
    terms = x.abs() @ module.weight.abs().T
    bias = torch.zeros(()).double() if module.bias is None else module.bias.abs()
    bound = gamma(module.in_features + 1, of.wide) * (terms + bias)
    if of.splits > 1:
        bound = bound + gamma(of.splits + 1, of.unit) * terms
    if of.eager and module.bias is not None:
        bound = bound + of.unit * (y - module.bias).abs()
    return bound


def _embedding(module: nn.Embedding, x: torch.Tensor, y: torch.Tensor, of: Rounding) -> torch.Tensor:
    return torch.zeros_like(y)  # a copy, and zeros beside it where the vocabulary is cut


def _normalised(module: nn.Module, x: torch.Tensor, y: torch.Tensor, of: Rounding, centred: bool) -> torch.Tensor:
    dims = tuple(range(-len(module.normalized_shape), 0))
    n = int(np.prod(module.normalized_shape))
    mean = x.mean(dims, keepdim=True) if centred else torch.zeros((), dtype=torch.float64)
    variance = (x - mean).square().mean(dims, keepdim=True)
    kappa = (1 + mean.square() / variance.clamp_min(1e-300)).sqrt() if centred else torch.ones_like(variance)
    off_mean = gamma(n, of.wide) * x.abs().mean(dims, keepdim=True) if centred else mean
    off_variance = gamma(4 * n, of.wide) * kappa * variance + off_mean.square()
    largest = (variance - off_variance).clamp_min(0) + module.eps
    root = (variance + module.eps).rsqrt()
    off_root = largest.rsqrt() - root + (_FUNCTION + 2) * of.wide * largest.rsqrt()
    d = x - mean
    # Or, as torch's kernel has it, x times the root less the mean times it.
    off_d = off_mean + 2 * of.wide * (x.abs() + mean.abs())
    normal = (d * root).abs()
    off = off_d * (root + off_root) + d.abs() * off_root + of.wide * normal
    if of.eager:
        off = off + of.unit * (normal + off)
    weight = torch.ones(()).double() if module.weight is None else module.weight.abs()
    bias = getattr(module, "bias", None)
    product = normal * weight
    off = off * weight + 2 * of.wide * product
    if bias is not None:
        off = off + of.wide * (product + bias.abs()) + (of.unit * product if of.eager else 0)
    return off


def _layer_norm(module: nn.Module, x: torch.Tensor, y: torch.Tensor, of: Rounding) -> torch.Tensor:
    return _normalised(module, x, y, of, centred=True)


def _rms_norm(module: nn.Module, x: torch.Tensor, y: torch.Tensor, of: Rounding) -> torch.Tensor:
    return _normalised(module, x, y, of, centred=False)


def _gate(module: nn.Module, x: torch.Tensor, y: torch.Tensor, of: Rounding) -> torch.Tensor:
    """x times a function within [0, 1]: 1 + erf or 1 + tanh cancels where x is far below zero, which costs units of x.
    The cube in GELU's tanh form moves its argument by no more than 8 units, and the function by no more than that."""
    return of.wide * (2 * _FUNCTION + 8) * x.abs()


def _squashed(module: nn.Module, x: torch.Tensor, y: torch.Tensor, of: Rounding) -> torch.Tensor:
    return of.wide * (_FUNCTION + 2) * y.abs()


def _copied(module: nn.Module, x: torch.Tensor, y: torch.Tensor, of: Rounding) -> torch.Tensor:
    return torch.zeros_like(y)


BOUNDS: Mapping[type, Bound] = {
    nn.Linear: _linear,
    nn.Embedding: _embedding,
    nn.LayerNorm: _layer_norm,
    **({nn.RMSNorm: _rms_norm} if hasattr(nn, "RMSNorm") else {}),  # since 2.4
    nn.SiLU: _gate,
    nn.GELU: _gate,
    nn.Sigmoid: _squashed,
    nn.Tanh: _squashed,
    nn.ReLU: _copied,
    nn.Identity: _copied,
}


def known(module: nn.Module) -> bool:
    """Whether the arithmetic is that of the class alone. A subclass may do anything, an embedding may renormalise, what
    works in place leaves no input, and an eps that is not named depends on the format."""
    if type(module) not in BOUNDS or getattr(module, "max_norm", None) is not None:
        return False
    if getattr(module, "inplace", False):
        return False
    return getattr(module, "eps", 0.0) is not None


def one_format(module: nn.Module, weights: Sequence[Piece], inputs: Sequence[Piece], outputs: Sequence[Piece]) -> bool:
    """Whether what the ranks gave, hold and got of a call is of one format, which `module`, the unsharded one, can
    hold. A program that converts on the way, as autocast does, computes in some other one."""
    formats = {piece.value.dtype for piece in [*weights, *inputs, *outputs] if piece.value.is_floating_point()}
    if len(formats) != 1:
        return False
    (format_of,) = formats
    return all(torch.promote_types(p.dtype, format_of) == p.dtype for p in module.parameters())


def local(module: nn.Module, inputs: Sequence[Piece], outputs: Sequence[Piece], whole_in: tuple[int, ...],
          profile: str) -> Optional[Local]:
    """module: the unsharded one, in float64, with the ranks' weights. None where the inputs of the ranks are not known
    or are not one tensor, cut or replicated: then nothing is said here.

    whole_in: the shape of the unsharded module's input in the reference's run."""
    x = assembled(inputs, whole_in)
    if x is None:
        return None
    with torch.no_grad():
        y = module(x)
        dtype = outputs[0].value.dtype
        if dtype not in UNIT:
            return None
        unit = UNIT[dtype]
        splits = len({piece.place(whole_in).offsets[-1] for piece in inputs}) if x.dim() else 1
        of = Rounding(unit, min(unit, UNIT[torch.float32]), profile == "eager", splits)
        bound = BOUNDS[type(module)](module, x, y, of)
        if not isinstance(module, (nn.Embedding, nn.Identity, nn.ReLU)):
            # The last store; a partial sum's is in what splits adds.
            bound = bound + unit * (y.abs() + bound) + _UNDERFLOW[dtype]
        if dtype == torch.float64:
            bound = 2 * bound  # what is expected is no better
    return Local(y.numpy(), bound.numpy())


def assembled(pieces: Sequence[Piece], whole: tuple[int, ...]) -> Optional[torch.Tensor]:
    """Floating-point values in float64. None unless the pieces cover the whole and agree where they meet."""
    if not pieces:
        return None
    floating = pieces[0].value.is_floating_point()
    try:
        if any(piece.place(whole).partial for piece in pieces):
            return None
    except ValueError:
        return None
    tensor = torch.empty(whole, dtype=torch.float64 if floating else pieces[0].value.dtype)
    seen, agree = cover(tensor, pieces)
    return tensor if agree and bool(seen.all()) else None


def excess(pieces: Sequence[Piece], expected: Local) -> float:
    """The worst error in units of its element's bound: more than 1 is wrong. Partial sums are added up in float64."""
    whole = tuple(expected.values.shape)
    sums: dict[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]], np.ndarray] = {}
    first: dict[tuple[tuple[int, ...], tuple[int, ...]], torch.Tensor] = {}
    for piece in pieces:
        block = piece.place(whole)
        key = (block.offsets, tuple(piece.value.shape), block.partial or (piece.rank, -1))
        if not block.partial:
            like = first.setdefault(key[:2], piece.value)
            if like is not piece.value and like.dtype == piece.value.dtype and torch.equal(like, piece.value):
                continue  # a replica, as wrong as the first
        value = piece.value.double().numpy()
        sums[key] = sums[key] + value if key in sums else value
    worst = 0.0
    for (offsets, shape, _), value in sums.items():
        place = tuple(slice(begin, begin + count) for begin, count in zip(offsets, shape))
        error, bound = np.abs(value - expected.values[place]), expected.bound[place]
        if error.size:
            ratio = np.divide(error, bound, out=np.where(error > 0, np.inf, 0.0), where=bound > 0)
            worst = max(worst, float(np.max(np.where(np.isnan(ratio), np.inf, ratio))))
    return worst
