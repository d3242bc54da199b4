"""Two processes on this machine, joined by jax.distributed: the numbers of one, and each file written once.

They train, score and sample in one workdir, as processes of two hosts do that share a file system.
"""

import csv
import json
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from helpers import quick, tiny

from jvdm.core import sharding
from jvdm.reporting.writers import read_metrics
from jvdm.runs import restoring
from jvdm.training.step import init_state

pytestmark = pytest.mark.processes

ROOT = pathlib.Path(__file__).parents[2]
MAIN = str(ROOT / "main.py")
TINY = [
    "--config." + field
    for field in (
        "network.channels=16",
        "network.num_blocks=1",
        "network.dropout=0.0",
        "training.batch_size=8",
        "training.steps_per_dispatch=1",
        "training.log_every=2",
        "training.eval_every=4",
        "training.eval_images=8",
        "training.checkpoint_every=2",
        "training.sample_every=0",
        "eval.estimators=vlb",
        "eval.batch_size=4",
        "eval.num_images=10",
        "eval.draws=2",
        "score.num_images=10",
        "sample.num_images=5",
        "sample.batch_size=4",
        "sample.steps=2",
    )
]


# main.py whose --mode=eval goes through several modes, so that a pair of processes is started once for all.
IN_TURN = """
import runpy
from jvdm.cli import commands
commands.MODES["eval"] = lambda request: [commands.MODES[mode](request) for mode in MODES]
commands.MODES["evaluate"] = commands.evaluate
runpy.run_path(MAIN, run_name="__main__")
"""


def in_turn(*modes):
    """The program that goes through these modes; "evaluate" is --mode=eval."""
    return ("-c", f"MODES, MAIN = {modes}, {MAIN!r}" + IN_TURN)


# main.py where a process that is gone is missed after 10 s, not the usual 100.
IMPATIENT = """
import functools, jax, runpy
jax.distributed.initialize = functools.partial(jax.distributed.initialize, heartbeat_timeout_seconds=10)
runpy.run_path(MAIN, run_name="__main__")
"""


