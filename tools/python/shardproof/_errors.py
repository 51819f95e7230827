"""What is raised."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a plan, as the command says it: file, field, value, and what would be right."""

    text: str

    def __str__(self) -> str:
        return self.text


class CommandError(RuntimeError):
    """The command could not do its work: exit code `code`, and what it said in `text`."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text.strip() or f"the command ended with exit code {code}")
        self.code = code
        self.text = text


class PlanError(ValueError):
    """A plan, or an argument, that is refused; `problems` lists everything that is wrong with it."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


class RankError(RuntimeError):
    """A rank's function raised; what it raised is `__cause__`."""

    def __init__(self, rank: int, text: str) -> None:
        super().__init__(text)
        self.rank = rank
