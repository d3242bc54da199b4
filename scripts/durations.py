"""Runs the tests and writes how long they take, by file and the slowest ones, to benchmarks/durations.txt.

    python scripts/durations.py              # the whole suite, as `make test-all` runs it
    python scripts/durations.py -m long      # arguments are pytest's

A test's time is that of its call, and of the fixtures that are set up and taken down for it; of two workers,
the times add up to twice what passes. The file is committed by hand, from an idle machine.
"""

import collections
import datetime
import os
import pathlib
import platform
import sys
import time
from typing import Any

import jax
import pytest

ROOT = pathlib.Path(__file__).parents[1]
OUTPUT = ROOT / "benchmarks" / "durations.txt"
WORKERS = ["-n", "2", "--dist", "loadfile"]
SLOW = ("parity", "processes", "long")
NUM_SLOWEST = 40


class Recorder:
    """A plugin of pytest that adds up seconds.

    Attributes:
        of_test: seconds by node id.
        of_kind: seconds and tests by the first of `SLOW` that marks a test; "" is what `make test` runs.
        failed: how many tests failed.
    """

    def __init__(self):
        self.of_test: collections.Counter[str] = collections.Counter()
        self.of_kind: dict[str, list[float]] = {kind: [0.0, 0] for kind in ("", *SLOW)}
        self.failed = 0

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Called for setup, call and teardown of every test, of all workers."""
        kind = next((name for name in SLOW if name in report.keywords), "")
        self.of_test[report.nodeid] += report.duration
        self.of_kind[kind][0] += report.duration
        self.of_kind[kind][1] += report.when == "setup"
        self.failed += report.failed


def machine() -> str:
    """Processor, cores and versions."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    # Of the first core; the name alone may hide the generation.
    core = dict(reversed([[part.strip() for part in line.partition(":")[::2]] for line in lines if line]))
    processor = core.get("model name") or platform.processor() or platform.machine()
    if "cpu family" in core:
        processor += f" (family {core['cpu family']}, model {core['model']})"
    return f"{os.cpu_count()} cores, {processor}, jax {jax.__version__}, Python {platform.python_version()}"


def text(recorder: Recorder, arguments: list[str], seconds: float) -> str:
    """The file."""
    of_file: collections.Counter[str] = collections.Counter()
    num_tests: collections.Counter[str] = collections.Counter()
    for test, duration in recorder.of_test.items():
        of_file[test.partition("::")[0]] += duration
        num_tests[test.partition("::")[0]] += 1
    lines = [
        " ".join(["$ python scripts/durations.py", *arguments]),
        f"{datetime.date.today()}, {machine()}",
        f"{seconds:.0f} s with {WORKERS[1]} workers; {recorder.failed} failed",
        "",
        "seconds  tests  marked",
        *(
            f"{duration:7.1f}  {count:5d}  {kind or '- (make test)'}"
            for kind, (duration, count) in recorder.of_kind.items()
        ),
        f"{sum(recorder.of_test.values()):7.1f}  {len(recorder.of_test):5d}  all",
        "",
        "seconds  tests  file",
        *(f"{duration:7.1f}  {num_tests[file]:5d}  {file}" for file, duration in of_file.most_common()),
        "",
        "seconds  the slowest tests, with their fixtures",
        *(f"{duration:7.1f}  {test}" for test, duration in recorder.of_test.most_common(NUM_SLOWEST)),
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """The exit status, pytest's."""
    arguments = sys.argv[1:]
    os.chdir(ROOT)
    # Workers take the path of this process, and what tests start takes the variable.
    sys.path.insert(0, str(ROOT))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    recorder = Recorder()
    start = time.monotonic()
    status = pytest.main([*WORKERS, *arguments], plugins=[recorder])
    if recorder.of_test:
        OUTPUT.write_text(text(recorder, arguments, time.monotonic() - start))
        print(f"durations  {OUTPUT.relative_to(ROOT)}")
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
