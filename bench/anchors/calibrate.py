#!/usr/bin/env python3
"""Fits emu/timeline/presets.json to the half of anchors.json that calibrates, and writes the other half's errors down.

    bench/anchors/calibrate.py BUILD_DIR           fit, and write presets.json; build again, then
    bench/anchors/calibrate.py BUILD_DIR --table   write RESULTS.md

Fitted, each within what is plausible (tables within a quarter of what data sheets and GEMM tables suggest: a dozen kernels
must not bend them), by coordinate descent on the sum of squared logarithms of measured / projected: of a card the shares of its
tables by size and the share of grouped products, on kernels; of an engine on a card launch, overhead of a step and scale of
the memory's shares, on steps, then scale of the products' shares and overhead of a request, on first tokens; scales of
both, on steps of training; of a card alone, launch and overheads, over every engine's steps.
A group with fewer than three rows that calibrate is left as it is. Links are not fitted here: base and step are those
of the calibrating rows of 512 bytes and 8 KiB, their shares by size what the calibrating all-reduces give.
"""

import argparse
import copy
import json
import math
import pathlib
import subprocess
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
PRESETS = ROOT / "emu" / "timeline" / "presets.json"
FEWEST = 3
# What data sheets and GEMM tables suggest for the H100, where every fit starts: so that one after another ends alike.
SUGGESTED = {
    "compute_efficiency": [[1e9, 0.25], [1.6e10, 0.6], [1.4e11, 0.8], [1e12, 0.86]],
    "memory_efficiency": [[1e6, 0.25], [1e7, 0.55], [3.3e7, 0.72], [3.5e8, 0.8], [2.8e9, 0.88]],
    "grouped_share": 0.75,
}
LEAST_US = 0.5  # of a launch or an overhead: no GPU starts a kernel in less


