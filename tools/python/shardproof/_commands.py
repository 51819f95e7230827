"""The subcommands as functions: the plan as a dict, a path or an object, and the flags as keywords."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Optional, Union

from . import _reports as reports
from ._errors import CommandError, PlanError, Problem

Plan = Union[Mapping[str, Any], str, "os.PathLike[str]", Any, None]

USAGE = 2
INTERNAL = 70


def command_path() -> Path:
    """The command that belongs to this package."""
    return Path(__file__).parent / "bin" / "shardproof"


@contextlib.contextmanager
def _plan_file(plan: Plan) -> Iterator[list[str]]:
    if plan is None:
        yield []
        return
    if isinstance(plan, (str, os.PathLike)):
        yield [os.fspath(plan)]
        return
    if not isinstance(plan, Mapping):
        plan = plan.to_dict() if hasattr(plan, "to_dict") else vars(plan)
    import tempfile  # here and below: a scheme needs neither, and both take long to import

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan.json"
        path.write_text(json.dumps(dict(plan)))
        yield [str(path)]


def _flags(options: Mapping[str, Any]) -> list[str]:
    flags: list[str] = []
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        if value is None or value is False:
            continue
        flags += [flag] if value is True else [flag, str(value)]
    return flags


def command(*arguments: str) -> str:
    """Runs a subcommand and returns what it prints. Raises PlanError for a plan or argument that it refuses, with every
    problem, and CommandError for anything else than a verdict."""
    import subprocess

    done = subprocess.run([str(command_path()), *arguments], capture_output=True, text=True, check=False)
    if done.returncode == USAGE:
        lines = done.stderr.strip().splitlines()
        raise PlanError([Problem(line.removeprefix("shardproof: ")) for line in lines])
    if done.returncode < 0 or done.returncode >= INTERNAL:
        raise CommandError(done.returncode, done.stderr)
    return done.stdout


def _run(name: str, plan: Plan, options: Mapping[str, Any], *more: str) -> str:
    with _plan_file(plan) as file:
        return command(name, *file, *_flags(options), *more)


def verify(
    plan: Plan = None,
    *,
    format: Optional[str] = None,
    scale: Union[str, int, None] = None,
    batch: Optional[int] = None,
    sequence: Optional[int] = None,
    seed: Optional[int] = None,
    threads: Optional[int] = None,
    schedule: Optional[int] = None,
    all_reduce: Optional[str] = None,
    wire: Optional[str] = None,
    accumulate: Optional[str] = None,
    checkpoint: Union[str, "os.PathLike[str]", None] = None,
    baseline: Union[str, "os.PathLike[str]", None] = None,
    amplification: bool = False,
    max_amplification: Optional[float] = None,
    dump: Union[str, "os.PathLike[str]", None] = None,
) -> reports.VerifyReport:
    """`shardproof verify`: runs a plan on virtual ranks and holds every tap to the reference.

    plan: a dict as in a plan file, the path of one, an object with to_dict(); None for the embedded plan.
    The keywords are the command's flags (`python -m shardproof verify --help`). Raises PlanError.
    """
    options = {k: v for k, v in locals().items() if k != "plan"}
    return reports.parse(reports.VerifyReport, _run("verify", plan, options, "--json", "-"))


def judge(
    dump: Union[str, "os.PathLike[str]"],
    plan: Plan,
    *,
    checkpoint: Union[str, "os.PathLike[str]", None] = None,
    profile: Optional[str] = None,
    format: Optional[str] = None,
    names: Union[str, "os.PathLike[str]", Mapping[str, Optional[str]], None] = None,
) -> reports.VerifyReport:
    """`shardproof judge`: holds tensors that another program wrote to the reference, op by op.

    dump: a folder of rank_0.safetensors and so on, or one file of whole tensors, as `capture` writes.
    plan: of the run: its model, degrees and sequences; a dict, the path of a file, or an object with to_dict().
    names: which tap each tensor is: the path of a JSON file, or a dict; None for a tensor that is not judged.
    Raises PlanError for a dump or plan that is refused, with every problem.
    """
    import tempfile

    options = {"checkpoint": checkpoint, "profile": profile, "format": format}
    with tempfile.TemporaryDirectory() as folder, _plan_file(plan) as file:
        if isinstance(names, Mapping):
            path = Path(folder) / "names.json"
            path.write_text(json.dumps(dict(names)))
            names = path
        flags = _flags(options | {"names": names})
        return reports.parse(reports.VerifyReport, command("judge", os.fspath(dump), *file, *flags, "--json", "-"))


def check(plan: Plan = None, *, all: bool = False) -> reports.CheckReport:
    """`shardproof check`: arithmetic, memory, balance and claims of a plan; runs no mathematics. Raises PlanError."""
    return reports.parse(reports.CheckReport, _run("check", plan, {"all": all}, "--json", "-"))


def graph(
    plan: Plan = None,
    *,
    layers: Optional[str] = None,
    ranks: Optional[str] = None,
    fold: bool = False,
    scale: Union[str, int, None] = None,
    batch: Optional[int] = None,
    sequence: Optional[int] = None,
) -> reports.Graph:
    """`shardproof graph`: the deployment graph of a plan. Raises PlanError."""
    options = {k: v for k, v in locals().items() if k != "plan"}
    return reports.parse(reports.Graph, _run("graph", plan, options))


def mutate(
    plan: Plan = None,
    *,
    scale: Union[str, int, None] = None,
    batch: Optional[int] = None,
    sequence: Optional[int] = None,
    seed: Optional[int] = None,
    per_kind: Optional[int] = None,
    kind: Optional[str] = None,
    threads: Optional[int] = None,
) -> reports.MutationReport:
    """`shardproof mutate`: injects known bugs and counts what verify makes of them. Raises PlanError."""
    options = {k: v for k, v in locals().items() if k != "plan"}
    return reports.parse(reports.MutationReport, _run("mutate", plan, options, "--json", "-"))


def collectives(
    *,
    operation: Optional[str] = None,
    algorithm: Optional[str] = None,
    ranks: Optional[int] = None,
    gpus_per_node: Optional[int] = None,
    threads: Optional[int] = None,
) -> str:
    """`shardproof collectives`: times a collective between virtual ranks; the table, as text."""
    return command("collectives", *_flags(locals()))