def start(mode, workdir, *arguments, num_steps=4, program=(MAIN,), cwd=ROOT):
    """One process of main.py on one device."""
    command = [sys.executable, *program, f"--mode={mode}", f"--config={ROOT / 'configs/digits.py'}", *TINY]
    return subprocess.Popen(
        [*command, f"--workdir={workdir}", f"--config.training.num_steps={num_steps}", *arguments],
        cwd=cwd,
        env={**quick.environment(), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_two(mode, workdir, *arguments, of_each=((), ()), cwds=(ROOT, ROOT), **options):
    """Two of them, with arguments of both and of each; from other folders a relative workdir is another."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    together = ["--distributed=on", f"--coordinator=localhost:{port}", "--num_processes=2"]
    return [
        start(mode, workdir, *together, f"--process_id={i}", *arguments, *of_each[i], cwd=cwds[i], **options)
        for i in range(2)
    ]


def finish(*processes, status=0):
    """(stdout, stderr) of each."""
    try:
        outputs = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [status] * len(processes), outputs
    return outputs


def arrays(workdir, step):
    """The averaged weights."""
    c = tiny.config()
    config = json.loads((workdir / "config.json").read_text())
    with c.unlocked():
        c.network, c.schedule = config["network"], config["schedule"]
    shapes = jax.eval_shape(lambda key: init_state(tiny.model(c), c, key), jax.random.key(0))
    at = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = {
        "ema_params": jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=at), shapes.ema_params
        )
    }
    return restoring.restore(workdir / "checkpoints" / str(step), like)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Workdirs of one process and of two after four steps, and what the two printed."""
    folder = tmp_path_factory.mktemp("processes")
    finish(start("train", folder / "one"))
    outputs = finish(*start_two("train", folder / "two"))
    finish(*start_two("train", folder / "fsdp", "--config.training.fsdp=2"))
    return folder, outputs


@pytest.mark.parametrize("by_two", ["two", "fsdp"])
def test_two_train_like_one(runs, by_two):
    """Each with the whole state, or with its half of it."""
    folder, _ = runs
    expected = arrays(folder / "one", 4)
    assert sum(leaf.size >= sharding.SMALL for leaf in jax.tree.leaves(expected)) > 5, "nothing to split"
    # Sums in another order, and Adam's first steps divide by the gradient's size; the rate is below 1e-4.
    assert tiny.max_difference(expected, arrays(folder / by_two, 4)) < 2e-5
    one, two = (read_metrics(folder / name / "metrics.jsonl") for name in ("one", by_two))
    assert [line["step"] for line in two] == [2, 4, 4] == [line["step"] for line in one]
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for name in a.keys() - {"time"}:
            assert b[name] == pytest.approx(a[name], rel=1e-4)
    assert len(list((folder / by_two).glob("events.out.tfevents.*"))) == 1


def test_the_first_of_two_speaks(runs):
    folder, ((out, err), (quiet_out, quiet_err)) = runs
    assert out.count(f"workdir {folder / 'two'}") == 2 and "4/4 step" in err
    assert "workdir" not in quiet_out and quiet_err.splitlines() == ["process 1 of 2"]


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def used(runs):
    """Workdirs of evaluation, scores and samples of one checkpoint: by one, the first of two, the second."""
    folder, _ = runs
    arguments = f"--checkpoint={folder / 'two' / 'checkpoints' / '4'}"
    one, *two = workdirs = [folder / f"used_by_{name}" for name in ("one", "first", "second")]
    program = in_turn("evaluate", "score", "sample")
    finish(start("eval", one, arguments, program=program))
    for path in two:
        path.mkdir()
    outputs = finish(*start_two("eval", ".", arguments, program=program, cwds=two))
    assert outputs[1][1].splitlines() == ["process 1 of 2"]
    return workdirs


def test_the_first_of_two_writes(used):
    """The files of one process, each by the first alone; nothing unfinished is left."""
    one, first, second = used
    assert files(first) == files(one)
    assert {"eval", "scores", "samples"} <= {name.partition("/")[0] for name in files(first)}
    assert not any(".tmp" in name or ".partial" in name for name in files(first))
    assert files(second) == set()


def test_two_evaluate_like_one(used):
    records = [json.loads(next((path / "eval").glob("*.json")).read_text()) for path in used[:2]]
    assert [record["num_images"] for record in records] == [10, 10]
    assert [record["provenance"]["num_devices"] for record in records] == [1, 2]
    for name in ("value", "standard_error", "monte_carlo_error"):
        # Matrix products of another height round differently (float32).
        assert records[1][name] == pytest.approx(records[0][name], rel=1e-5)
    for name, term in records[0]["terms"].items():
        assert records[1]["terms"][name]["mean"] == pytest.approx(term["mean"], rel=1e-5, abs=1e-7)


def test_two_score_like_one(used):
    paths = [next((path / "scores").glob("*.csv")) for path in used[:2]]
    tables = [list(csv.DictReader(path.read_text().splitlines())) for path in paths]
    assert [row["image"] for row in tables[1]] == [str(i) for i in range(10)]
    for a, b in zip(*tables, strict=True):
        for name in a:
            # Six decimals each.
            assert float(a[name]) == pytest.approx(float(b[name]), rel=1e-5, abs=2e-6)


def test_two_sample_like_one(used):
    samples = []
    for path in used[:2]:
        with np.load(next((path / "samples").glob("samples_5x8x8x1_*.npz"))) as archive:
            samples.append(archive["arr_0"])
    # Two batches of four: rounding may turn a pixel between two levels.
    assert (samples[0] != samples[1]).mean() < 0.02


def test_damage(runs, tmp_path):
    """What the second wrote of the newest checkpoint is damaged: both take the one before, in either mode.

    The first need not read it, since the state is split over both; but it must not go on from another step.
    """
    folder, _ = runs
    shutil.copytree(folder / "fsdp", tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "4"
    for file in (newest / "state" / "ocdbt.process_1" / "d").iterdir():
        data = bytearray(file.read_bytes())
        for place in range(0, len(data), 500):
            data[place] ^= 4
        file.write_bytes(data)
    program = in_turn("sample", "train")
    two = start_two("eval", tmp_path / "run", "--config.training.fsdp=2", program=program)
    (_, err), _ = finish(*two)
    assert "taking the checkpoint of step 2" in err
    assert "going on from the checkpoint of step 2" in err
    assert len(list((tmp_path / "run" / "damaged_checkpoints").iterdir())) == 1
    resumed, straight = arrays(tmp_path / "run", 4), arrays(folder / "fsdp", 4)
    assert tiny.max_difference(resumed, straight) == 0.0


@pytest.mark.parametrize("failing", [0, 1])
def test_one_that_fails_ends_the_other(tmp_path, failing):
    """A mistake that one process alone finds, such as a file that its host lacks."""
    cwds = [tmp_path / "0", tmp_path / "1"]
    for i, cwd in enumerate(cwds):
        cwd.mkdir()
        if i != failing:
            np.savez(cwd / "data", train_images=tiny.images(16), test_images=tiny.images(8))
    source = ("--config.data.source=npz:data.npz", "--config.data.num_levels=17")
    program = ("-c", f"MAIN = {MAIN!r}" + IMPATIENT)
    processes = start_two("train", tmp_path / "run", *source, cwds=cwds, program=program)
    try:
        _, err = processes[failing].communicate(timeout=120)
        failed = time.monotonic()
        processes[1 - failing].communicate(timeout=60)
    finally:
        for process in processes:
            process.kill()
    assert processes[failing].returncode == 2
    errors = [line for line in err.splitlines() if not line.startswith("process ")]
    assert len(errors) == 1 and errors[0].startswith(f"jvdm: error: process {failing}: no file"), err
    assert processes[1 - failing].returncode not in (0, -signal.SIGKILL)
    assert time.monotonic() - failed < 30
    assert not list((tmp_path / "run").glob("checkpoints/*"))


@pytest.mark.parametrize(
    ("flag", "name"),
    [("--config.seed=1", "config.seed is 0 in process 0 and 1"), ("--workdir=other", "--workdir is ")],
)
def test_what_is_not_given_to_both(tmp_path, flag, name):
    """A seed or a folder of one alone would be a number of neither, or wait for ever."""
    for _, err in finish(*start_two("train", tmp_path, of_each=((), (flag,))), status=2):
        line = err.splitlines()[-1]
        assert "the processes were given different things: " + name in line
        assert line.endswith("in process 1; give all the same")
    assert not list(tmp_path.iterdir())


def stop_by_one(processes, ready):
    """SIGTERM to the second as soon as they have come so far; both end in time, with 143."""
    deadline = time.monotonic() + 240
    while not ready():
        assert time.monotonic() < deadline and all(p.poll() is None for p in processes)
        time.sleep(0.001)
    processes[1].send_signal(signal.SIGTERM)
    signalled = time.monotonic()
    finish(*processes, status=143)
    assert time.monotonic() - signalled < 20


def test_sigterm_to_one_stops_both(tmp_path):
    """Both save the same step and end with 143; the same command goes on."""
    processes = start_two("train", tmp_path, num_steps=100_000)
    stop_by_one(processes, (tmp_path / "checkpoints" / "2").is_dir)
    newest = max(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    until = 2 * (newest // 2) + 2
    _, err = finish(*start_two("train", tmp_path, num_steps=until))[0]
    assert f"resuming at step {newest}" in err
    steps = [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl") if "train/bpd" in line]
    assert steps == list(range(2, until + 1, 2)), "no line is lost or doubled"


def test_sigterm_to_one_stops_passes_of_both(runs, tmp_path):
    """Evaluation and sampling end with 143; the same commands go on after what is kept."""
    checkpoint = f"--checkpoint={runs[0] / 'two' / 'checkpoints' / '4'}"
    many = [f"--config.{name}=200" for name in ("eval.num_images", "sample.num_images")]
    more = (checkpoint, *many, "--config.eval.batch_size=2", "--config.sample.batch_size=2")
    done = {}
    for mode, folder in (("eval", "eval"), ("sample", "samples")):

        def chunks(folder=folder):
            return [p for p in (tmp_path / folder).glob("*.partial/*.npz") if p.name[0] != "."]

        stop_by_one(start_two(mode, tmp_path, *more), lambda chunks=chunks: len(chunks()) >= 2)
        done[folder] = 2 * len(chunks())
        assert 4 <= done[folder] < 200
    (_, err), _ = finish(*start_two("eval", tmp_path, *more, program=in_turn("evaluate", "sample")))
    continued = [line for line in err.splitlines() if "continuing after image" in line]
    for line, images in zip(continued, done.values(), strict=True):
        assert f"continuing after image {images} of 200" in line
    for folder in done:
        assert not list((tmp_path / folder).glob("*.partial"))
        assert any("200" in path.name for path in (tmp_path / folder).iterdir())
