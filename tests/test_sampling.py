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


def draw(setting, n, **options):
    return samples_of(setting, n, **options).images


def samples_of(
    setting,
    n,
    *,
    batch_size,
    num_devices=1,
    sampler="ancestral",
    pixels="argmax",
    num_steps=3,
    log_likelihood=False,
    **options,
):
    model, params = setting
    c = tiny.config().sample
    c.unlock()
    c.sampler = SAMPLERS.spec(sampler, **options)
    c.log_likelihood = log_likelihood
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


def test_log_likelihood(setting):
    """With equal steps, so that few of them do; and what is drawn does not change by asking."""
    options = {"batch_size": 4, "sampler": "ode", "tolerance": 0.0, "method": "heun"}
    samples = samples_of(setting, 6, log_likelihood=True, **options)
    assert samples.log_likelihood.shape == (6,)
    assert np.isfinite(samples.log_likelihood).all()
    silent = draw(setting, 6, **options)
    # Another program rounds otherwise (float32), which moves a pixel in the middle between two levels.
    assert (samples.images == silent).mean() > 0.98
    assert np.abs(samples.images.astype(int) - silent).max() <= 1


def test_a_solver_that_does_not_finish(setting):
    with pytest.raises(UserError, match=r"for 4 samples; raise config.sample.sampler.max_steps"):
        draw(setting, 4, batch_size=4, sampler="ode", max_steps=2)


def test_errors(setting):
    with pytest.raises(UserError, match=r"needs config.sample.sampler.name=ode, not ancestral"):
        samples_of(setting, 4, batch_size=4, log_likelihood=True)
    with pytest.raises(UserError, match="did you mean 'argmax'"):
        draw(setting, 4, batch_size=4, pixels="argmin")
    with pytest.raises(UserError, match="give at least 1"):
        draw(setting, 4, batch_size=4, num_steps=0)
    with pytest.raises(UserError, match="config.sample.batch_size is 0"):
        draw(setting, 4, batch_size=0)
