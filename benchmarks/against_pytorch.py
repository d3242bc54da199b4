"""The speed of jvdm's training step on a CPU against a PyTorch implementation of the same step.

    python benchmarks/against_pytorch.py [--sizes=128x32x4x32,64x4x16x32,32x1x64x8] [--rounds=6]
        [--seconds=10]

A size is channels x blocks x batch x side: the U-Net of VDM with so many features, and so many blocks on the
way down, on RGB images. `pytorch_vdm.py` has the PyTorch side. Both steps draw times and noise, compute the
bound and its gradient with dropout 0.1 in float32, clip, update by AdamW, and average the parameters. Before
anything is measured, both compute a small step on the same parameters and draws, without dropout. The script
prints how far they are apart, and stops if that is more than `TOLERANCE`.

Each size has two processes. After a turn to warm up, each runs steps for `--seconds` in every round while the
other waits; they take turns at being first. The table has

    jvdm s, torch s   seconds of a step, the median of all rounds
    torch/jvdm        the median of the rounds' ratios; above 1, jvdm is faster. The brackets have the
                      smallest and the largest. If rounds are independent, these enclose the true median with
                      probability 1 - 2^(1 - rounds), 97% for 6 rounds
    GB                the most memory that each process has had resident, compilation included
    others            the share of all cores that other processes took during the turns. A core that is taken
                      slows PyTorch most, because its threads wait for one another at the end of every
                      operation: do not compare the two in a row with more than a few percent
    layout            of PyTorch's images and kernels, the faster of two while it warmed up

`--profile` adds where a step of PyTorch spends its time, by kind of operation. PyTorch needs about 1 GB, or
6 GB where the package index has no build for CPUs. If it is missing, the script creates the virtual
environment build/pytorch for it; `--python` names the Python of another environment that has it.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(BENCHMARKS))

from script import Parser, run
from turns import Worker

from jvdm.core.errors import UserError, unknown
from jvdm.networks.layers import REMATS

ENVIRONMENT = ROOT / "build" / "pytorch"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
LAYOUTS = ("faster", "channels_last", "contiguous")
SIZES = "128x32x4x32,64x4x16x32,32x1x64x8"
# Rounding differs; the first update of Adam magnifies that where a gradient is close to zero.
TOLERANCE = {"diffusion": 1e-4, "reconstruction": 1e-4, "prior": 1e-4, "gradient": 1e-3, "update": 1e-2}
COLUMNS = ("size", "parameters", "jvdm s", "torch s", "torch/jvdm", "jvdm GB", "torch GB", "others", "layout")
WIDTHS = (13, 11, 8, 8, 18, 8, 8, 6, 13)
# The C library would return every large array to the system, and get it back page by page. jvdm sets the same
# by itself (`jvdm.core.host_memory`).
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**33)}


class Size(NamedTuple):
    """Of a network and of what it is trained on."""

    channels: int
    blocks: int
    batch: int
    side: int

    def __str__(self) -> str:
        return "x".join(map(str, self))

    @property
    def arguments(self) -> list[str]:
        """The flags of a worker."""
        return [f"--{name}={value}" for name, value in self._asdict().items()]


SMALL = Size(channels=32, blocks=2, batch=4, side=8)


def sizes_of(text: str) -> list[Size]:
    """The sizes of --sizes.

    Raises:
        UserError: one of them is not four whole numbers from 1, or its channels are not a multiple of 4.
    """
    sizes = []
    for part in text.split(","):
        numbers = part.split("x")
        if len(numbers) != 4 or not all(n.isdecimal() and int(n) for n in numbers):
            raise UserError(f"--sizes: {part!r} is not channels x blocks x batch x side, such as 64x4x16x32")
        size = Size(*map(int, numbers))
        if size.channels % 4:
            raise UserError(f"--sizes: {part!r} has {size.channels} channels: give a multiple of 4")
        sizes.append(size)
    return sizes


def environment() -> pathlib.Path:
    """The Python of build/pytorch, which is created if it is missing.

    Raises:
        UserError: the environment cannot be created, or PyTorch cannot be installed.
    """
    python = ENVIRONMENT / "bin" / "python"
    if not python.exists():
        command = [sys.executable, "-m", "venv", str(ENVIRONMENT)]
        if subprocess.run(command, check=False, stdout=sys.stderr).returncode:
            raise UserError(f"cannot create the virtual environment {ENVIRONMENT}")
    if not _has_pytorch(python):
        print(f"installing torch into {ENVIRONMENT} (once; up to 6 GB)", file=sys.stderr, flush=True)
        install = [str(python), "-m", "pip", "install", "--quiet"]
        # Where this index cannot be reached, the default build of pip's own also runs without a GPU.
        cpu = [*install, "--retries=0", "--timeout=15", f"--index-url={CPU_INDEX}", "torch"]
        if subprocess.run(cpu, check=False, capture_output=True).returncode:
            _install([*install, "torch"])
        _install([*install, "numpy"])
    return python


def _install(command: Sequence[str]) -> None:
    if subprocess.run(command, check=False, stdout=sys.stderr).returncode:
        raise UserError(f"cannot install {command[-1]} into {ENVIRONMENT}; with a network, try again")


def _has_pytorch(python: pathlib.Path) -> bool:
    command = [str(python), "-c", "import torch, numpy"]
    try:
        return subprocess.run(command, check=False, capture_output=True).returncode == 0
    except OSError:
        return False


class Workers(NamedTuple):
    """One process of each; a context that ends both."""

    jvdm: Worker
    torch: Worker

    @classmethod
    def start(cls, python: pathlib.Path, size: Size, args: argparse.Namespace) -> "Workers":
        """Processes for one size, which have built nothing."""
        jvdm = [sys.executable, str(BENCHMARKS / "jvdm_step.py"), *size.arguments, f"--remat={args.remat}"]
        torch = [str(python), str(BENCHMARKS / "pytorch_vdm.py"), *size.arguments, f"--layout={args.layout}"]
        return cls(Worker("jvdm", jvdm, {"JAX_PLATFORMS": "cpu"}), Worker("PyTorch", torch, KEEP_MEMORY))

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *exception: object) -> None:
        for worker in self:
            worker.__exit__(*exception)


def check_same(python: pathlib.Path, args: argparse.Namespace) -> tuple[str, dict[str, float]]:
    """What runs the steps, and how far apart they are on the same parameters and draws.

    Raises:
        AssertionError: they are farther apart than `TOLERANCE`, so that they are not the same step.
    """
    with Workers.start(python, SMALL, args) as workers, tempfile.TemporaryDirectory() as folder:
        file = str(pathlib.Path(folder) / "step.npz")
        workers.jvdm("one_step", file=file)
        versions = f"{workers.jvdm('versions')}, {workers.torch('versions')}"
        apart = workers.torch("compare", file=file)
    for name, most in TOLERANCE.items():
        if not apart[name] <= most:
            raise AssertionError(f"the steps differ: {name} by {apart[name]:.1e}, relatively")
    return versions, apart


class Round(NamedTuple):
    """Seconds of every step of one round."""

    jvdm: list[float]
    torch: list[float]


class Ratio(NamedTuple):
    """The rounds' ratios of torch's median step to jvdm's: their median, smallest and largest."""

    median: float
    low: float
    high: float


