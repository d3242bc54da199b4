"""Signals through main.py: every mode saves, says so in one line, exits as if killed, and goes on later."""

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


LOOP = """
import signal, sys, time
from jvdm.core import preemption
# Tests that run in the background have it ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
preemption.GRACE_S = 5.0
preemption.install()
if "idle" in sys.argv:
    try:
        print("ready", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        print("KeyboardInterrupt", flush=True)
        sys.exit(130)
with preemption.working():
    print("ready", flush=True)
    while True:
        time.sleep(60 if "busy" in sys.argv else 0.01)
        try:
            preemption.check()
        except preemption.Preempted:
            print(f"saved after {preemption.cause()}", flush=True)
            sys.exit(preemption.status())
"""


def signalled(*numbers, wait=0.0, kind="loop", **options):
    """Exit status, standard output and error of a process that gets these signals in turn."""
    process = subprocess.Popen(
        [sys.executable, "-c", LOOP, kind],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    start = time.monotonic()
    for number in numbers:
        process.send_signal(number)
        time.sleep(wait)
    out, err = process.communicate(timeout=60)
    return process.returncode, out.splitlines(), err.splitlines(), time.monotonic() - start


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (signal.SIGTERM, "SIGTERM"),
        (signal.SIGINT, "Ctrl-C"),
        (signal.SIGHUP, "SIGHUP"),
        (signal.SIGUSR1, "SIGUSR1"),
    ],
)
def test_every_signal_is_a_request(number, name):
    status, out, err, _ = signalled(number)
    assert (status, out) == (128 + number, [f"saved after {name}"])
    asked = ["jvdm: stopping after this piece of work; Ctrl-C again ends at once"]
    assert err == (asked if number == signal.SIGINT else [])


def test_a_second_ctrl_c_ends_at_once():
    status, out, err, seconds = signalled(signal.SIGINT, signal.SIGINT, wait=0.5, kind="busy")
    assert (status, out) == (130, [])
    assert err[-1] == "jvdm: interrupted again; what was saved is whole"
    assert seconds < 3.0


def test_the_first_ctrl_c_after_another_signal_lets_it_save():
    status, out, _, _ = signalled(signal.SIGHUP, signal.SIGINT)
    assert (status, out) == (129, ["saved after SIGHUP"])


def test_ctrl_c_where_there_is_nothing_to_save():
    status, out, _, seconds = signalled(signal.SIGINT, kind="idle")
    assert (status, out) == (130, ["KeyboardInterrupt"])
    assert seconds < 3.0


def test_a_signal_that_the_process_was_started_without_is_left_alone():
    """As `nohup` starts it."""
    ignore = "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); "
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            ignore + "os.execv(sys.executable, [sys.executable, '-c', sys.argv[1]])",
            LOOP,
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert process.poll() is None
    process.terminate()
    assert process.communicate(timeout=60)[0] == "saved after SIGTERM\n"


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
