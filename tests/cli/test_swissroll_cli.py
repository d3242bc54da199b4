"""A score-based model from the command line, and from parts: training, evaluation, scoring, samples."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from helpers import forked

pytestmark = pytest.mark.long

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIG = "--config=configs/swissroll.py:debiased"
SMALL = [
    "--config.network.hidden=32",
    "--config.network.num_layers=2",
    "--config.training.batch_size=256",
    "--config.optimizer.ema_rate=0.9",
    "--config.training.num_steps=400",
    "--config.training.eval_every=200",
    "--config.training.eval_images=500",
    "--config.training.checkpoint_every=200",
    "--config.training.sample_every=400",
    "--config.training.sample_images=50",
    "--config.training.sample_steps=20",
    "--config.eval.num_images=200",
    "--config.eval.batch_size=100",
    "--config.eval.draws=16",
    "--config.eval.ode.batch_size=100",
    "--config.eval.ode.solver.tolerance=1e-3",
    "--config.eval.ode.check_images=4",
    "--config.sample.num_images=100",
    "--config.sample.steps=20",
]


def run(*arguments):
    done = forked.run(*arguments)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("roll")
    run("--mode=train", CONFIG, *SMALL, f"--workdir={workdir}")
    return workdir


def test_training_records_the_objective_and_nats(trained):
    records = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    losses = [r["train/score_matching"] for r in records if "train/score_matching" in r]
    nats = [r["test/nats"] for r in records if "test/nats" in r]
    assert losses[-1] < losses[0] and len(nats) == 2 and np.isfinite(nats).all()
    assert not any("bpd" in name or "gamma_0" in name for r in records for name in r)
    assert (trained / "plots/training.png").exists() and (trained / "plots/schedule.png").exists()
    assert (trained / "samples/step_00000400.png").exists()


@pytest.mark.long
def test_evaluation_in_nats(trained):
    done = run("--mode=eval", CONFIG, *SMALL, f"--workdir={trained}")
    assert "true density" in done.stdout and "bits/dim" not in done.stdout
    assert len(list((trained / "plots").glob("density_ode_*.png"))) == 1
    results = [json.loads(path.read_text()) for path in (trained / "eval").glob("*.json")]
    assert {r["estimator"] for r in results} == {"ode", "elbo", "scoreflow"}
    for r in results:
        assert r["units"] == "nats" and r["is_bound"] and r["provenance"]["num_levels"] == 0
        total = sum(term["mean"] for term in r["terms"].values())
        assert total == pytest.approx(r["value"], abs=1e-5)
        # The truth is 1.28; the prior, a normal of deviation 1, has 2.3.
        assert 1.2 - 4 * r["standard_error"] < r["value"] < 3.0


def test_scores_of_points(trained):
    done = run(
        "--mode=score", CONFIG, *SMALL, f"--workdir={trained}", "--config.score.num_images=20",
        "--config.eval.estimators=ode",
    )  # fmt: skip
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("scores"))
    path = pathlib.Path(line.split()[1])
    lines = path.read_text().splitlines()
    assert lines[0].startswith("image,nats,") and len(lines) == 21


def test_samples_and_trajectories(trained):
    run("--mode=sample", CONFIG, *SMALL, f"--workdir={trained}")
    (path,) = trained.glob("samples/samples_100x2_*.npz")
    with np.load(path) as archive:
        samples = archive["arr_0"]
    assert samples.dtype == np.float32 and samples.shape == (100, 2)
    assert 0.3 < samples.std() < 1.5
    assert len(list((trained / "samples").glob("trajectories_step*_seed*.png"))) == 1
    assert path.with_suffix(".png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.eval.estimators=vlb"], "vlb needs discrete data"),
        (["--config.eval.ode.dequantization.name=uniform"], "continuous data"),
        (["--config.eval.scoreflow.epsilon=0."], "epsilon is 0"),
        (["--config.eval.elbo.prior=normal"], "config.eval.elbo.prior"),
        (["--config.sample.pixels=sampled", "--mode=sample"], "pixels=sampled"),
    ],
    ids=lambda a: a[0] if isinstance(a, list) else "",
)
def test_mistakes_are_one_line(trained, arguments, message):
    done = forked.run("--mode=eval", CONFIG, *SMALL, f"--workdir={trained}", *arguments)
    assert done.returncode != 0
    errors = [line for line in done.stderr.splitlines() if "error" in line]
    assert len(errors) == 1 and message in errors[0] and "Traceback" not in done.stderr


@pytest.mark.long
def test_the_example_runs(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples/swissroll.py")],
        cwd=tmp_path,
        env={**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", "STEPS": "50"},  # as a user runs it
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "nats below" in done.stdout
    assert (tmp_path / "swissroll_density.png").exists() and (
        tmp_path / "swissroll_trajectories.png"
    ).exists()
