"""What was recorded on the ranks, held to the unsharded module in float64."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np
import torch
import torch.nn as nn
from torch.overrides import TorchFunctionMode

from .. import _scheme
from .._reports import Divergence, Tap, VerifyReport
from . import _local, _watch
from ._local import UNIT, Local
from ._pieces import Piece, cover

#: Beyond so many times the estimate a tensor is shown, where the caller has named no number.
SUSPECT = 16.0

#: Relative to a row's size: beyond it a tensor of zeros would pass.
_WIDEST = 0.5

Key = tuple[str, int]


@dataclass
class Expected:
    """values: in float64. estimate: the error of the unsharded module in its own format, relative to a row's size.
    alone: what the module has to give for what the ranks gave it, where its arithmetic is known."""

    values: np.ndarray
    estimate: float
    alone: Optional[Local] = None


Tensors = Mapping[Key, tuple[Sequence[Piece], Expected]]


def held_to_reference(records: Sequence[_watch.Record], world_size: int, reference: Callable[[], nn.Module],
                      step: Optional[Callable[[nn.Module], Any]], max_amplification: Optional[float],
                      profile: str, report: VerifyReport) -> VerifyReport:
    pieces: dict[Key, list[Piece]] = {}
    for record in records:
        for piece in record.taps:
            pieces.setdefault((piece.name, piece.step), []).append(piece)
    if not pieces:
        report.notes.append("nothing was watched or tapped: shardproof.torch.watch(model)")
        return report
    module = reference()
    if not isinstance(module, nn.Module):
        raise TypeError(f"reference() returned a {type(module).__name__}: the unsharded nn.Module is needed")
    weights: dict[str, list[Piece]] = {}
    for record in records:
        for piece in record.weights:
            weights.setdefault(piece.name, []).append(piece)
    differing = gather_weights(module, weights)
    degrees = degrees_of(records, world_size)
    if differing is not None:
        first = Expected(_whole(module, differing), 0.0)
        return _judged(report, degrees, {(differing, -1): (weights[differing], first)}, 0.0, True)
    expected, whole_inputs = expectations(module, step, pieces)
    inputs: dict[Key, list[Piece]] = {}
    for record in records:
        for piece in record.inputs:
            inputs.setdefault((piece.name.removesuffix(_watch.INPUT), piece.step), []).append(piece)
    judge_alone(module, expected, weights, pieces, inputs, whole_inputs, profile)
    return _judged(report, degrees, {key: (pieces[key], expected[key]) for key in pieces},
                   SUSPECT if max_amplification is None else max_amplification, max_amplification is not None)


def judge_alone(module: nn.Module, expected: Mapping[Key, Expected], weights: Mapping[str, Sequence[Piece]],
                outputs: Mapping[Key, Sequence[Piece]], inputs: Mapping[Key, Sequence[Piece]],
                whole_inputs: Mapping[Key, tuple[int, ...]], profile: str) -> None:
    """Fills in `alone` where a module's arithmetic and what it got are known."""
    modules = {_watch.own_path(path) or _watch.MODEL: made for path, made in module.named_modules()}
    exact: dict[str, nn.Module] = {}  # one for all steps
    for key, held in expected.items():
        found = modules.get(key[0])
        if found is None or not _local.known(found) or key not in inputs or key not in whole_inputs:
            continue
        own = [piece for name, _ in found.named_parameters() for piece in weights.get(f"{key[0]}.{name}", [])]
        if _local.one_format(found, own, inputs[key], outputs[key]):
            if key[0] not in exact:
                exact[key[0]] = copy.deepcopy(found).to(torch.float64)
            held.alone = _local.local(exact[key[0]], inputs[key], outputs[key], whole_inputs[key], profile)


