"""Dumps for `judge`: what the modules of a PyTorch model make of some token ids."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import struct
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Optional, Union

from ._commands import Plan
from ._hooks import HOOKS, Hook

_NAMES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32"}


def save_safetensors(path: Union[str, "os.PathLike[str]"], tensors: Mapping[str, Any]) -> None:
    """Writes torch tensors to a .safetensors file, whole or not at all."""
    import torch

    header: dict[str, Any] = {}
    parts: list[bytes] = []
    end = 0
    for name, tensor in tensors.items():
        kind = str(tensor.dtype).removeprefix("torch.")
        if kind not in _NAMES:
            raise TypeError(f"{name}: {tensor.dtype}; one of {', '.join(_NAMES)} is needed")
        data = tensor.detach().cpu().contiguous()
        parts.append(data.reshape(-1).view(torch.uint8).numpy().tobytes() if data.numel() else b"")
        header[name] = {"dtype": _NAMES[kind], "shape": list(data.shape), "data_offsets": [end, end + len(parts[-1])]}
        end += len(parts[-1])
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    beside = Path(path).with_name(f".{Path(path).name}.part")
    with open(beside, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for part in parts:
            file.write(part)
    os.replace(beside, path)


def _sequences(input_ids: Any) -> list[list[int]]:
    rows = input_ids.tolist() if hasattr(input_ids, "tolist") else list(input_ids)
    if rows and isinstance(rows[0], int):
        rows = [rows]
    rows = [list(map(int, row.tolist() if hasattr(row, "tolist") else row)) for row in rows]
    if not rows or not all(rows):
        raise ValueError("input_ids: no sequence, or one without a token; lists of token ids are needed")
    return rows


def _stated_lengths(plan: Plan) -> Optional[list[int]]:
    """Of the plan's sequences, where it says how long they are."""
    if plan is None:
        return None
    if isinstance(plan, (str, os.PathLike)):
        plan = json.loads(Path(plan).read_text())
    elif not isinstance(plan, Mapping):
        plan = plan.to_dict() if hasattr(plan, "to_dict") else vars(plan)
    workload = plan.get("workload", {})
    if "tokens" in workload:
        return [len(ids) for ids in workload["tokens"]]
    if "lengths" in workload:
        return list(workload["lengths"])
    if "batch" in workload and "sequence" in workload:
        return [workload["sequence"]] * workload["batch"]
    return None


def _pattern(module: str) -> re.Pattern[str]:
    return re.compile(re.escape(module).replace(re.escape("{layer}"), r"(?P<layer>\d+)") + r"\Z")


def _pick(value: str, arguments: Sequence[Any], output: Any) -> Any:
    """What "output", "output[1]", "output.NAME" or "input[0]" is of a call; None where the call has no such thing. An
    output without that name is, or begins with, what is asked for."""
    if value.startswith("output."):
        first = output[0] if isinstance(output, tuple) and output else output
        return getattr(output, value.removeprefix("output."), first)
    kind, _, index = value.partition("[")
    if kind == "output" and not index:
        return output[0] if isinstance(output, tuple) else output
    place = int(index.rstrip("]"))
    if kind == "output" and not isinstance(output, tuple):
        return output if place == 0 else None
    values = arguments if kind == "input" else output
    return values[place] if place < len(values) else None


class _Taps:
    """Rows of every tap, sequence after sequence."""

    def __init__(self) -> None:
        self.parts: dict[str, list[Any]] = {}
        self.tokens = 0  # of the sequence that runs

    def add(self, tap: str, value: Any) -> None:
        if value is None or not hasattr(value, "detach"):
            return
        rows = value.detach().reshape(self.tokens, -1)
        if tap.endswith("router_choice"):
            rows = rows.long()
        self.parts.setdefault(tap, []).append(rows.clone())


def _watch(model: Any, hooks: Sequence[Hook], taps: _Taps) -> list[Any]:
    handles = []
    for hook in hooks:
        pattern = _pattern(hook.module)
        for name, module in model.named_modules():
            if (found := pattern.match(name)) is None:
                continue
            tap = hook.tap.format(**found.groupdict())

            def record(_: Any, arguments: Any, keywords: Any, output: Any, tap: str = tap, value: str = hook.value) -> None:
                taps.add(tap, _pick(value, arguments or tuple(keywords.values()), output))

            handles.append(module.register_forward_hook(record, with_kwargs=True))
    return handles


