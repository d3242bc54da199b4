"""A long training on the digits: memory, open files and speed every 1000 steps.

    python scripts/long_run.py [--steps=20000]

main.py trains a tiny network, evaluates and saves every 1000 steps, and samples every 5000. Its resident
memory and its open file handles are read from /proc after each line of metrics. The verdict compares the
largest of the last quarter with the largest of the second, when everything is compiled: at most 5 % more
memory, and no more handles. The speed is printed and not judged: other work on the machine changes it.
"""

import argparse
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).absolute().parent.parent
EVERY = 1000
GROWTH = 0.05


def fields(steps: int) -> list[str]:
    """Overrides of configs/digits.py."""
    return [
        "--config." + field
        for field in (
            "network.channels=4",
            "network.num_blocks=1",
            "training.batch_size=16",
            "training.steps_per_dispatch=10",
            f"training.num_steps={steps}",
            f"training.log_every={EVERY}",
            f"training.eval_every={EVERY}",
            f"training.checkpoint_every={EVERY}",
            f"training.sample_every={5 * EVERY}",
            "training.eval_images=64",
            "training.eval_draws=1",
            "training.sample_images=16",
            "training.sample_steps=10",
            "eval.batch_size=64",
        )
    ]


def lines(path: pathlib.Path) -> list[tuple[int, float]]:
    """(step, time) of the means of training."""
    if not path.is_file():
        return []
    found = [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
    return [(line["step"], line["time"]) for line in found if "train/bpd" in line]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=20_000, help="a multiple of 1000")
    steps = parser.parse_args().steps
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in ("jax", "flax", "orbax-checkpoint"))
    print(f"$ python scripts/long_run.py --steps={steps}")
    print(f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} CPU cores, {platform.system()}")
    print(f"Python {platform.python_version()}, {versions}")
    print("  step  memory, MB  open files  steps/s", flush=True)
    rows: list[tuple[float, int]] = []
    with tempfile.TemporaryDirectory() as folder:
        log = pathlib.Path(folder) / "log.txt"
        workdir = pathlib.Path(folder) / "run"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [
                    sys.executable,
                    "main.py",
                    "--mode=train",
                    "--config=configs/digits.py",
                    f"--workdir={workdir}",
                    *fields(steps),
                ],
                cwd=ROOT,
                stdout=file,
                stderr=file,
            )
            seen = lines(workdir / "metrics.jsonl")
            proc = pathlib.Path(f"/proc/{process.pid}")
            while process.poll() is None:
                time.sleep(0.02)
                if len(new := lines(workdir / "metrics.jsonl")) == len(seen):
                    continue
                try:
                    pages, handles = (
                        int((proc / "statm").read_text().split()[1]),
                        len(os.listdir(proc / "fd")),
                    )
                except (OSError, IndexError):  # it has ended
                    continue
                seen = new
                memory = pages * os.sysconf("SC_PAGE_SIZE") / 1e6
                rows.append((memory, handles))
                speed = EVERY / (seen[-1][1] - seen[-2][1]) if len(seen) > 1 else float("nan")
                print(f"{seen[-1][0]:6}  {memory:10.1f}  {handles:10}  {speed:7.1f}", flush=True)
        if process.returncode:
            sys.exit(f"FAILED: status {process.returncode}: {log.read_text().splitlines()[-1:]}")
    if len(rows) < 4:
        sys.exit("FAILED: too few lines; give more --steps")
    quarter = len(rows) // 4
    early, late = rows[quarter : 2 * quarter], rows[-quarter:]
    growth = max(memory for memory, _ in late) / max(memory for memory, _ in early) - 1.0
    more = max(handles for _, handles in late) - max(handles for _, handles in early)
    print(f"last quarter against the second: memory {growth:+.1%}, open files {more:+}")
    if growth > GROWTH or more > 0:
        sys.exit("FAILED")
    print("PASSED")


if __name__ == "__main__":
    main()
