#!/usr/bin/env python3
"""Compares Google Benchmark results: the regression gate for CI, and the table of peers.

  compare.py BASE.json NEW.json [--metric cpu_time] [--threshold 0.05] [--alpha 0.01]
      Per benchmark in both files: the medians, NEW / BASE (above 1 is slower), Cliff's delta (how surely a run of NEW
      takes longer than one of BASE: -1 .. 1) and the two-sided p of the Mann-Whitney rank test. A benchmark is slower
      (or faster) when its medians differ by more than the threshold and p is below alpha.
  compare.py --peers shardproof RESULT.json [--at-least GEOMEAN] [--worst RATIO]
      Within one file of names GROUP/LIBRARY/CASE: how many times as fast the named library is as each other one, case
      by case, with the geometric mean and the worst.

Each side needs the single repetitions of a run with --benchmark_repetitions=9 or more (not aggregates only).
Exit codes: 0 no benchmark slower (every bound met), 1 some benchmark slower (a bound missed), 2 unusable input.
"""

import argparse
import json
import math
import statistics
import sys

MIN_REPETITIONS = 9


class InputError(Exception):
    pass


def load(path, metric):
    """Benchmark name -> list of the metric, one entry a repetition, in the order of the file."""
    try:
        with open(path, encoding="utf-8") as file:
            entries = json.load(file)["benchmarks"]
        samples = {}
        for entry in entries:
            if entry.get("run_type", "iteration") != "iteration" or entry.get("error_occurred"):
                continue
            value = float(entry[metric])
            if not math.isfinite(value) or value <= 0:
                raise InputError(f"{path}: {entry['name']}: {metric} is {value}")
            samples.setdefault(entry.get("run_name", entry["name"]), []).append(value)
        return samples
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not a Google Benchmark result with {metric}: {error!r}") from error


def cliffs_delta(base, new):
    """Share of pairs where new is larger, less the share where it is smaller."""
    return sum((b < n) - (b > n) for b in base for n in new) / (len(base) * len(new))


def rank_test(base, new):
    """Two-sided p of the Mann-Whitney U test: exact without ties up to 20 a side, else normal with tie correction."""
    m, n = len(base), len(new)
    u = sum((x < y) + 0.5 * (x == y) for x in base for y in new)
    pooled = base + new
    if len(set(pooled)) == m + n and max(m, n) <= 20:
        # counts[j] = number of orders of the pooled samples with U = j.
        ways = [[None] * (n + 1) for _ in range(m + 1)]
        for i in range(m + 1):
            for j in range(n + 1):
                if i == 0 or j == 0:
                    ways[i][j] = [1]
                    continue
                counts = [0] * (i * j + 1)
                for place, count in enumerate(ways[i - 1][j]):
                    counts[place + j] += count
                for place, count in enumerate(ways[i][j - 1]):
                    counts[place] += count
                ways[i][j] = counts
        counts = ways[m][n]
        tail = int(min(u, m * n - u))
        return min(1.0, 2 * sum(counts[: tail + 1]) / math.comb(m + n, m))
    ties = sum(pooled.count(value) ** 3 - pooled.count(value) for value in set(pooled))
    size = m + n
    variance = m * n / 12 * (size + 1 - ties / (size * (size - 1)))
    if variance == 0:
        return 1.0
    z = max(0.0, abs(u - m * n / 2) - 0.5) / math.sqrt(variance)
    return math.erfc(z / math.sqrt(2))


def require_repetitions(path, samples):
    short = [name for name, values in samples.items() if len(values) < MIN_REPETITIONS]
    if short:
        raise InputError(f"{path}: fewer than {MIN_REPETITIONS} repetitions of {short[0]}"
                         f"{f' and {len(short) - 1} others' if len(short) > 1 else ''}"
                         f" (run with --benchmark_repetitions={MIN_REPETITIONS})")


def print_table(header, rows):
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    for row in [header, *rows]:
        print("  ".join([row[0].ljust(widths[0])] + [cell.rjust(w) for cell, w in zip(row[1:], widths[1:])]).rstrip())


