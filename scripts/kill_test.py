"""Kills training, evaluation and scoring again and again, and compares with runs that nobody killed.

    python scripts/kill_test.py [--kills=20] [--seed=0] [--folder=DIR] [--what=train,compare,eval,score]

A small network is trained on the digits by main.py, and ended with SIGKILL: while a checkpoint is being
written in more than half of the kills, at any moment otherwise, its start included. The same command is given
again until the run is done. What it leaves must be bitwise what a run without kills leaves: parameters, their
averages, the optimizer's state, samples, and, but for the time, every line of metrics.jsonl. Evaluation and
scoring are killed after a random number of chunks, a quarter of --kills each; records and CSV must be equal.

Prints one line per kill and a verdict; the exit status is 0 if there is no difference.
"""

import argparse
import contextlib
import importlib.metadata
import json
import os
import pathlib
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable

import numpy as np

ROOT = pathlib.Path(__file__).absolute().parent.parent
STEPS, IMAGES, CHUNK = 200, 96, 8
CHUNKS = 2 * IMAGES // CHUNK  # of both estimators
FIELDS = (
    "network.channels=8",
    "network.num_blocks=1",
    "training.batch_size=16",
    f"training.num_steps={STEPS}",
    "training.steps_per_dispatch=1",
    "training.log_every=10",
    "training.checkpoint_every=10",
    "training.eval_every=20",
    "training.eval_images=32",
    "training.eval_draws=1",
    "training.sample_every=50",
    "training.sample_images=4",
    "training.sample_steps=4",
    f"eval.batch_size={CHUNK}",
    f"eval.num_images={IMAGES}",
    "eval.draws=4",
    f"eval.ode.batch_size={CHUNK}",
    "eval.ode.solver.tolerance=1e-3",
    "eval.ode.check_images=4",
    f"score.num_images={IMAGES}",
    "sample.num_images=16",
    "sample.batch_size=8",
    "sample.steps=10",
)


class Runs:
    """Processes of main.py that share a compilation cache.

    Args:
        folder: for the cache and the logs.
    """

    def __init__(self, folder: pathlib.Path):
        self.log = folder / "log.txt"
        self._environment = {
            **os.environ,
            "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }

    def start(self, mode: str, workdir: pathlib.Path) -> subprocess.Popen:
        """The command, at work."""
        fields = [f"--config.{field}" for field in FIELDS]
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [
                    sys.executable,
                    "main.py",
                    f"--mode={mode}",
                    "--config=configs/digits.py",
                    f"--workdir={workdir}",
                    *fields,
                ],
                cwd=ROOT,
                env=self._environment,
                stdout=log,
                stderr=log,
            )

    def finish(self, mode: str, workdir: pathlib.Path) -> None:
        """The command, to its end."""
        self.expect_success(self.start(mode, workdir))

    def expect_success(self, process: subprocess.Popen) -> None:
        """Waits for the end, which must be that of a complete run."""
        if process.wait() != 0:
            last = self.log.read_text().splitlines()[-1:]
            sys.exit(f"FAILED: a command ended by itself with status {process.returncode}: {last}")


def half_written(workdir: pathlib.Path, since: float) -> list[str]:
    """Names of the checkpoints that are no whole ones, and were worked on after a time."""
    found = []
    with contextlib.suppress(FileNotFoundError):  # the folder, or one that became whole in between
        for entry in os.scandir(workdir / "checkpoints"):
            if not entry.name.isdigit() and entry.stat().st_mtime >= since:
                found.append(entry.name)
    return sorted(found)


def whole(workdir: pathlib.Path) -> list[int]:
    """Steps of the checkpoints."""
    folder = workdir / "checkpoints"
    return sorted(int(n) for n in os.listdir(folder) if n.isdigit()) if folder.is_dir() else []


def logged(workdir: pathlib.Path, since: float = 0.0) -> int:
    """The step of the last line of metrics; 0 where none was written after a time."""
    path = workdir / "metrics.jsonl"
    try:
        if path.stat().st_mtime < since:
            return 0
        lines = path.read_bytes().split(b"\n")[:-1]
    except OSError:
        return 0
    return json.loads(lines[-1])["step"] if lines else 0


