"""What one accelerator does with jvdm, in a given time: a self-test, speed, and a short training.

    python benchmarks/accelerator.py --data=FILE.npz --minutes=9 --out=DIR

FILE.npz has uint8 arrays `train_images` and `test_images`, [N, H, W, C]. The report is printed as it is
measured, and is DIR/accelerator.txt; nothing else is left behind. Its sections:

    device                what was measured, and with which versions
    numerics              layers and likelihoods against float64, with verdicts (`numerics.py`)
    training steps        compile time, step time and FLOP/s, by width, dtype and rematerialisation
    ODE likelihood ...    its cost in forward passes of the network, and the speed of samples
    training              bits/dim of test images after the minutes that remain

The first device of JAX is used. Each section has a share of the minutes. A measurement that would exceed it
is skipped, with a line that says so; the first row of training steps and a short training always
run. On a CPU all sizes are tiny, and the figures mean nothing.
"""

import time

_START = time.monotonic()  # before the imports, which take seconds

import importlib.metadata
import math
import os
import pathlib
import platform
import signal
import subprocess
import sys
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "benchmarks"))

import jax
import numerics
from accelerator_speed import FULL, TINY, Sizes, likelihood_section, steps_section
from accelerator_training import training_section
from chips import chip_of_device
from script import Parser, run
from timed_report import Budget, Report

from jvdm import data
from jvdm.core import host_memory
from jvdm.core.errors import UserError, one_line
from jvdm.training.memory import device_memory

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "diffrax", "numpy")
# By which part of the minutes a section must be over.
NUMERICS, STEPS, LIKELIHOOD = 0.35, 0.5, 0.65
SHORTEST = 1.0  # minute: compiling alone takes about as long


def minutes_of(text: str) -> float:
    """The value of --minutes.

    Raises:
        UserError: it is no number of minutes, or too few.
    """
    try:
        minutes = float(text)
    except ValueError:
        minutes = math.nan
    if not SHORTEST <= minutes < math.inf:
        raise UserError(f"--minutes={text}: give a number of minutes, {SHORTEST:g} or more")
    return minutes


def first_device() -> Any:
    """JAX's first device; the CPU, on which references are computed, is available beside it.

    Raises:
        UserError: there is none.
    """
    config: Any = jax.config
    platforms = config.jax_platforms
    if platforms and "cpu" not in platforms.split(","):
        jax.config.update("jax_platforms", f"{platforms},cpu")
    try:
        return jax.devices()[0]
    except RuntimeError as error:
        raise UserError(f"JAX finds no device: {one_line(error, limit=300)}") from error


def said_by(*command: str) -> str:
    """The first line that a program prints; "-" where it is not there or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return "-"
    return done.stdout.strip().partition("\n")[0] if done.returncode == 0 and done.stdout.strip() else "-"


def version_of(package: str) -> str:
    """Of an installed package; "-" where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "-"


def device_section(report: Report, device: Any, minutes: float) -> None:
    """What is measured, and with what."""
    report.section("device")
    chip = chip_of_device(device.device_kind)
    peaks = "datasheet not known, no peaks"
    if chip:
        peaks = ", ".join(f"{name} {peak / 1e12:.0f} TFLOP/s" for name, peak in chip.peak.items())
    commit = said_by("git", "-C", str(ROOT), "rev-parse", "HEAD")
    changed = said_by("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no")
    driver = "-"
    if device.platform in ("gpu", "cuda"):
        driver = said_by("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    report.fields(
        command=" ".join(["python", "benchmarks/accelerator.py", *sys.argv[1:]]),
        commit=commit + (" with changes" if changed != "-" else ""),
        date=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        device=f"{device.device_kind} ({device.platform}), the first of {jax.device_count()}",
        peaks=peaks,
        memory=f"{device_memory() / 1e9:.1f} GB that a program may use",
        driver=driver,
        runtime=one_line(device.client.platform_version, limit=100),
        host=f"{os.cpu_count()} cores, Python {platform.python_version()}",
        versions=", ".join(f"{name} {version_of(name)}" for name in PACKAGES),
        minutes=f"{minutes:g}",
    )


def numerics_section(report: Report, budget: Budget) -> None:
    """One line for every check, with its verdict."""
    report.section("numerics")
    report.line("relative errors at the precision of evaluation, against float64")
    good, done, slowest_s = 0, 0, 0.0
    for check in numerics.CHECKS:
        if done and not budget.fits(slowest_s, NUMERICS):
            report.line(f"{check.name:28} skipped: about {slowest_s:.0f} s")
            continue
        begun = time.monotonic()
        try:
            error = check.error()
            verdict = "ok" if error <= check.limit else "NOT ok"  # nan is not ok
            text = f"{error:.1e}  limit {check.limit:.0e}  {verdict}"
        except jax.errors.JaxRuntimeError as failure:
            verdict, text = "NOT ok", f"NOT ok: {one_line(failure, limit=150)}"
        good, done = good + (verdict == "ok"), done + 1
        slowest_s = max(slowest_s, time.monotonic() - begun)
        report.line(f"{check.name:28} {text}")
    report.line(f"{good} of {len(numerics.CHECKS)} ok")


def write(report: Report, budget: Budget, sizes: Sizes, device: Any, npz: pathlib.Path) -> None:
    """All sections, the most valuable first."""
    with budget.enforced(report) as folder:
        device_section(report, device, budget.total_s / 60.0)
        numerics_section(report, budget)
        first = steps_section(report, budget, sizes, STEPS)
        evaluation = likelihood_section(report, budget, sizes, LIKELIHOOD, first)
        training_section(report, budget, sizes, npz, folder, first, evaluation)
        report.line()
        report.line(f"done after {budget.elapsed_s:.0f} of {budget.total_s:.0f} s")


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--data", required=True, help="an .npz with train_images and test_images")
    parser.add_argument("--minutes", default="9", help="that the report may take; default 9")
    parser.add_argument("--out", required=True, help="a folder for accelerator.txt")
    args = parser.parse_args()
    host_memory.keep()
    minutes = minutes_of(args.minutes)
    npz = pathlib.Path(args.data).expanduser().resolve()
    data.load(f"npz:{npz}", num_levels=0)  # refuses what cannot be trained on
    device = first_device()
    report = Report(pathlib.Path(args.out).expanduser() / "accelerator.txt")
    # What was asked to stop removes its temporary files.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sizes = TINY if device.platform == "cpu" else FULL
    write(report, Budget(minutes, _START), sizes, device, npz)


if __name__ == "__main__":
    run(main)
