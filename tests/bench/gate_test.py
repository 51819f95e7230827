"""bench/gate.py on programs whose times are known, and the command and the CI examples that call it."""

import contextlib
import io
import json
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
import tempfile
import unittest
from unittest import mock

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.dont_write_bytecode = True
sys.path[:0] = [str(ROOT / "bench"), str(ROOT / "bench/peers")]
import compare  # noqa: E402
import gate  # noqa: E402
import ops_torch  # noqa: E402

BUILD = os.environ.get("SHARDPROOF_BUILD")


class Scratch(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)

    def run_command(self, *command, **environment):
        return subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False,
                              cwd=self.folder, env={**os.environ, **environment}, stdin=subprocess.DEVNULL)


class FakePrograms:
    """In the place of gate.run: programs of benchmarks a and b whose times drift, run by run, and are noisy. In the
    program `slow`, a takes `slowdown` times as long."""

    def __init__(self, slowdown=1.0, noise=0.01):
        self.slowdown, self.noise, self.count = slowdown, noise, 0

    def __call__(self, program, arguments):
        options = dict(argument.lstrip("-").split("=", 1) for argument in arguments)
        names = [name for name in ("a", "b") if re.search(options["benchmark_filter"], name)]
        if "benchmark_list_tests" in options:
            return "\n".join(names) or "Failed to match any benchmarks against regex\n"
        self.count += 1
        time = (100 + self.count) * (1 + abs(random.Random(self.count).gauss(0, self.noise)))
        time *= self.slowdown if program == "slow" and names == ["a"] else 1
        return json.dumps({"benchmarks": [{"name": names[0], "run_type": "iteration", "cpu_time": time}]})


class Gate(unittest.TestCase):
    def gate(self, *options, **fake):
        out, err = io.StringIO(), io.StringIO()
        with mock.patch.object(gate, "run", FakePrograms(**fake)), mock.patch.object(sys, "argv", ["gate.py", *options]), \
                contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = gate.main()
        return code, out.getvalue(), err.getvalue()

    def test_a_program_is_not_slower_than_itself_while_the_machine_drifts(self):
        code, out, _ = self.gate("base", "base")
        self.assertEqual(code, 0, out)
        self.assertIn("2 benchmarks", out)

    def test_what_is_slower_by_a_tenth_is_named_and_nothing_else(self):
        code, out, _ = self.gate("base", "slow", slowdown=1.1)
        self.assertEqual(code, 1, out)
        self.assertRegex(out, r"slower: a by (9|10|11) %")
        self.assertNotIn("slower: b", out)

    def test_noise_is_measured_further_and_then_cannot_tell(self):
        code, out, err = self.gate("base", "base", noise=3)
        self.assertEqual(code, 4, out)
        self.assertEqual(err.count("cannot tell yet"), gate.STAGES - 1)

    def test_the_filter_narrows_both(self):
        code, out, _ = self.gate("base", "slow", "--filter", "b", slowdown=2)
        self.assertEqual(code, 0, out)
        self.assertIn("1 benchmarks", out)

    def test_its_own_trials_count_what_it_makes_of_a_build_and_itself(self):
        code, out, _ = self.gate("--trials", "5", "base")
        self.assertEqual(code, 0)
        self.assertIn("0 measured further: 0 false alarms, 0 cannot tell", out)
        self.assertIn("one benchmark slower by 10 %: 5 found, 0 cannot tell, 0 missed", out)

    def test_it_has_rounds_enough_to_be_sure_of_one_among_many(self):
        for benchmarks in (1, 10, 1000):
            rounds = gate.rounds_for(benchmarks, 0.01)
            self.assertLess(compare.paired_test([1.0 + i for i in range(rounds)])[0] * benchmarks, 0.01 / gate.STAGES)


class GateCommand(Scratch):
    def test_unusable_programs_are_told_in_one_line(self):
        for programs in (["./absent", "./absent"], ["/bin/false", "/bin/false"], ["/bin/true", "/bin/true"]):
            run = self.run_command(sys.executable, ROOT / "bench/gate.py", *programs)
            self.assertEqual(run.returncode, 2, programs)
            self.assertEqual(run.stderr.count("\n"), 1, run.stderr)