def degrees_of(records: Sequence[_watch.Record], world_size: int) -> dict[str, int]:
    """The watched mesh in the axes that causes are told in: those of its names where they are of ours, in our order, or
    else tp, cp, dp, pp for its dims from the last, whose ranks are neighbours. All ranks are dp where meshes differ."""
    meshes = {tuple((axis.name, axis.size) for axis in watched.axes)
              for record in records for watched in record.watched}
    known = ["tp", "cp", "dp", "pp"]
    if len(meshes) == 1:
        dims = list(meshes.pop())[::-1]
        in_order = all(_counts(records, i) for i in range(len(dims))) and len(dims) <= len(known)
        if in_order and math.prod(size for _, size in dims) == world_size:
            names = [name for name, _ in dims]
            if [name for name in known if name in names] != names:
                names = ["dp"] if len(dims) == 1 else known
            return {name: size for name, (_, size) in zip(names, dims)}
    return {"dp": world_size}


def _counts(records: Sequence[_watch.Record], dim: int) -> bool:
    """Whether the ranks along a mesh dim, counted from the last, are as far apart as all dims behind it are large."""
    for record in records:
        for watched in record.watched:
            axes = list(watched.axes)[::-1]
            apart = math.prod(axis.size for axis in axes[:dim])
            if any(b - a != apart for a, b in zip(axes[dim].ranks, axes[dim].ranks[1:])):
                return False
    return True


def _whole(module: nn.Module, name: str) -> np.ndarray:
    return dict(module.named_parameters())[name].detach().double().numpy()


def gather_weights(module: nn.Module, weights: Mapping[str, Sequence[Piece]]) -> Optional[str]:
    """Into the reference, whose every parameter they have to cover. Returns one that two ranks have other values of."""
    parameters = dict(module.named_parameters())
    unknown = sorted(set(weights) - set(parameters))
    missing = sorted(set(parameters) - set(weights)) if weights else []
    if unknown or missing:
        raise ValueError("the watched model's weights are not the reference's: "
                         + "; ".join(filter(None, [f"only on the ranks: {', '.join(unknown)}" if unknown else "",
                                                   f"only in the reference: {', '.join(missing)}" if missing else ""])))
    differing = None
    for name, held in weights.items():
        whole = parameters[name].detach()
        for piece in held:
            if piece.place(tuple(whole.shape)).partial:
                raise ValueError(f"{name}: a weight cannot be partial")
        seen, agree = cover(whole, held)
        if not agree:
            differing = differing or name
        if not bool(seen.all()):
            raise ValueError(f"{name}: the ranks hold {int(seen.sum())} of the reference's {seen.numel()} elements")
    return differing


def expectations(module: nn.Module, step: Optional[Callable[[nn.Module], Any]],
                 pieces: Mapping[Key, Sequence[Piece]]) -> tuple[dict[Key, Expected], dict[Key, tuple[int, ...]]]:
    """And the shapes of what the unsharded modules get."""
    if step is None:
        raise ValueError("step= is needed beside reference=: step(module) runs the unsharded module on the whole "
                         "batch, loss.backward() included where gradients are to be compared")
    own = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    coarse = torch.float32 if own == torch.float64 else own
    exact, inputs = _run(module, torch.float64, step)
    rounded, _ = _run(module, coarse, step)
    missing = [name if number < 1 else f"{name} ({number})" for name, number in pieces if (name, number) not in exact]
    if missing:
        raise ValueError(f"step(module) gives nothing named {', '.join(missing[:8])}: it has to run the whole program, "
                         "backward too")
    expected = {}
    for key in pieces:
        error = _relative(rounded[key], exact[key]) * (UNIT[own] / UNIT[coarse])
        expected[key] = Expected(exact[key], max(error, UNIT[own]))
    return expected, inputs


def _run(module: nn.Module, dtype: torch.dtype,
         step: Callable[[nn.Module], Any]) -> tuple[dict[Key, np.ndarray], dict[Key, tuple[int, ...]]]:
    made = copy.deepcopy(module).to(dtype)
    record = _watch.Record(rank=-1)
    watched = _watch.Watched(made, (), {}, {id(weight): (weight, weight._version) for weight in made.parameters()})
    record.watched.append(watched)

    def cast(_: nn.Module, arguments: Any, named: Any) -> Any:
        return _cast(arguments, dtype), _cast(named, dtype)

    made.register_forward_pre_hook(cast, with_kwargs=True)
    _watch.hook(made, ["*"], record, watched)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    torch.set_num_threads(1)  # no thread is left behind with which this process could not be forked
    try:
        with _watch.recording_reference(record), _InDouble() if dtype == torch.float64 else nullcontext():
            made_by_step = step(made)
    finally:
        torch.set_rng_state(state)
        torch.set_num_threads(threads)
    if isinstance(made_by_step, torch.optim.Optimizer):
        watched.optimizer = made_by_step
    record.gradients()
    record.finished()
    return ({(piece.name, piece.step): piece.value.double().numpy() for piece in record.taps},
            {(piece.name.removesuffix(_watch.INPUT), piece.step): tuple(piece.value.shape) for piece in record.inputs})