def geometric_mean(values):
    return math.exp(statistics.fmean(math.log(value) for value in values))


def compare_files(args):
    base, new = load(args.files[0], args.metric), load(args.files[1], args.metric)
    common = [name for name in base if name in new]
    if not common:
        raise InputError("the two files have no benchmark in common")
    for path, samples in zip(args.files, (base, new)):
        require_repetitions(path, {name: samples[name] for name in common})
    rows, ratios, slower = [], [], 0
    for name in common:
        before, after = statistics.median(base[name]), statistics.median(new[name])
        ratio, p = after / before, rank_test(base[name], new[name])
        verdict = ""
        if p < args.alpha and ratio > 1 + args.threshold:
            verdict, slower = "slower", slower + 1
        elif p < args.alpha and ratio < 1 / (1 + args.threshold):
            verdict = "faster"
        ratios.append(ratio)
        rows.append([name, f"{before:.4g}", f"{after:.4g}", f"{ratio:.3f}",
                     f"{cliffs_delta(base[name], new[name]):+.2f}", f"{p:.2g}", verdict])
    print_table(["benchmark", "base", "new", "new/base", "delta", "p", ""], rows)
    print(f"{len(common)} benchmarks, geometric mean of new/base {geometric_mean(ratios):.3f}, {slower} slower")
    for missing, where in ((set(base) - set(new), args.files[1]), (set(new) - set(base), args.files[0])):
        if missing:
            print(f"not in {where}: {len(missing)}, e.g. {min(missing)}", file=sys.stderr)
    return 1 if slower else 0


def compare_peers(args):
    samples = load(args.files[0], args.metric)
    require_repetitions(args.files[0], samples)
    cases = {}
    for name, values in samples.items():
        parts = name.split("/", 2)
        if len(parts) == 3:
            cases.setdefault((parts[0], parts[2]), {})[parts[1]] = statistics.median(values)
    peers = sorted({library for case in cases.values() for library in case} - {args.peers})
    own = {case: values[args.peers] for case, values in cases.items() if args.peers in values}
    if not own or not peers:
        raise InputError(f"{args.files[0]}: no GROUP/{args.peers}/CASE with a peer")
    rows = [[f"{group}/{case}", f"{own[group, case]:.4g}"]
            + [f"{cases[group, case][peer] / own[group, case]:.2f}" if peer in cases[group, case] else "-"
               for peer in peers] for group, case in own]
    print_table(["case", args.peers] + [f"vs {peer}" for peer in peers], rows)
    missed = False
    for group in sorted({group for group, _ in own}):
        for peer in peers:
            ratios = {case: cases[group, case][peer] / time for (kind, case), time in own.items()
                      if kind == group and peer in cases[group, case]}
            if not ratios:
                continue
            worst = min(ratios, key=ratios.get)
            mean = geometric_mean(ratios.values())
            print(f"{group} against {peer}: geometric mean {mean:.2f}x, worst {ratios[worst]:.2f}x ({worst}),"
                  f" {len(ratios)} cases")
            missed |= args.at_least is not None and mean < args.at_least
            missed |= args.worst is not None and ratios[worst] < args.worst
    return 1 if missed else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="RESULT.json")
    parser.add_argument("--metric", default="cpu_time", help="cpu_time (default) or real_time")
    parser.add_argument("--threshold", type=float, default=0.05, help="smallest change of the median that counts")
    parser.add_argument("--alpha", type=float, default=0.01, help="p below which a change counts")
    parser.add_argument("--peers", metavar="LIBRARY", help="compare this library with the others of one file")
    parser.add_argument("--at-least", type=float, help="with --peers: smallest geometric mean")
    parser.add_argument("--worst", type=float, help="with --peers: smallest single ratio")
    args = parser.parse_args()
    if len(args.files) != (1 if args.peers else 2):
        parser.error("one file with --peers, else two")
    try:
        return compare_peers(args) if args.peers else compare_files(args)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
