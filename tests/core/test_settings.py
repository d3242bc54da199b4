"""JAX's settings: pinned where they change a number, whoever has set them; recorded where they may."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import quick, tiny
from helpers.commands import DIGITS, LIGHT, ROOT

import jvdm
from jvdm.core import settings
from jvdm.reporting.writers import read_metrics
from jvdm.runs.workdir import Workdir
from jvdm.training.loop import train

# Everything that jvdm pins, set otherwise.
OTHERWISE = {
    "JAX_ENABLE_X64": "1",
    "JAX_THREEFRY_PARTITIONABLE": "0",
    "JAX_DEFAULT_PRNG_IMPL": "rbg",
    "JAX_RANDOM_SEED_OFFSET": "7",
    "JAX_HIGH_DYNAMIC_RANGE_GUMBEL": "1",
    "JAX_DISABLE_JIT": "1",
    "JAX_DEBUG_NANS": "1",
    "JAX_DEBUG_INFS": "1",
    "JAX_ERROR_CHECKING_BEHAVIOR_NAN": "raise",
    "JAX_TRANSFER_GUARD": "disallow",
}
# And what may be set, because it changes nothing.
ACCEPTED = {
    "JAX_NUMPY_DTYPE_PROMOTION": "strict",
    "JAX_NUMPY_RANK_PROMOTION": "raise",
    "JAX_LEGACY_PRNG_KEY": "error",
    "JAX_DEBUG_KEY_REUSE": "0",
    "JAX_CHECK_TRACER_LEAKS": "0",
}


def command(mode, workdir, **environment):
    done = subprocess.run(
        [sys.executable, "main.py", f"--mode={mode}", DIGITS, f"--workdir={workdir}", *LIGHT],
        cwd=ROOT,
        env={**os.environ, **quick.environment(), **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.long
def test_a_run_under_other_settings_is_the_same(tmp_path):
    """To the last bit: weights, metrics, records, samples."""
    folders = [tmp_path / name for name in ("plain", "otherwise")]
    for folder, environment in zip(folders, ({}, OTHERWISE | ACCEPTED), strict=True):
        for mode in ("train", "eval", "sample"):
            said = command(mode, folder, **environment)
            for name in ("jax_enable_x64=True", "jax_disable_jit=True", "jax_threefry_partitionable=False"):
                assert (f"WARNING: {name} is ignored" in said) == bool(environment)
    plain, otherwise = (
        [{k: v for k, v in line.items() if k != "time"} for line in read_metrics(folder)]
        for folder in folders
    )
    assert plain == otherwise
    records = [
        {
            path.name: json.loads(path.read_text()) | {"provenance": None}
            for path in sorted((folder / "eval").glob("*.json"))
        }
        for folder in folders
    ]
    assert records[0] == records[1] and records[0]
    samples = [np.load(next((folder / "samples").glob("*.npz")))["arr_0"] for folder in folders]
    np.testing.assert_array_equal(*samples)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = Workdir(tmp_path_factory.mktemp("settings") / "run")
    train(tiny.light_config(), workdir)
    return workdir


def test_the_library_under_a_callers_settings(trained):
    """A caller that works in float64 loads, evaluates and samples as any other, and goes on in float64."""
    images = tiny.images(3)

    def numbers():
        model = jvdm.load(trained.path)
        scores = model.bits_per_dim(images, draws=2)
        x = model.encode(images)
        score = model.score(np.zeros((2, *tiny.SHAPE), np.float32), 0.5)
        return scores.values, model.sample(2).images, np.asarray(x), np.asarray(score)

    expected = numbers()
    with jax.enable_x64(True), jax.threefry_partitionable(False), jax.debug_infs(True):
        found = numbers()
        assert jnp.zeros(1).dtype == jnp.float64
    for one, other in zip(expected, found, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def test_pinned_settings_are_those_of_the_module():
    with jax.enable_x64(True), jax.threefry_partitionable(False), jax.debug_nans(True), jax.debug_infs(True):
        with settings.pinned():
            found = {name: settings._value(name) for name in settings.PINNED}
            assert {k: v for k, v in found.items() if v is not None} | settings.PINNED == settings.PINNED
        assert jax.config.jax_enable_x64


def test_what_may_change_rounding_is_recorded(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_use_onednn=false")
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    assert settings.recorded() == {"XLA_FLAGS": "--xla_cpu_use_onednn=false"}
    with jax.default_matmul_precision("highest"):
        assert settings.recorded()["jax_default_matmul_precision"] == "highest"
    # One that JAX has as no attribute: its effect was in a record without it, under the same name.
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        assert settings.recorded()["jax_disable_most_optimizations"] == "True"
    finally:
        jax.config.update("jax_disable_most_optimizations", False)


def test_the_record_has_the_settings(trained):
    origin = jvdm.load(trained.path).bits_per_dim(tiny.images(2), draws=1).record.provenance
    assert origin.settings.get("XLA_FLAGS") == os.environ["XLA_FLAGS"]
    assert origin.random_numbers == 2