class _InDouble(TorchFunctionMode):
    """What is computed with a number in float64 is computed in float64: a loss against targets in float32, and modules
    that convert to a format by its name."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(function, "__name__", "")
        if name in ("__get__", "__set__") or not _any_double([args, kwargs]):
            return function(*args, **kwargs)
        if name in ("float", "half", "bfloat16") and args[0].dtype == torch.float64:
            return args[0]
        written = args[:1] if name == "__setitem__" or (name.endswith("_") and not name.endswith("__")) else ()
        return function(*written, *_widened(args[len(written):]), **_widened(kwargs))


def _any_double(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.dtype == torch.float64
    if isinstance(value, dict):
        return any(_any_double(item) for item in value.values())
    return isinstance(value, (list, tuple)) and any(_any_double(item) for item in value)


def _widened(value: Any) -> Any:
    if isinstance(value, torch.dtype):
        return torch.float64 if value.is_floating_point else value
    return _cast(value, torch.float64, _widened)


def _cast(value: Any, dtype: torch.dtype, each: Optional[Callable[[Any], Any]] = None) -> Any:
    of = each or (lambda item: _cast(item, dtype))
    if isinstance(value, torch.Tensor):
        return value.to(dtype) if value.is_floating_point() and value.dtype != dtype else value
    if isinstance(value, dict):
        return {key: of(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return type(value)(of(item) for item in value)
    return value


def _relative(got: np.ndarray, expected: np.ndarray) -> float:
    """The worst error, relative to its row's root mean square, which counts for at least a quarter of the tensor's."""
    if got.shape != expected.shape or not got.size:
        return 0.0
    rows = expected.reshape(-1, expected.shape[-1] if expected.ndim else 1)
    size = np.maximum(np.sqrt(np.mean(rows ** 2, axis=1)), np.sqrt(np.mean(rows ** 2)) / 4)
    worst = np.max(np.abs(got.reshape(rows.shape) - rows), axis=1)
    return float(np.max(np.divide(worst, size, out=np.zeros_like(worst), where=size > 0)))


def _judged(report: VerifyReport, degrees: Mapping[str, int], tensors: Tensors, times: float,
            gates: bool) -> VerifyReport:
    """What is judged alone decides, and estimates where they gate; the program's first wrong tensor counts."""
    order = {_shown(key): i for i, key in enumerate(tensors)}
    taps, first, wide = _held_to_estimates(degrees, tensors, times)
    wrong = first
    alone = _held_alone(degrees, tensors, taps)
    if alone is not None and (first is None or not gates or order[alone.tap] <= order[first.tap]):
        wrong = alone
    report.taps = sorted(taps.values(), key=lambda tap: order[tap.name])
    report.problems = []
    compared = [tap for tap in report.taps if tap.verdict != "inconclusive"]
    if times > 0 and compared:
        worst = max(compared, key=lambda tap: tap.other["estimates"])
        report.amplification = {"max": float(worst.other["estimates"]), "tap": worst.name, "estimated": True}
    report.notes = [f"{pieces[0].name}: taken for {pieces[0].inferred}" for pieces, _ in tensors.values()
                    if pieces[0].inferred] + wide
    report.notes += [f"{tap.name}: zero, or one value throughout: agreement proves nothing" for tap in report.taps
                     if tap.verdict == "inconclusive" and not any(note.startswith(f"{tap.name}: ") for note in wide)]
    proven = [tap for tap in compared if "alone" in tap.other]
    report.first_divergence = wrong
    report.verdict = "inconclusive" if not compared else "pass" if wrong is None else "mismatch"
    if wrong is not None and wrong is first and times > 0:
        wrong.message += f", which is estimated: {times:g} times the unsharded module's own error"
    if proven:
        report.notes.append(f"{len(proven)} of {len(report.taps)} tensors are judged alone, within their op's bound")
    if not gates and (wrong is first and wrong is not None or not proven):
        report.verdict = "inconclusive"
        report.notes.append("bounds are estimated and decide nothing: max_amplification=16 lets them")
    return report


