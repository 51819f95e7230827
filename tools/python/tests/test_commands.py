"""The subcommands as functions, the command itself, and the examples."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import shardproof

ROOT = Path(os.environ["SHARDPROOF_SOURCE_DIR"])
PLAN = ROOT / "plans" / "tp4_ep4_pp4.json"


def test_verify_gives_the_fields_of_the_json():
    report = shardproof.verify(PLAN, format="exact")
    document = json.loads(shardproof.command("verify", str(PLAN), "--format", "exact", "--json", "-"))

    assert (report.verdict, report.ranks, report.schema) == ("pass", 16, document["schema"])
    assert [tap.name for tap in report.taps] == [tap["name"] for tap in document["taps"]]
    assert not report.other and set(document) <= set(vars(report))


def test_a_plan_is_a_path_a_dict_or_an_object():
    plan = json.loads(PLAN.read_text())

    class Config:
        def to_dict(self):
            return plan

    assert {shardproof.check(p).plan["name"] for p in (str(PLAN), PLAN, plan, Config(), None)} == {"tp4_ep4_pp4"}


def test_a_refused_plan_raises_with_every_problem():
    with pytest.raises(shardproof.PlanError) as error:
        shardproof.verify(ROOT / "tests" / "plan" / "refused" / "tp4_ep16_pp4_dp2_on_16.json")

    assert len(error.value.problems) == 3
    assert "32 GPUs needed" in str(error.value.problems[0])


def test_graph_and_mutate_return_their_documents():
    assert len(shardproof.graph(PLAN, layers="0").nodes) > 16
    score = shardproof.mutate(PLAN, kind="embedding_reduction_dropped", per_kind=1).score
    assert score["instances"] == score["detected"] == 1


def test_the_module_is_the_command():
    done = subprocess.run([sys.executable, "-m", "shardproof", "check", "nowhere.json"], capture_output=True, text=True)

    assert done.returncode == 2 and "nowhere.json" in done.stderr


@pytest.mark.parametrize("name", ["verify", "check", "graph", "judge", "mutate", "collectives"])
def test_every_keyword_is_a_flag_of_the_command(name):
    function = getattr(shardproof, name)
    code = function.__code__
    keywords = code.co_varnames[code.co_argcount:code.co_argcount + code.co_kwonlyargcount]
    flags = set(re.findall(r"--([a-z-]+)", shardproof.command(name, "--help")))

    assert {keyword.replace("_", "-") for keyword in keywords} <= flags


def test_the_readme_holds_the_example_and_what_it_prints():
    example = ROOT / "tools" / "python" / "examples" / "own_scheme.py"
    readme = (ROOT / "README.md").read_text()
    done = subprocess.run([sys.executable, str(example)], capture_output=True, text=True, check=True)

    assert example.read_text() in readme
    assert done.stdout in readme


@pytest.mark.parametrize("name, says", [
    ("find_a_deadlock", "deadlock\nall_to_all in ep[0]: rank 1 in line 12, rank 2 in line 12 wait for "
                        "rank 0 (finished), rank 3 (finished)\n"),
    ("compare_reduction_orders", "recursive_doubling bf16  pass  worst error "),
])
def test_the_examples_say_what_they_are_for(name, says):
    example = ROOT / "tools" / "python" / "examples" / f"{name}.py"
    done = subprocess.run([sys.executable, str(example)], capture_output=True, text=True, check=True)

    assert says in done.stdout
