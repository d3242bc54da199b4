"""Two processes on this machine, joined by jax.distributed: the numbers of one, and each file written once.

They train, score and sample in one workdir, as processes of two hosts do that share a file system.
"""

import csv
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import quick

from jvdm.reporting.writers import read_metrics

ROOT = pathlib.Path(__file__).parent.parent
TINY = [
    "--config." + field
    for field in (
        "network.channels=8",
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


def start(mode, workdir, *arguments, num_steps=4):
    """One process of main.py on one device."""
    command = [sys.executable, "main.py", f"--mode={mode}", "--config=configs/digits.py", *TINY]
    return subprocess.Popen(
        [*command, f"--workdir={workdir}", f"--config.training.num_steps={num_steps}", *arguments],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": quick.FLAGS},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_two(mode, workdir, *arguments, **steps):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    together = ["--distributed=on", f"--coordinator=localhost:{port}", "--num_processes=2"]
    return [start(mode, workdir, *together, f"--process_id={i}", *arguments, **steps) for i in range(2)]


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
    import jax
    import tiny

    from jvdm.training import checkpoints
    from jvdm.training.step import init_state

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
    return checkpoints.restore(workdir / "checkpoints" / str(step), like)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Workdirs of one process and of two after four steps, and what the two printed."""
    folder = tmp_path_factory.mktemp("processes")
    one = start("train", folder / "one")
    outputs = finish(*start_two("train", folder / "two"))
    finish(one)
    return folder, outputs


def test_two_train_like_one(runs):
    import tiny

    folder, outputs = runs
    # Sums in another order, and Adam's first steps divide by the gradient's size; the rate is below 1e-4.
    assert tiny.max_difference(arrays(folder / "one", 4), arrays(folder / "two", 4)) < 2e-5
    one, two = (read_metrics(folder / name / "metrics.jsonl") for name in ("one", "two"))
    assert [line["step"] for line in two] == [2, 4, 4] == [line["step"] for line in one]
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for name in a.keys() - {"time"}:
            assert b[name] == pytest.approx(a[name], rel=1e-4)
    assert len(list((folder / "two").glob("events.out.tfevents.*"))) == 1

    (out, err), (quiet_out, quiet_err) = outputs
    assert out.count(f"workdir {folder / 'two'}") == 2 and "4/4 step" in err
    assert "workdir" not in quiet_out and quiet_err.splitlines() == ["process 1 of 2"]


def test_two_score_and_sample_like_one(runs):
    """The same checkpoint, read by one process and by two."""
    folder, _ = runs
    checkpoint = f"--checkpoint={folder / 'two' / 'checkpoints' / '4'}"
    for mode in ("score", "sample"):
        one = start(mode, folder / f"{mode}_by_one", checkpoint)
        outputs = finish(*start_two(mode, folder / f"{mode}_by_two", checkpoint))
        finish(one)
        assert outputs[1][1].splitlines() == ["process 1 of 2"]
    paths = [next((folder / f"score_by_{n}" / "scores").glob("*.csv")) for n in ("one", "two")]
    tables = [list(csv.DictReader(path.read_text().splitlines())) for path in paths]
    assert [row["image"] for row in tables[1]] == [str(i) for i in range(10)]
    for a, b in zip(*tables, strict=True):
        for name in a:
            assert float(a[name]) == pytest.approx(float(b[name]), rel=1e-5, abs=2e-6)
    samples = []
    for name in ("one", "two"):
        with np.load(folder / f"sample_by_{name}" / "samples" / "samples_5x8x8x1.npz") as archive:
            samples.append(archive["arr_0"])
    # Two batches of four: rounding may turn a pixel between two levels.
    assert (samples[0] != samples[1]).mean() < 0.02
    assert not list((folder / "score_by_two" / "scores").glob("*.partial"))
    assert not [p for p in (folder / "sample_by_two").rglob("*") if ".tmp" in p.name]


def test_sigterm_to_one_stops_both(tmp_path):
    """Both save the same step and end with 143; the same command goes on."""
    processes = start_two("train", tmp_path, num_steps=100_000)
    deadline = time.monotonic() + 240
    while not (tmp_path / "checkpoints" / "2").is_dir():
        assert time.monotonic() < deadline and all(p.poll() is None for p in processes)
        time.sleep(0.1)
    processes[1].send_signal(signal.SIGTERM)
    signalled = time.monotonic()
    finish(*processes, status=143)
    assert time.monotonic() - signalled < 20
    newest = max(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    until = 2 * (newest // 2) + 2
    _, err = finish(*start_two("train", tmp_path, num_steps=until))[0]
    assert f"resuming at step {newest}" in err
    steps = [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl") if "train/bpd" in line]
    assert steps == list(range(2, until + 1, 2)), "no line is lost or doubled"
