"""Reports as dataclasses: the fields of the JSON documents, under the same names."""

from __future__ import annotations

import functools
import html
import json
import types
import typing
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Optional, Union

T = typing.TypeVar("T")


def from_json(kind: type[T], document: dict[str, Any]) -> T:
    """Builds a report; keys that it does not name (added within a schema's version) are kept in `other`."""
    hints = _hints(kind)
    known = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    values = {name: _value(hints[name], value) for name, value in document.items() if name in known}
    if "other" in known:
        values["other"] = {name: value for name, value in document.items() if name not in known}
    return kind(**values)


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _value(hint: Any, value: Any) -> Any:
    origin = typing.get_origin(hint)
    if value is None:
        return None
    if origin in (Union, types.UnionType):
        return _value(next(a for a in typing.get_args(hint) if a is not type(None)), value)
    if origin is list:
        return [_value(typing.get_args(hint)[0], item) for item in value]
    if hint is float and isinstance(value, str):  # "inf", "-inf", "nan": JSON has none of these
        return float(value)
    return from_json(hint, value) if isinstance(hint, type) and is_dataclass(hint) else value


@dataclass
class Cause:
    name: str
    evidence: str


@dataclass
class Tap:
    """The verdict of one tensor: pass, mismatch, missing or inconclusive; of a dump also not_judged."""

    name: str
    verdict: str
    max_error: float
    bound: float
    replicas_equal: bool
    other: dict[str, Any] = field(default_factory=dict)


@dataclass
class Divergence:
    """The first tensor that is wrong: on which ranks, and its worst element."""

    tap: str
    ranks: list[int]
    index: list[int]
    expected: float
    got: float
    error: float
    bound: float
    message: str
    cause: Optional[Cause] = None
    other: dict[str, Any] = field(default_factory=dict)


@dataclass
class Stall:
    """A run that did not end. `kind`: deadlock (proven), collective_mismatch, or no_progress (not proven)."""

    kind: str
    #: Of no progress: the Python stack of each rank that ran code of its own.
    stacks: dict[int, str] = field(default_factory=dict)


@dataclass
class VerifyReport:
    """What a run was found to be; `verdict` is pass, mismatch, deadlock, inconclusive or invalid."""

    verdict: str
    taps: list[Tap]
    schema: str = ""
    plan: dict[str, Any] = field(default_factory=dict)
    defaults: list[str] = field(default_factory=list)
    model_notes: list[str] = field(default_factory=list)
    ranks: int = 0
    format: str = ""
    seed: int = 0
    threads: int = 0
    schedule: Optional[int] = None
    schedules: Optional[dict[str, Any]] = None
    problems: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    first_divergence: Optional[Divergence] = None
    algebra: Optional[dict[str, Any]] = None
    exact_use: Optional[dict[str, Any]] = None
    router_choices: int = 0
    tokens_per_expert: list[list[int]] = field(default_factory=list)
    collectives: list[dict[str, Any]] = field(default_factory=list)
    deadlock: Optional[str] = None
    deadlock_cause: Optional[Cause] = None
    wait_graph: Optional[dict[str, Any]] = None
    mismatched_calls: Optional[list[dict[str, Any]]] = None
    stall: Optional[Stall] = None
    seconds: dict[str, float] = field(default_factory=dict)
    amplification: Optional[dict[str, Any]] = None
    #: Of `judge`: the rounding profile, how many taps were judged, which were not and why, which were computed.
    dump: Optional[dict[str, Any]] = None
    other: dict[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return self.verdict == "pass"

    @property
    def word(self) -> str:
        """The verdict in one word; of a run that did not end, what kind of stall it is."""
        return self.stall.kind.replace("_", " ") if self.stall else self.verdict

    @property
    def exit_code(self) -> int:
        """What the command would exit with."""
        return {"pass": 0, "mismatch": 1, "invalid": 2, "deadlock": 3}.get(self.verdict, 4)

    def __str__(self) -> str:
        lines = [self.word]
        if (found := self.first_divergence) is not None:
            on = " on ranks " + " ".join(map(str, found.ranks)) if found.ranks else ""
            lines[0] += f": {found.tap}{on}"
            lines.append(found.message)
            if found.cause:
                lines.append(f"{found.cause.name}: {found.cause.evidence}")
        if self.deadlock:
            lines.append(self.deadlock.rstrip())
        for rank, stack in (self.stall.stacks if self.stall else {}).items():
            lines += [f"rank {rank} is at", stack.rstrip()]
        lines += [f"{problem['field']}: {problem['message']}" for problem in self.problems]
        return "\n".join(lines + self.notes)

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{html.escape(t.name)}</td><td>{t.verdict}</td><td>{t.max_error:.3g}</td><td>{t.bound:.3g}</td></tr>"
            for t in self.taps
        )
        head = "<tr><th>tap</th><th>verdict</th><th>worst error</th><th>its bound</th></tr>"
        return f"<pre>{html.escape(str(self))}</pre><table>{head}{rows}</table>"

    def __rich__(self) -> Any:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table("tap", "verdict", "worst error", "its bound")
        for t in self.taps:
            table.add_row(t.name, t.verdict, f"{t.max_error:.3g}", f"{t.bound:.3g}")
        return Group(Text(str(self), style="green" if self.passed else "bold red"), table)


@dataclass
class CheckReport:
    """What a plan is on paper."""

    schema: str
    plan: dict[str, Any]
    quantities: dict[str, dict[str, Any]]
    claims: list[dict[str, Any]]
    fits_memory: Optional[bool] = None
    defaults: list[str] = field(default_factory=list)
    model_notes: list[str] = field(default_factory=list)
    problems: list[dict[str, str]] = field(default_factory=list)
    neighbours: dict[str, Any] = field(default_factory=dict)
    ranks: list[dict[str, Any]] = field(default_factory=list)
    other: dict[str, Any] = field(default_factory=dict)


@dataclass
class Graph:
    """What every rank does to the first microbatch."""

    schema: str
    name: str
    ranks: int
    nodes: list[dict[str, Any]]
    edges: list[Any] = field(default_factory=list)
    other: dict[str, Any] = field(default_factory=dict)


@dataclass
class MutationReport:
    """How many planted bugs are detected, and named rightly."""

    schema: str
    score: dict[str, int]
    rounding_score: dict[str, int]
    kinds: list[dict[str, Any]] = field(default_factory=list)
    plans: list[dict[str, Any]] = field(default_factory=list)
    other: dict[str, Any] = field(default_factory=dict)


def parse(kind: type[T], text: str) -> T:
    return from_json(kind, json.loads(text))
