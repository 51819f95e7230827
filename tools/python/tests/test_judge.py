"""Dumps: of our own runs, judged from Python."""

import json
import os
import struct
from pathlib import Path

import pytest

import shardproof

ROOT = Path(os.environ["SHARDPROOF_SOURCE_DIR"])
PLAN = ROOT / "plans" / "tp4_ep4_pp4.json"


@pytest.fixture
def dump(tmp_path):
    folder = tmp_path / "dump"
    assert shardproof.verify(PLAN, format="bf16", dump=folder).passed
    return folder


def spoil(path, tensor, value):
    """Overwrites the first value of a tensor of 16 bits."""
    data = bytearray(path.read_bytes())
    (length,) = struct.unpack_from("<Q", data)
    at = 8 + length + json.loads(data[8:8 + length])[tensor]["data_offsets"][0]
    data[at:at + 2] = value
    path.write_bytes(data)


def test_a_dump_of_our_own_run_passes(dump):
    report = shardproof.judge(dump, json.loads((dump / "plan.json").read_text()), profile="ours")

    assert report.passed and report.format == "bf16"
    assert report.dump == {"profile": "ours", "judged": 179, "not_judged": [], "computed": []}


def test_a_wrong_value_is_named(dump):
    spoil(dump / "rank_2.safetensors", "layer.1.attention.output", b"\x00\x41")  # 8
    report = shardproof.judge(dump, dump / "plan.json")

    assert report.verdict == "mismatch"
    assert report.first_divergence.tap == "layer.1.attention.output"
    assert report.first_divergence.ranks == [2]


def test_a_dump_that_cannot_be_read_raises_with_every_problem(dump):
    spoil(dump / "rank_2.safetensors", "layer.1.attention.output", b"\xc0\x7f")
    with pytest.raises(shardproof.PlanError, match="layer.1.attention.output: row 0, column 0 is not a number"):
        shardproof.judge(dump, dump / "plan.json")
    (dump / "rank_2.safetensors").unlink()
    (dump / "rank_7.safetensors").unlink()
    with pytest.raises(shardproof.PlanError) as error:
        shardproof.judge(dump, dump / "plan.json")
    assert len(error.value.problems) == 2


def test_names_of_their_own_are_a_dict(dump):
    with pytest.raises(shardproof.PlanError, match="is no tap"):
        shardproof.judge(dump, dump / "plan.json", names={"a": "layer.0.attention.z"})
    report = shardproof.judge(dump, dump / "plan.json", names={"layer.{layer}.moe.expert_gate": None})
    assert report.passed and report.dump["judged"] == 171


@pytest.mark.parametrize("system", sorted(shardproof.HOOKS))
def test_every_hook_names_a_tap_and_each_tap_of_a_model_once(system):
    names = {f"{system}.{i}" + (".{layer}" if "{layer}" in hook.tap else ""): hook.tap
             for i, hook in enumerate(shardproof.HOOKS[system])}
    with pytest.raises(shardproof.PlanError, match="no such file or folder"):  # the names are read, and right
        shardproof.judge("/nowhere", PLAN, names=names)
    modules = [(hook.module, hook.value) for hook in shardproof.HOOKS[system]]
    assert len(modules) == len(set(modules))
