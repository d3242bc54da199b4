"""SIGTERM through main.py: every mode saves, says so in one line, exits with 143, and goes on later."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import orbax.checkpoint as ocp
import pytest
from helpers import quick, tiny
from helpers.commands import DIGITS, ROOT, TINY, VLB

from jvdm.core import preemption
from jvdm.reporting.writers import read_metrics
from jvdm.runs.workdir import Workdir

# Pieces are small and many, so that there is a moment between two of them.
STEPS = 60
PIECES = [
    "--config." + field
    for field in (
        f"training.num_steps={STEPS}",
        "training.eval_every=20",
        "training.checkpoint_every=20",
        "eval.batch_size=1",
        "eval.num_images=250",
        "sample.num_images=250",
        "sample.batch_size=1",
        "score.num_images=250",
    )
]
PROMISED_S = 20.0
STOPPED = "jvdm: stopped by SIGTERM; the same command continues from where it stopped"


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """Starts main.py in a mode and workdir; the processes share a compilation cache."""
    environment = {
        **os.environ,
        "XLA_FLAGS": quick.FLAGS,
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("xla")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }

    def start(mode, workdir, *more):
        return subprocess.Popen(
            [
                sys.executable,
                "main.py",
                f"--mode={mode}",
                DIGITS,
                f"--workdir={workdir}",
                *TINY,
                VLB,
                *PIECES,
                *more,
            ],
            cwd=ROOT,
            env=environment,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )

    return start


def finish(process):
    """What a run that ends well printed on stderr."""
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    return stderr


def stop(process, ready):
    """Signal a process twice as soon as it has come so far; what it printed on stderr."""
    while not ready():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.001)
    process.send_signal(signal.SIGTERM)
    start = time.monotonic()
    # A scheduler that is in a hurry.
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=300)
    assert time.monotonic() - start < PROMISED_S
    assert process.returncode == 143, stderr
    assert "Traceback" not in stderr
    lines = stderr.splitlines()
    assert [line for line in lines if line.startswith("jvdm: ")] == lines[-1:] == [STOPPED]
    return stderr


@pytest.fixture(scope="module")
def trained(command, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("preemption") / "run"
    finish(command("train", workdir))
    return workdir


def arrays(workdir):
    """Of the last checkpoint, without the generator's key, which no step changes."""
    with ocp.PyTreeCheckpointer() as checkpointer:
        tree = checkpointer.restore(workdir / "checkpoints" / str(STEPS) / "state")
    return {field: tree[field] for field in ("step", "params", "ema_params", "opt_state")}


@pytest.mark.long
# Orbax tells how a checkpoint was laid out over devices, which does not matter here.
@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_training(command, trained, tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    process = command("train", tmp_path)
    stderr = stop(process, lambda: metrics.is_file() and metrics.read_bytes().count(b"\n") >= 3)
    (step,) = (p.name for p in (tmp_path / "checkpoints").iterdir())
    assert 0 < int(step) < STEPS
    assert f"stopped: step {step} is saved; the same command goes on" in stderr
    assert f"resuming at step {step}" in finish(command("train", tmp_path))
    assert tiny.max_difference(arrays(tmp_path), arrays(trained)) == 0.0
    lines, expected = (
        [{k: v for k, v in line.items() if k != "time"} for line in read_metrics(folder)]
        for folder in (tmp_path, trained)
    )
    assert lines == expected


@pytest.mark.long
@pytest.mark.parametrize(("mode", "folder"), [("eval", "eval"), ("sample", "samples"), ("score", "scores")])
def test_other_modes(command, trained, mode, folder):
    def chunks():
        return [p for p in (trained / folder).glob("*.partial/*.npz") if p.name[0] != "."]

    stop(command(mode, trained), lambda: len(chunks()) >= 2)
    done = len(chunks())
    assert 2 <= done < 250
    assert f"continuing after image {done} of 250" in finish(command(mode, trained))
    assert not list((trained / folder).glob("*.partial")), "a finished pass leaves nothing"


def test_a_piece_that_takes_too_long():
    """The main thread is in a compiled loop, where no handler of Python's runs."""
    code = (
        "import jax, jax.numpy as jnp\n"
        "from jvdm.core import preemption\n"
        "preemption.GRACE_S = 0.5\n"
        "preemption.install()\n"
        "print('ready', flush=True)\n"
        "f = jax.jit(lambda x: jax.lax.fori_loop(0, 2**31 - 1, lambda i, x: jnp.sin(x) + i, x))\n"
        "f(jnp.float32(1.0)).block_until_ready()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(1.0)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 143
    assert stderr.splitlines() == [
        "jvdm: stopped 0.5 s after SIGTERM, in the middle of its work; what was saved is whole"
    ]


def test_two_trainings_in_one_workdir(command, tmp_path):
    with Workdir(tmp_path).exclusive():
        _, stderr = (process := command("train", tmp_path)).communicate(timeout=300)
    assert process.returncode == 2
    (line,) = stderr.splitlines()
    assert line.startswith(f"jvdm: error: --workdir={tmp_path}: process {os.getpid()} on ")
    assert "trains there already" in line
    assert not (tmp_path / "checkpoints").exists()
    assert np.all([p.name.startswith(".") for p in tmp_path.iterdir()])


def test_a_deadline():
    """The request comes when the time is over, and ends with the block."""
    with preemption.deadline(0.05):
        assert not preemption.requested()
        time.sleep(0.5)
        with pytest.raises(preemption.Preempted):
            preemption.check()
    assert not preemption.requested()
    with preemption.deadline(60.0):
        pass
    assert not preemption.requested()
