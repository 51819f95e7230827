"""Proves parallel deployment plans, and sharded code of your own, on one CPU machine.

    report = shardproof.verify("plan.json")              # a plan: a path, a dict, or an object with to_dict()
    report = shardproof.run(fn, tp=2, expected={...})    # your own code: fn(rank) runs once on every virtual rank
"""

from ._capture import capture
from ._commands import check, collectives, command, graph, judge, mutate, verify
from ._core import InvalidCall
from ._errors import CommandError, PlanError, Problem, RankError
from ._hooks import HOOKS, Hook
from ._placement import Listed, Partial, Replicate, Shard
from ._reports import (
    Cause,
    CheckReport,
    Divergence,
    Graph,
    MutationReport,
    Stall,
    Tap,
    VerifyReport,
)
from ._scheme import Group, Rank, run

__all__ = [
    "Cause", "CheckReport", "CommandError", "Divergence", "Graph", "Group", "HOOKS", "Hook", "InvalidCall", "Listed",
    "MutationReport", "Partial", "PlanError", "Problem", "Rank", "RankError", "Replicate", "Shard", "Stall", "Tap",
    "VerifyReport", "capture", "check", "collectives", "command", "graph", "judge", "mutate", "run", "verify",
]
