"""Whether the fast tests catch forty small faults in the mathematics (`scripts/mutants.py`).

    python scripts/mutate.py                 # all, two at a time
    python scripts/mutate.py --only=3,17     # some of them
    python scripts/mutate.py --list          # what they are, and whether each snippet is there once

Each worker has a copy of the tree in a temporary folder, puts one fault into it, runs the tests named for it
until the first fails, and takes the fault out. Before that, the tests of all chosen faults must pass in the
unchanged tree: otherwise a fault would seem caught that is not. The exit status is 1 if a fault survives, if
a snippet is not in its file exactly once, or if tests cannot be run.
"""

import argparse
import concurrent.futures
import os
import pathlib
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).parent))

from mutants import MUTANTS, Mutant

ROOT = pathlib.Path(__file__).parents[1]
# What tests need; the rest of the tree may be large.
COPIED = [
    "jvdm",
    "tests",
    "configs",
    "docs",
    "examples",
    "main.py",
    "pyproject.toml",
    "README.md",
    "requirements.txt",
]
FAST = "not long and not processes and not parity"


class Outcome(NamedTuple):
    """What became of a fault: "caught", "SURVIVED" or "FAILED TO RUN", the test that failed, and seconds."""

    verdict: str
    by: str
    seconds: float


def occurrences(mutant: Mutant) -> int:
    """How often its file has the snippet."""
    path = ROOT / mutant.file
    return path.read_text().count(mutant.old) if path.is_file() else 0


def copy_tree(folder: pathlib.Path) -> None:
    """The tree, without what tests do not need."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)


def run_tests(tests: tuple[str, ...], folder: pathlib.Path) -> subprocess.CompletedProcess:
    """pytest in a copy, until the first failure, without what is not in the fast suite."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", "--durations=0", "-m", FAST, *tests],
        cwd=folder,
        # The copy goes before an installed package; a stale .pyc could hide a fault that keeps the size.
        env={**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )


def try_mutant(mutant: Mutant, folder: pathlib.Path) -> Outcome:
    """Puts the fault in, runs its tests, takes it out."""
    path = folder / mutant.file
    text = path.read_text()
    path.write_text(text.replace(mutant.old, mutant.new))
    start = time.monotonic()
    try:
        done = run_tests(mutant.tests, folder)
    finally:
        path.write_text(text)
    seconds = time.monotonic() - start
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    if done.returncode == 0:
        return Outcome("SURVIVED", "", seconds)
    if done.returncode == 1 and failed:
        return Outcome("caught", failed[1], seconds)
    lines = (done.stdout + done.stderr).strip().splitlines()
    return Outcome("FAILED TO RUN", lines[-1] if lines else "", seconds)


def chosen_numbers(only: str | None) -> list[int]:
    """From 1, as the list counts them."""
    if only is None:
        return list(range(1, len(MUTANTS) + 1))
    numbers = [int(n) if n.isdigit() else 0 for n in only.split(",")]
    if not all(1 <= n <= len(MUTANTS) for n in numbers):
        sys.exit(f"mutate.py: --only={only}: give numbers from 1 to {len(MUTANTS)}, such as --only=3,17")
    return numbers


def show_list() -> int:
    """All of them; how many snippets are not where they should be, once."""
    wrong = 0
    for i, mutant in enumerate(MUTANTS, 1):
        count = occurrences(mutant)
        wrong += count != 1
        note = "" if count == 1 else f"   [snippet found {count} times]"
        print(f"{i:3d} {mutant.file.removeprefix('jvdm/'):38s} {mutant.what}{note}")
    return wrong


class Copies:
    """Copies of the tree, one for each worker; what they do, they do at the same time.

    Args:
        folder: they are made in it.
        workers: how many.
    """

    def __init__(self, folder: pathlib.Path, workers: int):
        self._free: queue.Queue[pathlib.Path] = queue.Queue()
        self._pool = concurrent.futures.ThreadPoolExecutor(workers)
        for worker in range(workers):
            copy = folder / str(worker)
            copy.mkdir()
            copy_tree(copy)
            self._free.put(copy)

    def map(self, work: Callable, items: Iterable) -> Iterator:
        """work(item, folder of a free copy), in the order of the items."""

        def in_a_copy(item):
            copy = self._free.get()
            try:
                return work(item, copy)
            finally:
                self._free.put(copy)

        return self._pool.map(in_a_copy, items)


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="show the faults, run nothing")
    parser.add_argument("--only", help="numbers, such as 3,17")
    parser.add_argument("--workers", type=int, default=2, help="at a time (2)")
    options = parser.parse_args()
    if options.list:
        return int(show_list() > 0)
    chosen = chosen_numbers(options.only)
    numbers = [n for n in chosen if occurrences(MUTANTS[n - 1]) == 1]
    for n in sorted(set(chosen) - set(numbers)):
        mutant = MUTANTS[n - 1]
        print(f"{n:3d} {mutant.file}: found {occurrences(mutant)} times, not once: {mutant.old!r}")

    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="jvdm-mutate-") as temporary:
        copies = Copies(pathlib.Path(temporary), options.workers)
        files = sorted({test for n in numbers for test in MUTANTS[n - 1].tests})
        parts = [part for i in range(options.workers) if (part := tuple(files[i :: options.workers]))]
        for done in copies.map(run_tests, parts):
            if done.returncode:
                print(f"the unchanged tests do not pass:\n{done.stdout[-3000:]}{done.stderr[-1000:]}")
                return 1
        print(f"{len(files)} files of unchanged tests pass, {time.monotonic() - start:.0f} s", flush=True)
        caught = 0
        outcomes = copies.map(try_mutant, [MUTANTS[n - 1] for n in numbers])
        for n, outcome in zip(numbers, outcomes, strict=True):
            caught += outcome.verdict == "caught"
            what = MUTANTS[n - 1].what
            print(f"{n:3d} {outcome.verdict:13s} {outcome.seconds:4.0f} s  {what}: {outcome.by}", flush=True)
    minutes = (time.monotonic() - start) / 60
    print(f"{caught} of {len(chosen)} caught, {minutes:.1f} minutes, {options.workers} at a time")
    return int(caught < len(chosen))


if __name__ == "__main__":
    sys.exit(main())