def ratio_of(rounds: Sequence[Round]) -> Ratio:
    """How much longer a step of PyTorch takes than one of jvdm.

    Both sides of a round's ratio are measured within seconds, so that a slow spell of the machine lasts for
    both or is one round's.
    """
    ratios = [statistics.median(r.torch) / statistics.median(r.jvdm) for r in rounds]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))


def busy() -> float:
    """Seconds that all cores together have worked since the machine started; nan where that is unknown."""
    try:
        fields = pathlib.Path("/proc/stat").read_text().split("\n", 1)[0].split()
    except OSError:
        return float("nan")
    user, nice, system, _, _, irq, softirq, steal = map(int, fields[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def others_share(busy_seconds: float, own_seconds: float, wall_seconds: float) -> float:
    """The share of all cores that other processes took, from CPU seconds; nan where it is unknown."""
    return max(0.0, (busy_seconds - own_seconds) / (wall_seconds * (os.cpu_count() or 1)))


def measure(python: pathlib.Path, size: Size, args: argparse.Namespace) -> Iterator[str]:
    """One row of the table, as cells; then what --profile adds, as lines."""
    with Workers.start(python, size, args) as workers:
        ours, theirs = workers.jvdm("build"), workers.torch("build", seconds=args.seconds)
        if ours["parameters"] != theirs["parameters"]:
            raise AssertionError(
                f"{ours['parameters']} parameters in jvdm, {theirs['parameters']} in PyTorch"
            )
        workers.jvdm("turn", seconds=args.seconds)
        rounds, load = [], [0.0, 0.0, 0.0]
        for i in range(args.rounds):
            steps: dict[str, list[float]] = {}
            for name in ("jvdm", "torch") if i % 2 == 0 else ("torch", "jvdm"):
                time.sleep(0.5)  # The other's threads may spin for a moment after their last step.
                start, before = time.perf_counter(), busy()
                turn = getattr(workers, name)("turn", seconds=args.seconds)
                cost = busy() - before, turn["cpu"], time.perf_counter() - start
                load = [a + b for a, b in zip(load, cost, strict=True)]
                steps[name] = turn["steps"]
            rounds.append(Round(**steps))
        memory = [worker("memory") for worker in workers]
        profile = workers.torch("profile") if args.profile else {}
    yield row(size, theirs, rounds, memory, others_share(*load))
    yield from profile_lines(profile)


def row(
    size: Size, torch: dict[str, Any], rounds: Sequence[Round], memory: Sequence[float], others: float
) -> str:
    """One line of the table.

    Args:
        size: of both.
        torch: `parameters` and `layout`.
        rounds: that were measured.
        memory: bytes, of jvdm and of PyTorch.
        others: the share of the cores that other processes took.
    """
    ratio = ratio_of(rounds)
    return aligned(
        size,
        f"{torch['parameters']:,}",
        *(
            f"{statistics.median(t for steps in side for t in steps):.4f}"
            for side in zip(*rounds, strict=True)
        ),
        f"{ratio.median:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]",
        *(f"{peak / 1e9:.2f}" for peak in memory),
        f"{others:.0%}",
        torch["layout"],
    )


def aligned(*cells: object) -> str:
    """Cells of the table, in columns."""
    return " ".join(f"{cell:>{width}}" for cell, width in zip(map(str, cells), WIDTHS, strict=True))


def profile_lines(profile: dict[str, float]) -> Iterator[str]:
    """Milliseconds of a step by kind of operation, the longest first, and their shares."""
    total = sum(profile.values())
    for kind, seconds in sorted(profile.items(), key=lambda item: -item[1]):
        yield f"    {kind:<24} {1e3 * seconds:9.1f} ms {seconds / total:6.1%}"


def arguments() -> argparse.Namespace:
    """The command line.

    Raises:
        UserError: a value is impossible.
    """
    parser = Parser(__doc__)
    parser.add_argument("--sizes", default=SIZES, help="channels x blocks x batch x side, comma-separated")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each turn")
    parser.add_argument("--profile", action="store_true", help="also print where PyTorch spends its time")
    parser.add_argument("--remat", default="elementwise", help="of jvdm; none keeps what PyTorch keeps")
    parser.add_argument("--layout", default="faster", help=f"of PyTorch: {', '.join(LAYOUTS)}")
    parser.add_argument("--python", type=pathlib.Path, help="a Python with PyTorch; default build/pytorch's")
    args = parser.parse_args()
    args.sizes = sizes_of(args.sizes)
    if args.rounds < 1:
        raise UserError(f"--rounds={args.rounds}: give a number from 1")
    if not args.seconds > 0:
        raise UserError(f"--seconds={args.seconds:g}: give a number above 0")
    for flag, choices in (("remat", REMATS), ("layout", LAYOUTS)):
        if getattr(args, flag) not in choices:
            raise unknown(f"--{flag}", getattr(args, flag), choices)
    if args.python and not _has_pytorch(args.python):
        raise UserError(f"--python={args.python} cannot import torch and numpy")
    return args


def main() -> None:
    args = arguments()
    python = args.python or environment()
    print(f"$ python benchmarks/against_pytorch.py {' '.join(sys.argv[1:])}")
    try:
        versions, apart = check_same(python, args)
        print(
            f"{versions}, {os.cpu_count()} cores, {args.rounds} rounds of {args.seconds:g} s each, "
            f"remat {args.remat}"
        )
        print("apart: " + ", ".join(f"{name} {value:.1e}" for name, value in apart.items()))
        print(aligned(*COLUMNS))
        for size in args.sizes:
            for text in measure(python, size, args):
                print(text, flush=True)
    except EOFError as error:
        raise UserError(str(error)) from error


if __name__ == "__main__":
    run(main)
