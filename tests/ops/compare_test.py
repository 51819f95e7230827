"""bench/compare.py: its rank test, its verdicts and its exit codes."""

import importlib.util
import json
import math
import pathlib
import random
import subprocess
import sys
import tempfile
import unittest

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "bench" / "compare.py"
spec = importlib.util.spec_from_file_location("compare", SCRIPT)
compare = importlib.util.module_from_spec(spec)
spec.loader.exec_module(compare)


def result(benchmarks):
    entries = [{"name": name, "run_name": name, "run_type": "iteration", "cpu_time": value, "real_time": value}
               for name, values in benchmarks.items() for value in values]
    entries.append({"name": "x_median", "run_name": "x", "run_type": "aggregate", "cpu_time": 1.0})
    return json.dumps({"context": {}, "benchmarks": entries})


def noisy(centre, seed, count=9):
    generator = random.Random(seed)
    return [centre * (1 + 0.01 * generator.random()) for _ in range(count)]


class RankTest(unittest.TestCase):
    def test_exact_p_of_full_separation_is_two_over_the_number_of_orders(self):
        self.assertAlmostEqual(compare.rank_test([1, 2, 3], [4, 5, 6]), 2 / 20)
        self.assertAlmostEqual(compare.rank_test(list(range(9)), list(range(9, 18))), 2 / 48620)

    def test_exact_p_matches_a_published_table(self):
        # n = m = 5, U = 2: one-sided 0.016 (Mann and Whitney 1947, table I).
        self.assertAlmostEqual(compare.rank_test([1, 2, 3, 4, 7], [5, 6, 8, 9, 10]) / 2, 0.016, places=3)

    def test_equal_samples_give_no_evidence(self):
        self.assertEqual(compare.rank_test([1.0] * 9, [1.0] * 9), 1.0)

    def test_ties_use_the_normal_approximation(self):
        self.assertLess(compare.rank_test([1, 1, 1, 2, 2, 2, 3, 3, 3], [7, 7, 7, 8, 8, 8, 9, 9, 9]), 0.001)

    def test_effect_size_is_the_share_of_pairs(self):
        self.assertEqual(compare.cliffs_delta([1, 2], [3, 4]), 1)
        self.assertEqual(compare.cliffs_delta([3, 4], [1, 2]), -1)
        self.assertEqual(compare.cliffs_delta([1, 3], [2, 2]), 0)


class PairedTest(unittest.TestCase):
    def test_exact_p_of_pairs_that_all_point_one_way_is_two_over_the_number_of_signs(self):
        self.assertEqual(compare.paired_test([1, 2, 3, 4, 5]), (2 / 32, 1.0))
        self.assertEqual(compare.paired_test([-1, -2, -3, -4, -5]), (2 / 32, -1.0))

    def test_exact_p_matches_a_published_table(self):
        # n = 10, smaller rank sum 8: two-sided 0.0488 (Wilcoxon's table, critical value of 5 %).
        differences = [-8, 1, 2, 3, 4, 5, 6, 7, 9, 10]
        self.assertAlmostEqual(compare.paired_test(differences)[0], 0.0488, places=4)

    def test_no_difference_is_no_evidence(self):
        self.assertEqual(compare.paired_test([0.0] * 9), (1.0, 0.0))

    def test_interval_leaves_out_what_the_rank_statistic_allows(self):
        # Walsh averages of n = 10 at 95 %: the critical value is 8, so the 9th from each end (Hollander and Wolfe).
        shifts = list(range(55))
        self.assertEqual(compare.interval(shifts, compare.signs_by_rank_sum(10), 0.05), (27, 8, 46))


class Verdict(unittest.TestCase):
    def judge(self, base, new, **options):
        return compare.judge(base, new, **{"in_turns": True, "threshold": 0.05, "resolution": 0.1, "alpha": 0.01, **options})

    def test_pairs_see_through_a_drift_that_both_sides_share(self):
        drift = [1 + 0.2 * i for i in range(15)]
        noise = random.Random(1)
        base = {"a": [d * (1 + 0.01 * noise.random()) for d in drift]}
        new = {"a": [1.1 * d * (1 + 0.01 * noise.random()) for d in drift]}
        self.assertEqual(self.judge(base, new)["a"].verdict, "slower")
        self.assertEqual(self.judge(base, new, in_turns=False)["a"].verdict, "cannot tell")

    def test_noise_in_which_the_slowdown_could_hide_cannot_tell(self):
        noise = random.Random(2)
        samples = [{"a": [math.exp(noise.gauss(0, 0.3)) for _ in range(15)]} for _ in range(2)]
        self.assertEqual(self.judge(*samples)["a"].verdict, "cannot tell")

    def test_many_benchmarks_raise_no_more_false_alarms_than_one(self):
        noise = random.Random(3)
        alarms = 0
        for _ in range(200):
            samples = [{str(i): [math.exp(noise.gauss(0, 0.1)) for _ in range(20)] for i in range(10)} for _ in range(2)]
            alarms += any(c.verdict == "slower" for c in self.judge(*samples).values())
        self.assertLessEqual(alarms, 5)  # 2 are expected at most; more than 5 come once in 80 such tests

    def test_a_tenth_is_found_in_noise_of_three_percent(self):
        noise = random.Random(4)
        found = 0
        for _ in range(100):
            base, new = ({"a": [x * math.exp(noise.gauss(0, 0.03)) for _ in range(15)]} for x in (1, 1.1))
            found += self.judge(base, new)["a"].verdict == "slower"
        self.assertGreaterEqual(found, 95)