def kill(process: subprocess.Popen, ready: Callable[[], bool], delay_s: float) -> bool:
    """Kill a process some time after a condition holds; False where it ended before."""
    while not ready():
        if process.poll() is not None:
            return False
        time.sleep(0.001)
    end = time.monotonic() + delay_s
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, 0.001))
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def kill_training(runs: Runs, workdir: pathlib.Path, kills: int, rng: random.Random) -> tuple[int, int]:
    """Train through kills.

    Returns:
        How many there were, and how many of them left a checkpoint half written.
    """
    done = caught = 0
    for i in range(kills):
        since = time.time()
        # The metrics must have come so far; later kills lie further on.
        target = (i * (STEPS - 30)) // kills
        kind = "start" if i % 7 == 3 else "anywhere" if i % 7 == 5 else "checkpoint"
        process = runs.start("train", workdir)
        if kind == "start":
            hit = kill(process, lambda: True, rng.uniform(0.0, 6.0))
        elif kind == "anywhere":
            least = max([target, *whole(workdir)]) + 10

            def ready(since=since, least=least) -> bool:
                return logged(workdir, since) >= least

            hit = kill(process, ready, rng.uniform(0.0, 0.3))
        else:

            def ready(since=since, target=target) -> bool:
                # Those that a start removes are worked on, too; there are no new metrics yet.
                return logged(workdir, since) >= max(target, 1) and bool(half_written(workdir, since))

            hit = kill(process, ready, rng.uniform(0.0, 0.04))
        if not hit:
            runs.expect_success(process)
            print(f"train: the run ended before kill {i + 1}", flush=True)
            break
        done += 1
        left = half_written(workdir, since)
        caught += bool(left)
        state = f"{', '.join(left)} half written" if left else "no checkpoint half written"
        steps = whole(workdir)
        print(
            f"train kill {done:2}: aimed at {kind:10}  metrics to step {logged(workdir):3}  {state}; "
            f"whole: {steps[-1] if steps else 'none'}",
            flush=True,
        )
    runs.finish("train", workdir)
    return done, caught


def chunks(folder: pathlib.Path) -> int:
    """How many chunks of both estimators are done."""
    return sum(not path.name.startswith(".") for path in folder.glob("*.partial/*.npz"))


def kill_pass(runs: Runs, mode: str, workdir: pathlib.Path, kills: int, rng: random.Random) -> int:
    """Evaluate or score through kills; returns how many there were."""
    folder = workdir / {"eval": "eval", "score": "scores"}[mode]
    done = 0
    for i, target in enumerate(sorted(rng.sample(range(1, CHUNKS), kills))):
        least = max(target, chunks(folder) + 1)
        process = runs.start(mode, workdir)
        if not kill(process, lambda least=least: chunks(folder) >= least, rng.uniform(0.0, 0.05)):
            runs.expect_success(process)
            print(f"{mode}: the pass ended before kill {i + 1}", flush=True)
            break
        done += 1
        print(f"{mode} kill {done}: after {chunks(folder)} of {CHUNKS} chunks", flush=True)
    runs.finish(mode, workdir)
    return done


def arrays(checkpoint: pathlib.Path) -> dict[str, np.ndarray]:
    """Every leaf by its name."""
    import jax
    import orbax.checkpoint as ocp

    with ocp.PyTreeCheckpointer() as checkpointer, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of how the checkpoint was laid out over devices
        tree = checkpointer.restore(checkpoint / "state")
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        found[jax.tree_util.keystr(path, simple=True, separator="/")] = np.asarray(leaf)
    return found


