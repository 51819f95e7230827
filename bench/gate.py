#!/usr/bin/env python3
"""Runs the benchmarks of two builds in turns and decides whether one is slower than the other.

  gate.py BASE_PROGRAM NEW_PROGRAM [--filter REGEX] [--metric cpu_time] [--json FILE]
  gate.py --trials N PROGRAM [--filter REGEX] [--slowdown 0.10]
      Measures the gate itself: N comparisons of the program with itself; and, on the same measurements, how often it
      finds one of the benchmarks when its times in NEW are made longer by the slowdown.

Each benchmark of both programs runs in turns, BASE and NEW next to each other, in an order drawn anew each round, so
that what disturbs the machine meets both. There are as many rounds as the rank test needs for so many benchmarks. What
it cannot tell after these is measured further, four times at most; each decision is taken at a fifth of alpha.
Exit codes: 0 nothing slower, 1 something slower, 2 unusable input, 4 cannot tell.
"""

import argparse
import json
import math
import os
import random
import re
import subprocess
import sys
import time

import compare

STAGES = 5


class ProgramError(Exception):
    pass


def run(program, arguments):
    """Standard output of a benchmark program, without the machine's limits being measured beside each benchmark."""
    try:
        done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
                              env={**os.environ, "SHARDPROOF_BENCH_LIMITS": "0"})
    except OSError as error:
        raise ProgramError(f"{program}: {error.strerror}") from error
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise ProgramError(f"{program} {' '.join(arguments)}: exit code {done.returncode}: {last[0]}")
    return done.stdout


def seconds_of(function, min_time, clock=time.thread_time):
    """Of a call, over as many as take so long; by the time that the thread runs, unless another clock is given."""
    calls, begin = 0, clock()
    while True:
        function()
        calls += 1
        spent = clock() - begin
        if spent >= min_time:
            return spent / calls


def names_of(program, pattern):
    # Google Benchmark calls it a failure of the filter when nothing matches, in words on standard output.
    lines = run(program, ["--benchmark_list_tests=true", f"--benchmark_filter={pattern}"]).splitlines()
    return [line for line in lines if line and not line.startswith(("Failed to match", "machine"))]


def measure(program, name, metric, min_time):
    """One repetition, as (entry of the result, value)."""
    text = run(program, [f"--benchmark_filter=^{re.escape(name)}$", "--benchmark_format=json",
                         f"--benchmark_min_time={min_time}"])
    try:
        entry = json.loads(text)["benchmarks"][0]
        value = float(entry[metric])
    except (ValueError, LookupError) as error:
        raise ProgramError(f"{program}: {name}: no {metric} in its output") from error
    if entry.get("error_occurred") or not value > 0:
        raise ProgramError(f"{program}: {name}: {entry.get('error_message', f'{metric} is {value}')}")
    return entry, value


def rounds_for(benchmarks, alpha):
    """So many pairs that Holm's correction leaves a rank test room for three pairs that point the other way."""
    return max(12, math.ceil(math.log2(2 * benchmarks * STAGES / alpha)) + 4)


def run_rounds(programs, names, rounds, args, samples, entries, order):
    for _ in range(rounds):
        for name in names:
            for side in order.sample((0, 1), 2):
                entry, value = measure(programs[side], name, args.metric, args.min_time)
                samples[side].setdefault(name, []).append(value)
                entries[side].append(entry)


def decide(programs, names, args, entries, order):
    """Benchmark name -> compare.Change."""
    samples, changes, open_names = ({}, {}), {}, names
    for stage in range(STAGES):
        run_rounds(programs, open_names, rounds_for(len(names), args.alpha), args, samples, entries, order)
        changes = judged(samples, args)
        open_names = [name for name in names if changes[name].verdict == "cannot tell"]
        if not open_names:
            break
        if stage + 1 < STAGES:
            print(f"cannot tell yet: {', '.join(open_names)}", file=sys.stderr)
    return changes