@unittest.skipUnless(BUILD, "SHARDPROOF_BUILD names no build with benchmarks")
class Command(Scratch):
    """tools/bench on the benchmarks of this build."""

    def bench(self, *options):
        return self.run_command(ROOT / "tools/bench", *options)

    def test_a_result_is_written_and_compared_with(self):
        case = ["--filter", "^route/experts:4/"]
        first = self.bench("ops", *case, "--json", "base.json")
        self.assertEqual(first.returncode, 0, first.stderr)
        second = self.bench("ops", *case, "--compare", "base.json")
        self.assertIn(second.returncode, (0, 1, 4), second.stderr)
        self.assertIn("1 benchmarks", second.stdout)

    def test_two_builds_are_compared_in_turns(self):
        run = self.bench("ops", "--filter", "^route/experts:4/", "--against", BUILD)
        self.assertIn(run.returncode, (0, 4), run.stdout + run.stderr)
        self.assertIn("1 benchmarks", run.stdout)

    def test_every_case_of_pytorch_is_a_benchmark(self):
        names = gate.names_of(f"{BUILD}/bench/ops_bench", ".")
        self.assertFalse(set(ops_torch.Cases(mock.MagicMock()).cases) - set(names))

    def test_what_it_does_not_understand_is_refused(self):
        for options, text in ((["speed"], "neither a suite"), (["ops", "peers"], "one suite"), (["--filter"], "needs a value"),
                              (["--compare", "absent.json"], "cannot be read"), (["--against", "absent"], "no program"),
                              (["peers", "--compare", "x"], "no --compare"), (["ops", "--torch"], "belong to peers"),
                              (["ops", "--jax"], "belong to peers"),
                              (["--json", "absent/x.json"], "no folder"), (["--filter", "no such op", "--json", "x"], "no benchmark")):
            run = self.bench(*options)
            self.assertEqual(run.returncode, 2, options)
            self.assertIn(text, run.stderr)


def shell_steps(path):
    """The shell of a GitHub workflow (run) or of GitLab jobs (script), in order; those that install git are left out."""
    import yaml
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    if "jobs" in document:
        lines = [step["run"] for job in document["jobs"].values() for step in job["steps"] if "run" in step]
    else:
        lines = ["\n".join(job["script"]) for job in document.values() if isinstance(job, dict) and "script" in job]
    return [line for line in lines if "apt-get" not in line]


@unittest.skipUnless(BUILD, "SHARDPROOF_BUILD names no build with benchmarks")
class Examples(Scratch):
    """Every shell step of the CI examples, in a clone; only the compilation is left out (SHARDPROOF_BUILD)."""

    def run_steps(self, example):
        try:
            steps = shell_steps(ROOT / "tools/ci" / example)
        except ImportError:
            self.skipTest("needs PyYAML")
        for command in (["git", "init", "-q", "."], ["cp", "-r", *[ROOT / name for name in ("tools", "bench", "plans", "tests")], "."],
                        ["git", "add", "-A"],
                        ["git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-q", "-m", "base"]):
            self.assertEqual(self.run_command(*command).returncode, 0, command)
        statuses = []
        for step in steps:
            run = self.run_command("bash", "-e", "-c", step, BASE="HEAD", BASE_BUILD=BUILD, HOME=str(self.folder),
                                   GATED="^route/experts:4/")
            statuses.append((run.returncode, step, run.stdout + run.stderr))
        return statuses

    def test_every_step_of_both_runs(self):
        for example, steps in (("github-actions.yml", 3), ("gitlab-ci.yml", 2)):
            with self.subTest(example):
                statuses = self.run_steps(example)
                self.assertEqual(len(statuses), steps)
                for code, step, output in statuses:
                    self.assertIn(code, (0, 4) if "--against" in step else (0,), step + output)
                self.assertTrue((self.folder / "numerics.xml").exists())
                self.assertTrue((self.folder / "speed.json").exists())
                self.assertRegex(statuses[-1][2], r"1 benchmarks, geometric mean")
            for path in self.folder.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def test_both_call_for_a_baseline_and_for_a_build_in_turns(self):
        for example in ("github-actions.yml", "gitlab-ci.yml"):
            text = (ROOT / "tools/ci" / example).read_text(encoding="utf-8")
            self.assertTrue(re.search(r"--baseline", text) and re.search(r"--against", text), example)


if __name__ == "__main__":
    unittest.main()
