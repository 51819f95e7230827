#!/usr/bin/env python3
"""Compares Google Benchmark results: the regression gate for CI, and the table of peers.

  compare.py BASE.json NEW.json [--metric cpu_time] [--threshold 0.05] [--resolution 0.10] [--alpha 0.01] [--in-turns]
      Per benchmark in both files: the medians, NEW / BASE (above 1 is slower) with a confidence interval, the effect size
      (-1 .. 1: how surely NEW takes longer) and the two-sided p of a rank test, corrected for the number of benchmarks
      (Holm). A benchmark is slower (or faster) when NEW / BASE is beyond the threshold and p is below alpha. When it is
      not slower, and a slowdown by the resolution is inside the interval, the measurement cannot tell.
      Without --in-turns the rank test is that of Mann and Whitney, and the effect size Cliff's delta. With it, repetition
      i of BASE and of NEW ran next to each other (gate.py), and the pairs are tested: Wilcoxon's signed ranks, and their
      rank-biserial correlation. Without it, when most benchmarks are slower together, that may be the machine: it
      cannot tell.
  compare.py --peers shardproof RESULT.json [--at-least GEOMEAN] [--worst RATIO]
      Within one file of names GROUP/LIBRARY/CASE: how many times as fast the named library is as each other one, case
      by case, with the geometric mean and the worst.

Each side needs the single repetitions of a run with --benchmark_repetitions=9 or more (not aggregates only).
Exit codes: 0 no benchmark slower (every bound met), 1 some benchmark slower (a bound missed), 2 unusable input,
4 cannot tell.
"""

import argparse
import functools
import json
import math
import statistics
import sys

MIN_REPETITIONS = 9
SLOWER, UNUSABLE, CANNOT_TELL = 1, 2, 4
# Of fewer benchmarks it is not said that they are slower together.
MIN_TOGETHER = 5


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


@functools.cache
def orders_by_u(m, n):
    """[j]: number of orders of m and n samples in which U is j."""
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
    return ways[m][n]


@functools.cache
def signs_by_rank_sum(n):
    """[j]: number of ways to give the ranks 1 .. n signs so that the positive ones add up to j."""
    counts = [1]
    for rank in range(1, n + 1):
        longer = counts + [0] * rank
        for place, count in enumerate(counts):
            longer[place + rank] += count
        counts = longer
    return counts


def rank_test(base, new):
    """Two-sided p of the Mann-Whitney U test: exact without ties up to 20 a side, else normal with tie correction."""
    m, n = len(base), len(new)
    u = sum((x < y) + 0.5 * (x == y) for x in base for y in new)
    pooled = base + new
    if len(set(pooled)) == m + n and max(m, n) <= 20:
        counts = orders_by_u(m, n)
        tail = int(min(u, m * n - u))
        return min(1.0, 2 * sum(counts[: tail + 1]) / math.comb(m + n, m))
    ties = sum(pooled.count(value) ** 3 - pooled.count(value) for value in set(pooled))
    size = m + n
    variance = m * n / 12 * (size + 1 - ties / (size * (size - 1)))
    if variance == 0:
        return 1.0
    z = max(0.0, abs(u - m * n / 2) - 0.5) / math.sqrt(variance)
    return math.erfc(z / math.sqrt(2))


def signed_ranks(differences):
    """Sum of the ranks of the positive and of the negative ones, by size; ties share a rank, zeros are left out."""
    by_size = sorted((abs(d), d) for d in differences if d != 0)
    positive = negative = 0.0
    begin = 0
    while begin < len(by_size):
        end = begin
        while end < len(by_size) and by_size[end][0] == by_size[begin][0]:
            end += 1
        for _, difference in by_size[begin:end]:
            if difference > 0:
                positive += (begin + 1 + end) / 2
            else:
                negative += (begin + 1 + end) / 2
        begin = end
    return positive, negative


def paired_test(differences):
    """Two-sided p of Wilcoxon's signed ranks, exact (ties are rounded against the smaller p), and their rank-biserial
    correlation: -1 .. 1."""
    positive, negative = signed_ranks(differences)
    if positive + negative == 0:
        return 1.0, 0.0
    counts = signs_by_rank_sum(sum(d != 0 for d in differences))
    tail = math.ceil(min(positive, negative))
    return min(1.0, 2 * sum(counts[: tail + 1]) / sum(counts)), (positive - negative) / (positive + negative)


