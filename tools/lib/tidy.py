#!/usr/bin/env python3
"""usage: tidy.py SOURCES_ROOT BUILD_FOLDER...

Runs clang-tidy over every source of the compile commands that lies under SOURCES_ROOT and outside the build folders.
A source that was clean is not linted again until its preprocessed text, its command, the configuration or the linter
changes. Exits with 1 when there is a finding.
"""

import concurrent.futures
import hashlib
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

CLANG_TIDY = "clang-tidy-14"


def entries(root, builds):
    """One compile command for each source: that of the first folder that has one."""
    found = {}
    for build in builds:
        for entry in json.loads((build / "compile_commands.json").read_text()):
            source = pathlib.Path(entry["file"])
            if source.is_relative_to(root) and not source.is_relative_to(root / "build"):
                found.setdefault(source, (build, entry))
    return found


def fingerprint(entry, configuration):
    """A digest of all that the findings depend on; comments are kept, since they can carry NOLINT."""
    command = shlex.split(entry["command"])
    preprocess = command[: command.index("-o")] + ["-E", "-C", entry["file"]]
    text = subprocess.run(preprocess, cwd=entry["directory"], capture_output=True)
    if text.returncode != 0:
        return None  # clang-tidy will say what is wrong
    digest = hashlib.sha256(configuration)
    digest.update(entry["command"].encode())
    digest.update(text.stdout)
    return digest.hexdigest()


def lint(source, build, entry, configuration, clean):
    """What clang-tidy has to say about a source, or None for one that is known to be clean."""
    digest = fingerprint(entry, configuration)
    if digest and (clean / digest).exists():
        return None
    run = subprocess.run([CLANG_TIDY, "-p", str(build), "--quiet", str(source)], capture_output=True, text=True)
    # Standard error carries little but the count of suppressed warnings, unless the linter itself failed.
    noise = re.compile(r"^(\d+ warnings?( and \d+ errors?)? generated|\d+ warnings? treated as errors?)\.?$")
    errors = [line for line in run.stderr.splitlines() if line and not noise.match(line)]
    if run.returncode == 0 and not run.stdout.strip() and not errors and digest:
        (clean / digest).touch()
        return ""
    return run.stdout + "\n".join(errors) or f"{source}: {CLANG_TIDY} exits with {run.returncode}"


def main():
    root = pathlib.Path(sys.argv[1]).resolve()
    builds = [pathlib.Path(folder).resolve() for folder in sys.argv[2:]]
    sources = entries(root, builds)
    if not sources:
        sys.exit("error: no source in the compile commands")
    clean = builds[0] / "tidy"
    clean.mkdir(exist_ok=True)
    version = subprocess.run([CLANG_TIDY, "--version"], capture_output=True, check=True).stdout
    files = sorted([*root.glob(".clang-tidy"), *root.glob("*/.clang-tidy")])
    configuration = version + b"".join(file.read_bytes() for file in files)

    findings = known = 0
    with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        runs = {
            pool.submit(lint, source, build, entry, configuration, clean): source
            for source, (build, entry) in sorted(sources.items())
        }
        for run in concurrent.futures.as_completed(runs):
            said = run.result()
            known += said is None
            if said:
                findings += 1
                print(f"-- {runs[run].relative_to(root)}\n{said}", flush=True)
    print(f"clang-tidy: {len(sources)} sources, {known} of them unchanged since they were clean, findings in {findings}")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
