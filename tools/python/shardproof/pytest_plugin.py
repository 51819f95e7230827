"""Tests that run on every rank: @pytest.mark.ranks(16), or with degrees and what they should tap.

    @pytest.mark.ranks(tp=2, dp=2, schedules=20)
    def test_all_ranks_agree(rank):
        assert rank.tp.all_reduce(numpy.ones(1)) == 2
"""

from __future__ import annotations

from typing import Any, Optional

import pytest

from ._errors import RankError
from ._scheme import run

_FINISHED = "test.finished"


def pytest_configure(config: Any) -> None:
    config.addinivalue_line(
        "markers", "ranks(world, *, tp, cp, dp, pp, ep, etp, expected, bound, schedules, patience): "
        "run the test on every virtual rank; its argument `rank` is shardproof.Rank. `world` alone makes them one dp group")


@pytest.fixture
def rank() -> Any:
    """The virtual rank, in a test that is marked with `ranks`."""
    return None


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: Any) -> Optional[bool]:
    marker = pyfuncitem.get_closest_marker("ranks")
    if marker is None:
        return None
    options = dict(marker.kwargs)
    if marker.args:
        options["dp"] = marker.args[0]
    # Every rank taps it at the end: a test that taps nothing else shows that all of them got there.
    options["expected"] = {**options.get("expected", {}), _FINISHED: [[1.0, 2.0]]}
    given = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}

    def on_rank(one: Any) -> None:
        pyfuncitem.obj(**{**given, "rank": one} if "rank" in given else given)
        one.tap(_FINISHED, [[1.0, 2.0]], replicas=("tp", "cp", "dp", "pp"))

    try:
        report = run(on_rank, **options)
    except RankError as error:
        raise (error.__cause__ or error) from error
    if not report.passed:
        pytest.fail(str(report), pytrace=False)
    return True