def metrics(workdir: pathlib.Path) -> list[dict]:
    """The lines without their time."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "time"} for line in lines]


def compare_training(whole_run: pathlib.Path, killed: pathlib.Path) -> list[str]:
    """What differs between two runs."""
    different = []
    a, b = (arrays(workdir / "checkpoints" / str(STEPS)) for workdir in (whole_run, killed))
    for part in ("params", "ema_params", "opt_state", "step"):
        names = sorted(n for n in a.keys() | b.keys() if n.split("/")[0] == part)
        bad = [n for n in names if n not in a or n not in b or a[n].tobytes() != b[n].tobytes()]
        print(f"{part}: {len(names) - len(bad)} of {len(names)} arrays bitwise equal")
        different += bad if names else [f"no {part}"]
    a, b = metrics(whole_run), metrics(killed)
    same = sum(x == y for x, y in zip(a, b, strict=False))
    print(f"metrics.jsonl: {same} of {len(a)} lines equal, {len(b)} after kills")
    if a != b:
        different.append("metrics.jsonl")
    names = [p.name for p in sorted((whole_run / "samples").glob("samples_*.npz"))]
    for name in names:
        with np.load(whole_run / "samples" / name) as x, np.load(killed / "samples" / name) as y:
            equal = x.files == y.files and all(x[n].tobytes() == y[n].tobytes() for n in x.files)
        print(f"{name}: {'bitwise equal' if equal else 'DIFFERENT'}")
        different += [] if equal else [name]
    return different if names else [*different, "no samples"]


def record(path: pathlib.Path) -> dict:
    """A record without the place of the weights."""
    found = json.loads(path.read_text())
    del found["provenance"]["checkpoint"]
    return found


def compare_records(whole_run: pathlib.Path, killed: pathlib.Path, folder: str) -> list[str]:
    """Which records and tables differ."""
    different = []
    paths = sorted(p for p in (whole_run / folder).iterdir() if p.suffix in (".json", ".csv"))
    for path in paths:
        other = killed / folder / path.name
        read = record if path.suffix == ".json" else pathlib.Path.read_bytes
        equal = other.is_file() and read(path) == read(other)
        print(f"{folder}/{path.name}: {'equal' if equal else 'DIFFERENT'}")
        different += [] if equal else [path.name]
    return different if paths else [f"nothing in {folder}"]


def leftovers(workdir: pathlib.Path) -> list[str]:
    """Unfinished checkpoints and passes that nobody has removed."""
    folders = [*(p for p in workdir.glob("checkpoints/*") if not p.name.isdigit())]
    folders += workdir.glob("*/*.partial")
    return sorted(str(p.relative_to(workdir)) for p in folders)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20, help="of training; a quarter as many of the others")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument(
        "--folder", type=pathlib.Path, help="to keep everything in; a temporary one by default"
    )
    parser.add_argument("--what", default="train,compare,eval,score", help="which parts to do, in --folder")
    args = parser.parse_args()
    what = args.what.split(",")
    folder = args.folder or pathlib.Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    runs, rng = Runs(folder), random.Random(args.seed)
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in ("jax", "flax", "orbax-checkpoint"))
    print(f"$ python scripts/kill_test.py --kills={args.kills} --seed={args.seed} --what={args.what}")
    print(f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} CPU cores, {platform.system()}")
    print(f"Python {platform.python_version()}, {versions}", flush=True)
    start = time.monotonic()
    undisturbed, killed = folder / "undisturbed", folder / "killed"
    if (undisturbed / "complete").exists():
        print("the run without kills is that of an earlier test in --folder", flush=True)
    else:
        shutil.rmtree(undisturbed, ignore_errors=True)
        for mode in ("train", "sample", "eval", "score"):
            runs.finish(mode, undisturbed)
        (undisturbed / "complete").touch()
    different = []
    if "train" in what:
        shutil.rmtree(killed, ignore_errors=True)
        done, caught = kill_training(runs, killed, args.kills, rng)
        print(f"{done} kills of training, {caught} of them with a checkpoint half written", flush=True)
        different += [] if done == args.kills and 2 * caught >= done else ["too few kills"]
    if "compare" in what:
        runs.finish("sample", killed)
        different += compare_training(undisturbed, killed)
    for mode, name in (("eval", "eval"), ("score", "scores")):
        if mode in what:
            number = max(1, args.kills // 4)
            if kill_pass(runs, mode, killed, number, rng) != number:
                different.append(f"too few kills of {mode}")
            different += compare_records(undisturbed, killed, name)
    left = leftovers(killed)
    print(f"left behind: {', '.join(left) or 'nothing'}")
    different += left
    print(f"took {time.monotonic() - start:.0f} s")
    if not args.folder:
        shutil.rmtree(folder)
    if different:
        sys.exit(f"FAILED: {', '.join(different)}")
    print("PASSED: no difference")


if __name__ == "__main__":
    main()