def judged(samples, args):
    return compare.judge(samples[0], samples[1], in_turns=True, threshold=args.threshold, resolution=args.resolution,
                         alpha=args.alpha / STAGES)


def common_names(programs, pattern):
    base, new = (names_of(program, pattern) for program in programs)
    names = [name for name in base if name in new]
    if not names:
        raise ProgramError(f"no benchmark of both programs matches '{pattern}'")
    return names


def gate(args):
    names = common_names(args.programs, args.filter)
    entries = ([], [])
    changes = decide(args.programs, names, args, entries, random.Random(args.seed))
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({"context": {"library": "shardproof", "against": args.programs[0]}, "benchmarks": entries[1]}, file)
    return compare.print_changes(changes)


def trials(args):
    """What the gate makes of a build against itself, and of one in which a benchmark is slower: as it decides, with what it
    measures further."""
    program, names = args.programs[0], common_names([args.programs[0]] * 2, args.filter)
    order, rounds = random.Random(args.seed), rounds_for(len(names), args.alpha)
    count = dict.fromkeys(("false alarm", "cannot tell", "found", "unsure", "missed", "further"), 0)
    for trial in range(args.trials):
        samples, slow, open_names = ({}, {}), names[trial % len(names)], names
        for stage in range(STAGES):
            run_rounds([program] * 2, open_names, rounds, args, samples, ([], []), order)
            same = judged(samples, args)
            slowed = judged((samples[0], {**samples[1], slow: [v * (1 + args.slowdown) for v in samples[1][slow]]}), args)
            open_names = [name for name in names
                          if "cannot tell" in (same[name].verdict, slowed[slow].verdict if name == slow else "")]
            if not open_names:
                break
            count["further"] += stage == 0
        verdicts = {change.verdict for change in same.values()}
        count["false alarm"] += "slower" in verdicts
        count["cannot tell"] += "slower" not in verdicts and "cannot tell" in verdicts
        verdict = slowed[slow].verdict
        count["found"] += verdict == "slower"
        count["unsure"] += verdict == "cannot tell"
        count["missed"] += verdict not in ("slower", "cannot tell")
        print(f"{trial + 1}: {', '.join(f'{number} {what}' for what, number in count.items())}", file=sys.stderr)
    print(f"{args.trials} comparisons of {rounds} rounds of {len(names)} benchmarks, {count['further']} measured further:"
          f" {count['false alarm']} false alarms, {count['cannot tell']} cannot tell")
    print(f"one benchmark slower by {100 * args.slowdown:.0f} %: {count['found']} found,"
          f" {count['unsure']} cannot tell, {count['missed']} missed")
    return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("programs", nargs="+", metavar="PROGRAM")
    parser.add_argument("--filter", default=".", metavar="REGEX")
    parser.add_argument("--metric", default="cpu_time", choices=("cpu_time", "real_time"))
    parser.add_argument("--min-time", type=float, default=0.02, help="seconds of one measurement")
    parser.add_argument("--threshold", type=float, default=0.05, help="smallest change that counts")
    parser.add_argument("--resolution", type=float, default=0.10, help="slowdown that must not be missed")
    parser.add_argument("--alpha", type=float, default=0.01, help="chance of a false alarm of a comparison")
    parser.add_argument("--seed", type=int, default=1, help="of the order of the turns")
    parser.add_argument("--json", metavar="FILE", help="write what was measured of NEW")
    parser.add_argument("--trials", type=int, metavar="N", help="measure the gate itself")
    parser.add_argument("--slowdown", type=float, default=0.10, help="with --trials")
    args = parser.parse_args()
    if len(args.programs) != (1 if args.trials else 2):
        parser.error("one program with --trials, else two")
    try:
        return trials(args) if args.trials else gate(args)
    except (ProgramError, compare.InputError, OSError) as error:
        print(error, file=sys.stderr)
        return compare.UNUSABLE


if __name__ == "__main__":
    sys.exit(main())
