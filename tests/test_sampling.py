"""Sampling with a model: number of images, independence of batch and devices, choices."""

import jax
import numpy as np
import pytest
import tiny

from jvdm.errors import UserError
from jvdm.evaluation.vlb import for_evaluation
from jvdm.samplers import SAMPLERS
from jvdm.sampling import Sampling


@pytest.fixture(scope="module")
def setting():
    model = tiny.model(tiny.config())
    return for_evaluation(model), tiny.perturbed(jax.jit(model.init)(jax.random.key(0)))


def draw(setting, n, *, batch_size, num_devices=1, sampler="ancestral", pixels="argmax", num_steps=3):
    model, params = setting
    c = tiny.config().sample
    c.unlock()
    c.sampler = SAMPLERS.spec(sampler)
    c.pixels = pixels
    sampling = Sampling(model, tiny.mesh(num_devices), c, batch_size=batch_size)
    return sampling(params, n, jax.random.key(3), num_steps=num_steps)


def test_number_type_and_range(setting):
    samples = draw(setting, 5, batch_size=4)
    assert samples.shape == (5, *tiny.SHAPE)
    assert samples.dtype == np.uint8
    assert samples.max() < tiny.LEVELS


def test_independent_of_batch_and_devices(setting):
    """Equal but for pixels that rounding (float32) moves across the middle between two levels."""
    one = draw(setting, 9, batch_size=9)
    eight = draw(setting, 9, batch_size=8, num_devices=8)
    assert (one == eight).mean() > 0.99
    assert np.abs(one.astype(int) - eight).max() <= 1


@pytest.mark.parametrize(("sampler", "pixels"), [("ddim", "argmax"), ("ancestral", "sampled")])
def test_choices_differ_from_the_default(setting, sampler, pixels):
    assert (
        draw(setting, 4, batch_size=4, sampler=sampler, pixels=pixels) != draw(setting, 4, batch_size=4)
    ).any()


def test_errors(setting):
    with pytest.raises(UserError, match="did you mean 'argmax'"):
        draw(setting, 4, batch_size=4, pixels="argmin")
    with pytest.raises(UserError, match="give at least 1"):
        draw(setting, 4, batch_size=4, num_steps=0)
    with pytest.raises(UserError, match="config.sample.batch_size is 0"):
        draw(setting, 4, batch_size=0)