def _clips(module: Any) -> bool:
    """Queries, keys and values are clipped after the modules that make them: what these give is no tap."""
    return getattr(getattr(module, "config", None), "clip_qkv", None) is not None


#: Whose taps queries and keys go to, by the attention module that they belong to.
_recorded: dict[int, _Taps] = {}
_recorded_lock = threading.Lock()


def _record_attention(module: Any, query: Any, key: Any, value: Any) -> None:
    """Of [batch, heads, sequence, head_dim]. With latent attention the order of a rotated head's elements is the model's
    own, so that queries and keys are left out; values belong to no module there, nor where they are clipped."""
    if (taps := _recorded.get(id(module))) is None:
        return
    own = {"v": value} if hasattr(module, "kv_b_proj") else {"q": query, "k": key}
    if _clips(module):
        own["v"] = value
    for name, heads in own.items():
        taps.add(f"layer.{module.layer_idx}.attention.{name}", heads.transpose(1, 2))


@contextlib.contextmanager
def _attention_inputs(model: Any, taps: _Taps) -> Iterator[None]:
    """Takes queries and keys, which are no module's output, where Transformers hands them to its attention function.
    Several models may be run at the same time, each in a thread of its own."""
    try:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
    except ImportError:
        yield
        return
    registry = type(ALL_ATTENTION_FUNCTIONS)
    if not hasattr(registry, "get_interface"):
        yield
        return
    own = [id(module) for module in model.modules() if hasattr(module, "layer_idx")]
    with _recorded_lock:
        if not _recorded:
            original = registry.get_interface

            @functools.wraps(original)
            def get_interface(self: Any, *arguments: Any, **keywords: Any) -> Any:
                attend = original(self, *arguments, **keywords)

                def recorded(module: Any, query: Any, key: Any, value: Any, *more: Any, **options: Any) -> Any:
                    _record_attention(module, query, key, value)
                    return attend(module, query, key, value, *more, **options)

                return recorded

            registry.get_interface = get_interface
        _recorded.update(dict.fromkeys(own, taps))
    try:
        yield
    finally:
        with _recorded_lock:
            for module in own:
                del _recorded[module]
            if not _recorded:
                registry.get_interface = registry.get_interface.__wrapped__


def capture(
    model: Any,
    plan: Plan,
    input_ids: Any,
    directory: Union[str, "os.PathLike[str]"],
    *,
    rank: Optional[int] = None,
    hooks: Union[str, Sequence[Hook]] = "transformers",
) -> Path:
    """Runs a model on token ids and writes what its modules make as a dump that `judge` reads; returns the file.

    model: a Hugging Face Transformers model, or any module whose parts are named as `hooks` says: a name of HOOKS, or
        rows of one's own. A tap whose module the model does not have is left out.
    plan: the plan that the dump will be judged by; where it states its sequences, `input_ids` must be of these lengths.
    input_ids: [batch, sequence] of ids, or a list of sequences; they run one at a time, without padding.
    directory: made if it is not there.
    rank: whose part of a sharded model this is. Its file is `rank_N.safetensors`, of every rank one; without a rank it is
        `dump.safetensors`, of whole tensors.
    """
    import torch

    sequences = _sequences(input_ids)
    stated = _stated_lengths(plan)
    if stated is not None and stated != [len(ids) for ids in sequences]:
        raise ValueError(f"input_ids: sequences of {[len(ids) for ids in sequences]} tokens; the plan's are {stated}")
    rows = HOOKS[hooks] if isinstance(hooks, str) else hooks
    if hooks == "transformers" and _clips(model):
        rows = [row for row in rows if not row.tap.endswith(("attention.q_normed", "attention.k_normed", "attention.v"))]
    taps = _Taps()
    handles = _watch(model, rows, taps)
    try:
        with torch.no_grad(), _attention_inputs(model, taps):
            for ids in sequences:
                taps.tokens = len(ids)
                device = next(model.parameters()).device
                model(torch.tensor([ids], device=device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    count = sum(map(len, sequences))
    whole = {tap: torch.cat(parts) for tap, parts in taps.parts.items()}
    if not whole:
        raise ValueError("hooks: no module of the model is called as one of them")
    for tap, value in whole.items():
        if len(value) != count:
            raise ValueError(f"{tap}: {len(value)} rows of {count} tokens: its module ran more or less than once a sequence")
    whole["tokens"] = torch.tensor([id for ids in sequences for id in ids])
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / ("dump.safetensors" if rank is None else f"rank_{rank}.safetensors")
    save_safetensors(file, whole)
    return file
