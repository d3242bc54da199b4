"""Sampling with a model: number of images, independence of batch and devices, choices."""

import dataclasses

import jax
import numpy as np
import pytest
from helpers import tiny

from jvdm.core.errors import UserError
from jvdm.core.keys import root_key
from jvdm.diffusion.latents import LATENTS
from jvdm.diffusion.per_pixel_schedules import SCHEDULES
from jvdm.diffusion.samplers import SAMPLERS
from jvdm.evaluation.sampling import Sampling, given_latents
from jvdm.evaluation.vlb import for_evaluation
from jvdm.networks.encoders import ENCODERS


@pytest.fixture(scope="module")
def setting():
    model = tiny.model(tiny.config())
    return for_evaluation(model), tiny.perturbed(jax.jit(model.init)(jax.random.key(0)))


@pytest.fixture(scope="module")
def calm():
    """A network that does not amplify rounding, as the perturbed U-Net does by orders of magnitude."""
    model = dataclasses.replace(for_evaluation(tiny.model(tiny.config())), network=tiny.Small())
    return model, tiny.perturbed(jax.jit(model.init)(jax.random.key(0)))


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
    latents=None,
    **options,
):
    model, params = setting
    c = tiny.config().sample
    c.unlock()
    c.sampler = SAMPLERS.spec(sampler, **options)
    c.log_likelihood = log_likelihood
    c.pixels = pixels
    sampling = Sampling(model, tiny.mesh(num_devices), c, batch_size=batch_size, latents=latents)
    return sampling(params, n, jax.random.key(3), num_steps=num_steps)


def test_number_type_and_range(setting):
    samples = draw(setting, 5, batch_size=4)
    assert samples.shape == (5, *tiny.SHAPE)
    assert samples.dtype == np.uint8
    assert samples.max() < tiny.LEVELS


def test_independent_of_batch_and_devices(calm):
    """Equal but for pixels that rounding (float32) moves across the middle between two levels."""
    one = draw(calm, 9, batch_size=9)
    eight = draw(calm, 9, batch_size=8, num_devices=8)
    assert (one == eight).mean() > 0.99
    assert np.abs(one.astype(int) - eight).max() <= 1


@pytest.mark.parametrize(("sampler", "pixels"), [("ddim", "argmax"), ("ancestral", "sampled")])
def test_choices_differ_from_the_default(setting, sampler, pixels):
    assert (
        draw(setting, 4, batch_size=4, sampler=sampler, pixels=pixels) != draw(setting, 4, batch_size=4)
    ).any()


def test_log_likelihood(calm):
    """With equal steps, so that few of them do; and what is drawn does not change by asking."""
    options = {"batch_size": 4, "sampler": "ode", "tolerance": 0.0, "method": "heun"}
    samples = samples_of(calm, 6, log_likelihood=True, **options)
    assert samples.log_likelihood.shape == (6,)
    assert np.isfinite(samples.log_likelihood).all()
    silent = draw(calm, 6, **options)
    # Another program rounds otherwise (float32), which moves a pixel in the middle between two levels.
    assert (samples.images == silent).mean() > 0.99
    assert np.abs(samples.images.astype(int) - silent).max() <= 1


def test_a_solver_that_does_not_finish(setting):
    with pytest.raises(UserError, match=r"for 4 samples; raise config.sample.sampler.max_steps"):
        draw(setting, 4, batch_size=4, sampler="ode", max_steps=2)
    draw(setting, 4, batch_size=4, sampler="ode", tolerance=1e-2, max_steps=10_000)


def test_errors(setting):
    with pytest.raises(UserError, match=r"needs config.sample.sampler.name=ode, not ancestral"):
        samples_of(setting, 4, batch_size=4, log_likelihood=True)
    with pytest.raises(UserError, match="did you mean 'argmax'"):
        draw(setting, 4, batch_size=4, pixels="argmin")
    with pytest.raises(UserError, match="give at least 1"):
        draw(setting, 4, batch_size=4, num_steps=0)
    draw(setting, 1, batch_size=4, num_steps=1)
    with pytest.raises(UserError, match="config.sample.batch_size is 0"):
        draw(setting, 4, batch_size=0)


@pytest.fixture(scope="module")
def with_latent():
    """Per-pixel schedules of a subset of 2 of 6; a network that does not amplify rounding."""
    c = tiny.config().unlock()
    c.schedule = SCHEDULES.spec("polynomial", gamma_min=-7.0, gamma_max=5.0, hidden=8)
    c.latent = LATENTS.spec("k_subset", size=6, k=2)
    c.encoder = ENCODERS.spec("cnn", channels=4, num_layers=2)
    model = dataclasses.replace(for_evaluation(tiny.model(c)), network=tiny.Small())
    return model, tiny.perturbed(jax.jit(model.init)(jax.random.key(0)))


@pytest.mark.parametrize("sampler", ["ancestral", "ode"])
def test_latents_of_the_prior_and_given_ones(with_latent, sampler):
    """Samples on the latents that were reported are the same samples; other latents give others."""
    options = {"batch_size": 4, "sampler": sampler}
    if sampler == "ode":
        options |= {"tolerance": 0.0, "method": "heun", "log_likelihood": True}
    free = samples_of(with_latent, 6, **options)
    assert free.latents.shape == (6, 6)
    np.testing.assert_array_equal(free.latents.sum(axis=1), 2.0)
    assert len(np.unique(free.latents, axis=0)) > 1
    again = samples_of(with_latent, 6, latents=free.latents, **options)
    np.testing.assert_array_equal(again.latents, free.latents)
    np.testing.assert_array_equal(again.images, free.images)
    if sampler == "ode":
        # Another program may round otherwise (float32).
        np.testing.assert_allclose(again.log_likelihood, free.log_likelihood, rtol=1e-5)
    one = samples_of(with_latent, 6, latents=free.latents[:1], **options)
    np.testing.assert_array_equal(one.latents, np.tile(free.latents[:1], (6, 1)))
    assert (one.images[1:] != free.images[1:]).any()


def test_latents_that_are_asked_for(with_latent, setting, tmp_path):
    model, params = with_latent
    images, key = tiny.images(5), root_key(0, "latents")

    def given(choice, model=model):
        return given_latents(choice, model, params, lambda: images, key)

    assert given("prior") is None
    posterior = given("posterior")
    assert posterior.shape == (5, 6)
    np.testing.assert_array_equal(posterior.sum(axis=1), 2.0)
    np.testing.assert_array_equal(
        given_latents("posterior", model, params, lambda: images[:3], key), posterior[:3]
    )
    for name, array, message in (
        ("good", posterior, None),
        ("narrow", posterior[:, :5], r"float32 \[5, 5\], not numbers \[L, 6\]"),
        ("text", np.array([["a"] * 6]), "not numbers"),
        ("bad", np.full((1, 6), np.nan), "not finite"),
    ):
        np.savez(tmp_path / name, array)
        path = str(tmp_path / f"{name}.npz")
        if message is None:
            np.testing.assert_array_equal(given(path), posterior)
        else:
            with pytest.raises(UserError, match=message):
                given(path)
    with pytest.raises(UserError, match="nope.npz"):
        given(str(tmp_path / "nope.npz"))
    np.savez(tmp_path / "two", a=posterior, b=posterior)
    with pytest.raises(UserError, match="holds 2 arrays; it must hold one"):
        given(str(tmp_path / "two.npz"))
    with pytest.raises(UserError, match="this one has none: choose prior"):
        given("posterior", setting[0])
