"""A new run that starts from another's weights."""

import dataclasses
import logging
import shutil

import jax
import numpy as np
import pytest
from helpers import tiny

from jvdm.core.errors import UserError
from jvdm.runs.checkpoints import Checkpoints
from jvdm.training.init_from import init_from
from jvdm.training.step import init_state


def state_of(c, seed=0):
    model = tiny.model(c)
    return jax.jit(lambda key: init_state(model, c, key))(jax.random.key(seed))


def saved(folder, state, step=3):
    checkpoints = Checkpoints(folder / "checkpoints")
    checkpoints.save(state, step, None)
    checkpoints.close()
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    state = state_of(tiny.config())
    state = dataclasses.replace(state, step=np.int32(3), params=tiny.perturbed(state.params))
    return saved(tmp_path_factory.mktemp("source"), state), state


def start(path, state):
    return init_from(str(path), state)


@pytest.mark.parametrize("part", ["", "checkpoints", "checkpoints/3"])
def test_the_same_model_takes_all(source, part):
    path, expected = source
    fresh = state_of(tiny.config(), seed=1)
    state = start(path / part, fresh)
    assert tiny.max_difference(state.params, expected.params) == 0.0
    assert tiny.max_difference(state.ema_params, expected.ema_params) == 0.0
    assert tiny.max_difference(fresh.params, expected.params) > 0.0
    assert int(state.step) == 0, "a run of its own"
    assert tiny.max_difference(state.opt_state, fresh.opt_state) == 0.0


def test_what_does_not_fit_is_named(source, caplog):
    path, expected = source
    c = tiny.config()
    c.network.fourier_last = 4  # more features into the first convolution
    fresh = state_of(c, seed=1)
    with caplog.at_level(logging.INFO, logger="jvdm"):
        logging.getLogger("jvdm").propagate = True
        state = start(path, fresh)
    kernel = "params/network/conv_in/kernel"
    assert f"{kernel} is initialised anew: saved as (3, 3, 5, 8), here (3, 3, 7, 8)" in caplog.text
    conv_in = state.params["network"]["conv_in"]
    np.testing.assert_array_equal(conv_in["kernel"], fresh.params["network"]["conv_in"]["kernel"])
    np.testing.assert_array_equal(conv_in["bias"], expected.params["network"]["conv_in"]["bias"])
    assert caplog.text.count("is initialised anew") == 2, "of params and ema_params"


def test_damage_is_found(source, tmp_path):
    path, _ = source
    shutil.copytree(path, tmp_path / "run")
    largest = max((p for p in (tmp_path / "run").rglob("d/*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(largest.read_bytes())
    for place in range(0, len(data), 500):
        data[place] ^= 4
    largest.write_bytes(data)
    with pytest.raises(UserError, match="not a readable checkpoint"):
        start(tmp_path / "run", state_of(tiny.config()))


def test_errors(source, tmp_path):
    fresh = state_of(tiny.config())
    with pytest.raises(UserError, match=r"config.init_from=.*nope: no checkpoint"):
        start(tmp_path / "nope", fresh)
    other = {"other": np.zeros(3, np.float32)}
    path = saved(tmp_path, dataclasses.replace(fresh, params=other, ema_params=other, opt_state=()))
    with pytest.raises(UserError, match="no leaf of .* fits the model"):
        start(path, fresh)
    (path / "checkpoints" / "3" / "state" / "_METADATA").write_text("{")
    with pytest.raises(UserError, match="not a readable checkpoint"):
        start(path, fresh)