def project(program, document):
    """The rows of `time --anchors` with these presets."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(document, file)
        file.flush()
        run = subprocess.run(
            [program, "time", "--anchors", "--json", "-", "--calibrate", file.name], capture_output=True, text=True
        )
    if run.returncode != 0:
        return None  # a table that falls: not a candidate
    return json.loads(run.stdout)["cases"]


def calibrating(rows, **wanted):
    return [r for r in rows if r["use"] == "calibrate" and all(r[k] in v for k, v in wanted.items())]


def loss(program, document, wanted):
    rows = project(program, document)
    if rows is None:
        return math.inf
    return sum(math.log(r["stated_seconds"] / r["projected_seconds"]) ** 2 for r in calibrating(rows, **wanted))


def get(document, path):
    for key in path:
        document = document[key]
    return document


def put(document, path, value):
    get(document, path[:-1])[path[-1]] = value


def descend(program, document, parameters, wanted, rounds=3):
    """parameters: {path: (least, most)}. Steps of each by a factor that shrinks, as long as the loss falls."""
    best = loss(program, document, wanted)
    factor = 1.5
    for _ in range(rounds):
        for path, (least, most) in parameters.items():
            for step in (factor, 1 / factor):
                while True:
                    value = float("%.4g" % min(most, max(least, get(document, path) * step)))
                    if value == get(document, path):
                        break
                    candidate = copy.deepcopy(document)
                    put(candidate, path, value)
                    now = loss(program, candidate, wanted)
                    if now >= best - 1e-9:
                        break
                    best, document = now, candidate
        factor = math.sqrt(factor)
    return document


def residuals(rows):
    found = {}
    for key, kind in (("prefill", "first_token"), ("decode", "decode")):
        of_kind = [r["stated_seconds"] / r["projected_seconds"] - 1 for r in rows if r["kind"] == kind]
        if len(of_kind) >= FEWEST:
            found[key] = {
                "low": round(min([0, *of_kind]), 4),
                "high": round(max([0, *of_kind]), 4),
                "cases": len(of_kind),
            }
    return found


def without_engine(document, card):
    """The card's own figures in place of every engine's."""
    alone = copy.deepcopy(document)
    alone["presets"][card].pop("engines", None)
    return alone


def fit(program, document):
    kernels = {"kind": ("gemm", "fused_moe"), "card": ("h100",)}
    h100 = ("presets", "h100")
    get(document, h100).update(copy.deepcopy(SUGGESTED))
    tables = {
        (*h100, key, i, 1): (0.75 * share, min(1, 1.25 * share))
        for key in ("compute_efficiency", "memory_efficiency")
        for i, (_, share) in enumerate(get(document, (*h100, key)))
    }
    document = descend(program, document, {**tables, (*h100, "grouped_share"): (0.1, 1)}, kernels)
    rows = project(program, document)
    for card, engine in sorted({(r["card"], r["engine"]) for r in calibrating(rows, kind=("training",))}):
        document = fit_training(program, document, card, engine)
    groups = {(r["card"], r["engine"]) for r in calibrating(rows, kind=("decode",)) if r["engine"]}
    for card in sorted({card for card, _ in groups}):
        steps = {"card": (card,), "engine": tuple(sorted({e for c, e in groups if c == card}))}
        if len(calibrating(rows, **steps, kind=("decode",))) < FEWEST:
            continue
        own = document["presets"][card]
        for engine in steps["engine"]:
            own.get("engines", {}).pop(engine, None)
        own.pop("residuals", None)
        for key, value in (("launch_us", 2.5), ("overhead_us", 300), ("request_overhead_us", 20000)):
            own[key] = value
        path = ("presets", card)
        for kind, keys in (("decode", ("launch_us", "overhead_us")), ("first_token", ("request_overhead_us",))):
            ranges = {(*path, key): (LEAST_US, 1e6) for key in keys}
            document = descend(program, document, ranges, {**steps, "kind": (kind,)}, rounds=5)
        for engine in steps["engine"]:
            document = fit_engine(program, document, card, engine)
        alone = project(program, without_engine(document, card))
        document["presets"][card]["residuals"] = residuals(calibrating(alone, **steps))
    return document


def fit_training(program, document, card, engine):
    wanted = {"card": (card,), "engine": (engine,), "kind": ("training",)}
    if len(calibrating(project(program, document), **wanted)) < FEWEST:
        return document
    candidate = copy.deepcopy(document)
    candidate["presets"][card].setdefault("engines", {})[engine] = {"compute_scale": 1.0, "memory_scale": 1.0}
    path = ("presets", card, "engines", engine)
    ranges = {(*path, key): (0.4, 1.15) for key in ("compute_scale", "memory_scale")}
    return descend(program, candidate, ranges, wanted, rounds=5)


def fit_engine(program, document, card, engine):
    wanted = {"card": (card,), "engine": (engine,)}
    own = document["presets"][card]
    start = {key: own[key] for key in ("launch_us", "overhead_us", "request_overhead_us")}
    candidate = copy.deepcopy(document)
    candidate["presets"][card].setdefault("engines", {})[engine] = {**start, "memory_scale": 1.0}
    if len(calibrating(project(program, candidate), **wanted, kind=("decode",))) < FEWEST:
        return document
    path = ("presets", card, "engines", engine)
    ranges = {(*path, "memory_scale"): (0.6, 1.15)}
    ranges |= {(*path, key): (LEAST_US, 1e6) for key in ("launch_us", "overhead_us")}
    candidate = descend(program, candidate, ranges, {**wanted, "kind": ("decode",)}, rounds=5)
    first = {**wanted, "kind": ("first_token",)}
    ranges = {(*path, "request_overhead_us"): (LEAST_US, 1e6)}
    if len(calibrating(project(program, candidate), **first)) >= FEWEST:
        get(candidate, path)["compute_scale"] = 1.0
        ranges[(*path, "compute_scale")] = (0.4, 1.15)
    candidate = descend(program, candidate, ranges, first, rounds=5)
    rows = calibrating(project(program, candidate), **wanted)
    candidate["presets"][card]["engines"][engine]["residuals"] = residuals(rows)
    return candidate


def text_of(value, depth=0):
    """JSON with a line for each member of the outer objects; what is inside stays on one."""
    if depth == 3 or not isinstance(value, dict):
        return json.dumps(value)
    pad = "  " * (depth + 1)
    lines = [f"{pad}{json.dumps(key)}: {text_of(member, depth + 1)}" for key, member in value.items()]
    return "{\n" + ",\n".join(lines) + "\n" + "  " * depth + "}"


def seconds(value):
    for size, unit in ((1, "s"), (1e-3, "ms")):
        if value >= size:
            return f"{value / size:.4g} {unit}"
    return f"{value * 1e6:.4g} us"


def table(rows):
    text = "# Published measurements, and what the virtual clock makes of them\n\n"
    text += "`shardproof time --anchors` prints this; `calibrate.py --table` wrote it. Misses stand here as they are.\n"
    for group in dict.fromkeys(r["group"] for r in rows):
        of_group = [r for r in rows if r["group"] == group]
        calibrated = "" if of_group[0]["calibrated"] else " (uncalibrated: fewer than three rows calibrate)"
        text += f"\n## {group}{calibrated}\n\n| case | use | stated | projected | error | source |\n"
        text += "| --- | --- | --- | --- | --- | --- |\n"
        for r in of_group:
            text += f"| {r['id']} | {r['use'].replace('_', ' ')} | {seconds(r['stated_seconds'])} "
            text += f"| {seconds(r['projected_seconds'])} | {100 * r['error']:+.1f} % | {r['source']} |\n"
    return text


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", help="build directory, with tools/shardproof")
    parser.add_argument("--table", action="store_true", help="write RESULTS.md from the presets that are built in")
    options = parser.parse_args()
    program = str(pathlib.Path(options.build).resolve() / "tools" / "shardproof")
    if options.table:
        run = subprocess.run([program, "time", "--anchors", "--json", "-"], capture_output=True, text=True, check=True)
        (ROOT / "bench" / "anchors" / "RESULTS.md").write_text(table(json.loads(run.stdout)["cases"]))
        return
    document = json.loads(PRESETS.read_text())
    for card in document["presets"].values():
        card.pop("engines", None)
    document["presets"]["h100"]["launch_us"] = 2.5
    for _ in range(2):  # kernels first, whose launch is known better after the steps
        document = fit(program, document)
    PRESETS.write_text(text_of(document) + "\n")


if __name__ == "__main__":
    main()
