"""Holds Holistic Trace Analysis, from PyPI, to the clock's own sums: python hta_test.py SHARDPROOF PLAN FOLDER.

The analysis must read the trace of every rank, and find the computing, communicating and idle time that `time --json`
states, to ten nanoseconds for an event.
"""

import json
import os
import pathlib
import subprocess
import sys

os.environ["HTA_DISABLE_NS_ROUNDING"] = "1"  # read when it is imported, and when it parses

from hta.trace_analysis import TraceAnalysis  # noqa: E402

MICROSECONDS = 1e6


def main():
    program, plan, folder = sys.argv[1:]
    pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
    for old in pathlib.Path(folder).glob("rank_*.json"):
        old.unlink()
    run = subprocess.run(
        [program, "time", plan, "--preset", "h100", "--trace-dir", folder, "--style", "kineto", "--json", "-"],
        capture_output=True, text=True, check=True,
    )
    prefill = json.loads(run.stdout)["prefill"]
    analysis = TraceAnalysis(trace_dir=folder)
    breakdown = analysis.get_temporal_breakdown(visualize=False)
    overlap = analysis.get_comm_comp_overlap(visualize=False)
    ranks = len(breakdown)
    assert ranks == len(list(pathlib.Path(folder).glob("rank_*.json"))) > 1, ranks

    events = 0
    for file in pathlib.Path(folder).glob("rank_*.json"):
        events += sum(e.get("cat") == "kernel" for e in json.loads(file.read_text())["traceEvents"])
    tolerance = 0.01 * events  # microseconds, over all ranks
    shares = prefill["shares"]
    whole = prefill["seconds"] * ranks * MICROSECONDS
    computing = breakdown["compute_time(us)"].sum()
    expected = shares["computing"] * whole
    assert abs(computing - expected) <= tolerance < 0.01 * expected, (computing, expected, tolerance)
    communicating = breakdown["non_compute_time(us)"].sum()
    # A wait inside a call is part of the call's kernel; what comes after a rank's last kernel is in no trace of it.
    waited = sum(c["moving_seconds"] + c["waiting_seconds"] for c in prefill["communication"]) * ranks * MICROSECONDS
    assert abs(communicating - waited) <= tolerance, (communicating, waited, tolerance)
    assert (overlap["comp_comm_overlap_pctg"] == 0).all(), overlap
    print(f"{ranks} ranks, {events} kernels: {computing:.0f} us computing, {communicating:.0f} us communicating")


if __name__ == "__main__":
    main()
