"""A model with a latent through every mode, in one process."""

import json
import pathlib

import jax
import numpy as np
import pytest
from helpers import tiny, tiny_latents

from jvdm import data
from jvdm.cli import commands
from jvdm.core.records import Batch
from jvdm.diffusion.solvers import SOLVERS
from jvdm.reporting import inspection
from jvdm.reporting.report import write_report
from jvdm.reporting.runs import read_run
from jvdm.runs.workdir import Workdir

# Training, evaluation, samples and scores of the whole; the parts are in model, diffusion and evaluation.
pytestmark = pytest.mark.long


def config():
    c = tiny_latents.config("k_hot_surrogate", "pixel_monotone", num_steps=2, steps_per_dispatch=2)
    c.data.source = "digits"
    c.eval.estimators = "vlb,ode"
    c.eval.num_images = 4
    c.eval.ode.check_images = 0
    c.eval.ode.solver = SOLVERS.spec("fixed", num_steps=4)
    c.sample.latents = "posterior"
    return c.lock()


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    workdir = Workdir(pathlib.Path(tmp_path_factory.mktemp("latent")))
    c = config()
    for mode in (commands.train, commands.evaluate, commands.sample):
        mode(commands.Request(c, workdir))
    # What scores the ODE is what evaluates it.
    with c.unlocked():
        c.eval.estimators = "vlb"
    commands.score(commands.Request(c, workdir))
    return workdir


def test_records_have_the_valid_bound_and_the_released_number(workdir):
    """ln C(6, 2) = 2.708 nats for the one, at most ln 6 for the other."""
    records = read_run(workdir.path).records
    assert {record["estimator"] for record in records.values()} == {"vlb", "ode"}
    for record in records.values():
        scale = 64 * np.log(2)
        valid, surrogate = record["terms"]["latent"]["mean"] * scale, record["surrogate"]["charge"] * scale
        np.testing.assert_allclose(valid, np.log(15), rtol=1e-5)
        assert 0 <= surrogate < np.log(6)
        total = record["value"] + (surrogate - valid) / scale
        np.testing.assert_allclose(record["surrogate"]["value"], total, rtol=1e-6)
        assert record["is_bound"] and "2.7081 nats" in record["latent_charge"]
    text = write_report(workdir.path).text
    assert "as released" in text
    for record in records.values():
        assert f"{record['surrogate']['value']:.4f} (no bound)" in text


def test_samples_on_latents_of_the_test_images(workdir):
    with np.load(next(workdir.samples.glob("latents_5x6_*.npz"))) as saved:
        latents = saved["arr_0"]
    np.testing.assert_array_equal(latents.sum(axis=1), 2.0)
    assert list(workdir.samples.glob("samples_5x8x8x1_*.npz"))


def test_scores_have_the_charge(workdir):
    (path,) = workdir.scores.glob("*vlb*.csv")
    lines = path.read_text().splitlines()
    assert "latent" in lines[0].split(",")


def test_pictures_of_the_schedules(workdir):
    """Of the run as it is, and of each evaluation."""
    for suffix in ("", "_step*_*"):
        (pixels,) = workdir.plots.glob(f"pixel_schedules{suffix}.png")
        assert pixels.stat().st_size > 10_000
        assert len(list(workdir.plots.glob(f"schedule{suffix}.png"))) == 1
    metrics = [json.loads(line) for line in workdir.metrics.read_text().splitlines()]
    assert {"train/latent", "test/latent"} <= {name for each in metrics for name in each}


def test_gamma_of_every_pixel(workdir):
    """Exact, shared ends, and another schedule for another image."""
    model = tiny.model(config())
    params = tiny.perturbed(jax.jit(model.init)(jax.random.key(0)), scale=0.5)
    images = data.load("digits", num_levels=0, data_dir="").test[:3]
    gamma = inspection.pixel_gammas(model, params, Batch(images), np.array([0.0, 0.5, 1.0], np.float32))
    assert gamma.shape == (3, 3, *tiny.SHAPE)
    np.testing.assert_allclose(gamma[:, 0], -7.0, atol=1e-5)
    np.testing.assert_allclose(gamma[:, 2], 5.0, atol=1e-5)
    assert np.std(gamma[:, 1], axis=(1, 2, 3)).min() > 0.01