def _held_to_estimates(degrees: Mapping[str, int], tensors: Tensors,
                       times: float) -> tuple[dict[str, Tap], Optional[Divergence], list[str]]:
    """Tensors of one bound, rounded up to a power of two, are judged together. Their taps, the first that is wrong, and
    notes of bounds too wide to say anything."""
    bounds: dict[float, list[Key]] = {}
    for key, (_, expected) in tensors.items():
        bound = min(times * expected.estimate, _WIDEST)
        bounds.setdefault(2.0 ** np.ceil(np.log2(bound)) if bound > 0 else 0.0, []).append(key)
    order = {_shown(key): i for i, key in enumerate(tensors)}
    taps: dict[str, Tap] = {}
    wide: list[str] = []
    first: Optional[Divergence] = None
    for bound, keys in bounds.items():
        found = _held(degrees, {key: tensors[key] for key in keys}, bound)
        estimates = {_shown(key): tensors[key][1].estimate for key in keys}
        for tap in found.taps:
            estimate = estimates[tap.name]
            # An error counts in bounds of its own row: in estimates, it is so many times.
            own = tap.max_error / tap.bound if tap.max_error > 0 < tap.bound else 0.0
            tap.other["estimates"] = own * bound / estimate if estimate > 0 else 0.0
            if times * estimate >= _WIDEST and tap.verdict == "pass":
                tap.verdict = "inconclusive"
                wide.append(f"{tap.name}: {times:g} times its estimate is as large as it is: agreement proves nothing")
            taps[tap.name] = tap
        at = found.first_divergence
        if at is not None and (first is None or order[at.tap] < order[first.tap]):
            first = at
    return taps, first, wide


def _held_alone(degrees: Mapping[str, int], tensors: Tensors, taps: Mapping[str, Tap]) -> Optional[Divergence]:
    """Says so in the taps; the first that is wrong."""
    first: Optional[Divergence] = None
    for key, (pieces, expected) in tensors.items():
        if expected.alone is None:
            continue
        ratio = _local.excess(pieces, expected.alone)
        tap = taps[_shown(key)]
        tap.other["alone"] = ratio
        if not ratio <= 1:
            tap.verdict = "mismatch"
            first = first or _where(degrees, key, pieces, expected.alone)
        elif tap.verdict == "inconclusive" and np.ptp(expected.alone.values) > 0:
            tap.verdict = "pass"
    return first


def _where(degrees: Mapping[str, int], key: Key, pieces: Sequence[Piece], alone: Local) -> Divergence:
    """What is wrong with a tensor that is beyond its elements' bounds, in a bound that its rows are beyond too."""
    tensors = {key: (pieces, Expected(alone.values, 0.0))}
    bound = _relative(alone.values + alone.bound, alone.values)
    found = _held(degrees, tensors, min(bound, _WIDEST)).first_divergence
    while found is None:
        bound /= 2
        found = _held(degrees, tensors, bound if bound > 2.0 ** -60 else 0.0).first_divergence
    found.message += ", of the module alone: what it gives for what the ranks gave it"
    return found


def _shown(key: Key) -> str:
    name, step = key
    return name if step < 1 else f"{name}#{step}"


def _held(degrees: Mapping[str, int], tensors: Tensors, bound: float) -> VerifyReport:
    blocks = []
    for key, (pieces, expected) in tensors.items():
        for piece in pieces:
            piece.place(expected.values.shape)
            blocks.append(_scheme.Block(piece.rank, _shown(key), piece.value, expected.values.shape,
                                        piece.block.offsets, piece.block.partial))
    return _scheme.judge_blocks(blocks, {_shown(key): expected.values for key, (_, expected) in tensors.items()},
                                degrees, bound)