def interval(shifts, counts, alpha):
    """Median of the sorted shifts, and an interval of them that no assumption on the noise is needed for: as many are
    left out at each end as the rank statistic, distributed as `counts`, stays below with probability alpha / 2."""
    total, below, skipped = sum(counts), 0, 0
    while skipped < len(shifts) // 2 and below + counts[skipped] <= alpha / 2 * total:
        below += counts[skipped]
        skipped += 1
    skipped = max(0, skipped - 1)
    return statistics.median(shifts), shifts[skipped], shifts[-1 - skipped]


class Change:
    """What became of one benchmark: the ratio new / base with its interval, effect size, p (not yet corrected)."""

    def __init__(self, base, new, in_turns, alpha):
        old, now = [math.log(x) for x in base], [math.log(x) for x in new]
        if in_turns:
            pairs = [b - a for a, b in zip(old, now)]
            self.p, self.effect = paired_test(pairs)
            shifts = sorted((x + y) / 2 for i, x in enumerate(pairs) for y in pairs[i:])
            counts = signs_by_rank_sum(len(pairs))
        else:
            self.p, self.effect = rank_test(old, now), cliffs_delta(old, now)
            shifts = sorted(y - x for x in old for y in now)
            counts = orders_by_u(len(old), len(now))
        self.ratio, self.low, self.high = (math.exp(x) for x in interval(shifts, counts, alpha))
        self.base, self.new, self.verdict = statistics.median(base), statistics.median(new), ""


def judge(base, new, *, in_turns, threshold, resolution, alpha):
    """Benchmark name -> Change with its verdict: "slower", "faster", "cannot tell", or nothing."""
    changes = {name: Change(base[name], new[name], in_turns, alpha) for name in base if name in new}
    # Holm: the smallest p counts as many times as there are benchmarks, the next once less, and none less than before.
    corrected = 0.0
    for place, change in enumerate(sorted(changes.values(), key=lambda change: change.p)):
        corrected = max(corrected, min(1.0, change.p * (len(changes) - place)))
        change.p = corrected
        if corrected < alpha and change.ratio > 1 + threshold:
            change.verdict = "slower"
        elif corrected < alpha and change.ratio < 1 / (1 + threshold):
            change.verdict = "faster"
        elif change.high > 1 + resolution:
            change.verdict = "cannot tell"
    return changes


def slower_together(changes, threshold):
    """Most of many benchmarks got slower: files of two moments cannot tell that from a machine that did."""
    return len(changes) >= MIN_TOGETHER and statistics.median(c.ratio for c in changes.values()) > 1 + threshold


def print_changes(changes):
    rows = [[name, f"{c.base:.4g}", f"{c.new:.4g}", f"{c.ratio:.3f}", f"{c.low:.3f}..{c.high:.3f}", f"{c.effect:+.2f}",
             f"{c.p:.2g}", c.verdict] for name, c in changes.items()]
    print_table(["benchmark", "base", "new", "new/base", "interval", "effect", "p", ""], rows)
    count = {verdict: sum(c.verdict == verdict for c in changes.values()) for verdict in ("slower", "cannot tell")}
    mean = geometric_mean([c.ratio for c in changes.values()])
    print(f"{len(changes)} benchmarks, geometric mean of new/base {mean:.3f}, {count['slower']} slower,"
          f" {count['cannot tell']} cannot tell")
    for name, c in changes.items():
        if c.verdict == "slower":
            print(f"slower: {name} by {100 * (c.ratio - 1):.0f} % ({100 * (c.low - 1):.0f} to {100 * (c.high - 1):.0f} %)")
    return SLOWER if count["slower"] else CANNOT_TELL if count["cannot tell"] else 0


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
    if args.in_turns and any(len(base[name]) != len(new[name]) for name in common):
        raise InputError("--in-turns needs as many repetitions in one file as in the other")
    changes = judge({name: base[name] for name in common}, new, in_turns=args.in_turns, threshold=args.threshold,
                    resolution=args.resolution, alpha=args.alpha)
    status = print_changes(changes)
    for missing, where in ((set(base) - set(new), args.files[1]), (set(new) - set(base), args.files[0])):
        if missing:
            print(f"not in {where}: {len(missing)}, e.g. {min(missing)}", file=sys.stderr)
    if status == SLOWER and not args.in_turns and slower_together(changes, args.threshold):
        print("cannot tell: most benchmarks are slower together, which may be the machine; compare two builds in turns"
              " (tools/bench --against BUILD_DIR)")
        return CANNOT_TELL
    return status


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
    parser.add_argument("--resolution", type=float, default=0.10, help="slowdown that must not be missed")
    parser.add_argument("--alpha", type=float, default=0.01, help="p below which a change counts")
    parser.add_argument("--in-turns", action="store_true", help="the repetitions of both files ran in turns")
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
        return UNUSABLE


if __name__ == "__main__":
    sys.exit(main())