class Command(unittest.TestCase):
    def run_on(self, *contents, options=()):
        with tempfile.TemporaryDirectory() as folder:
            paths = []
            for i, content in enumerate(contents):
                paths.append(f"{folder}/{i}.json")
                pathlib.Path(paths[-1]).write_text(content, encoding="utf-8")
            return subprocess.run([sys.executable, SCRIPT, *paths, *options], capture_output=True, text=True, check=False)

    def test_a_slower_benchmark_fails(self):
        run = self.run_on(result({"a": noisy(1, 1), "b": noisy(5, 2)}), result({"a": noisy(1.2, 3), "b": noisy(5, 4)}))
        self.assertEqual(run.returncode, 1, run.stderr)
        self.assertRegex(run.stdout, r"a .*slower")
        self.assertIn("1 slower", run.stdout)

    def test_noise_and_speed_ups_pass(self):
        run = self.run_on(result({"a": noisy(1, 1), "b": noisy(5, 2)}), result({"a": noisy(0.8, 3), "b": noisy(5, 4)}))
        self.assertEqual(run.returncode, 0, run.stderr)
        self.assertRegex(run.stdout, r"a .*faster")

    def test_a_change_below_the_threshold_passes_however_sure(self):
        run = self.run_on(result({"a": noisy(1, 1)}), result({"a": noisy(1.03, 3)}))
        self.assertEqual(run.returncode, 0, run.stderr)

    def test_what_got_slower_is_named_with_its_share(self):
        run = self.run_on(result({"a": noisy(1, 1)}), result({"a": noisy(1.2, 3)}))
        self.assertRegex(run.stdout, r"slower: a by 20 % \(1\d to 2\d %\)")

    def test_noise_exits_4(self):
        wide = random.Random(5)
        run = self.run_on(*(result({"a": [math.exp(wide.gauss(0, 0.3)) for _ in range(9)]}) for _ in range(2)))
        self.assertEqual(run.returncode, 4, run.stdout + run.stderr)
        self.assertIn("1 cannot tell", run.stdout)

    def test_files_of_two_moments_cannot_tell_a_slower_machine_from_slower_code(self):
        names = "abcdef"
        base, new = (result({name: noisy(x, i * 10 + x, 12) for i, name in enumerate(names)}) for x in (1, 1.2))
        self.assertEqual(self.run_on(base, new).returncode, 4)
        self.assertEqual(self.run_on(base, new, options=["--in-turns"]).returncode, 1)

    def test_in_turns_needs_pairs(self):
        run = self.run_on(result({"a": noisy(1, 1)}), result({"a": noisy(1, 2, 10)}), options=["--in-turns"])
        self.assertEqual(run.returncode, 2)
        self.assertIn("as many repetitions", run.stderr)

    def test_unusable_input_is_told_apart(self):
        good = result({"a": noisy(1, 1)})
        for bad in ("", "{}", "[1]", '{"benchmarks": [1]}', result({"a": noisy(1, 1, 8)}), result({"b": noisy(1, 1)}),
                    result({"a": [0.0] * 9})):
            run = self.run_on(good, bad)
            self.assertEqual(run.returncode, 2, bad)
            self.assertTrue(run.stderr)
            self.assertNotIn("Traceback", run.stderr)
        self.assertEqual(self.run_on(good).returncode, 2)

    def test_peers_are_compared_within_one_file(self):
        cases = result({"sgemm/own/m:1": noisy(1, 1), "sgemm/other/m:1": noisy(2, 2), "sgemm/own/m:2": noisy(4, 3),
                        "sgemm/other/m:2": noisy(2, 4)})
        run = self.run_on(cases, options=["--peers", "own", "--at-least", "0.9", "--worst", "0.4"])
        self.assertEqual(run.returncode, 0, run.stderr)
        self.assertRegex(run.stdout, r"geometric mean 1\.0.x, worst 0\.50x \(m:2\), 2 cases")
        self.assertEqual(self.run_on(cases, options=["--peers", "own", "--worst", "0.6"]).returncode, 1)
        self.assertEqual(self.run_on(cases, options=["--peers", "absent"]).returncode, 2)


if __name__ == "__main__":
    unittest.main()
