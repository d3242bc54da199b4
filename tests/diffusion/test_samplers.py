"""Samplers with a known denoiser, and the decoder that turns z_0 into levels."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import known, oracles
from helpers.compose import FIXED, gaussian, predicted, step

from jvdm.core import random
from jvdm.core.errors import UserError
from jvdm.core.records import Context
from jvdm.diffusion import losses, samplers, transforms
from jvdm.diffusion.normal import Normal
from jvdm.diffusion.paths import VariancePreserving
from jvdm.diffusion.samplers import SAMPLERS
from jvdm.diffusion.schedules import FixedLinear

GAMMA_0, GAMMA_1 = -8.0, 8.0
SHAPE = (2, 2, 1)
GAUSSIAN = oracles.Gaussian(np.array([0.3, -0.5, 0.0, 0.6]), np.array([0.05, 0.2, 0.01, 0.6]))
NUM_SAMPLES, NUM_STEPS = 20_000, 64
# For the reverse SDE, see tests/test_reverse_sde.py.
BY_STEPS = [name for name in SAMPLERS.names() if "clip" in SAMPLERS.options(name)]
PATH, RANGE = VariancePreserving(), (-1.0, 1.0)


PROCESS = gaussian(FixedLinear(gamma_min=GAMMA_0, gamma_max=GAMMA_1), PATH, prior="standard")


def where(at_s):
    """Of a step whose length does not matter."""
    return step(PATH, at_s, length=jnp.nan)


def coefficients(t):
    return PROCESS.at(FIXED, t)


def predict(z, t):
    c = coefficients(t)
    alpha, sigma = (a.reshape(-1, 1) for a in (c.alpha, c.sigma))
    return predicted(GAUSSIAN.eps_hat(z.reshape(len(z), -1), alpha, sigma).reshape(z.shape), z, c)


def sampler(name, clip=False):
    return SAMPLERS.build(SAMPLERS.spec(name, clip=clip))


@functools.partial(jax.jit, static_argnames=("name", "num_steps", "clip"))
def draw(keys, name, num_steps=NUM_STEPS, clip=False):
    return samplers.sample(
        predict,
        PROCESS,
        FIXED,
        Context(),
        sampler(name, clip),
        keys,
        shape=SHAPE,
        num_steps=num_steps,
        data_range=RANGE,
    )


def transition(name, gamma_t, gamma_s):
    """z_s = factor z_t + offset + sd noise, from the Gaussian posterior q(z_s | z_t, x = x_hat)."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = (oracles.variance_preserving(g) for g in (gamma_t, gamma_s))
    m, c = GAUSSIAN.mean, GAUSSIAN.variance
    gain = alpha_t * c / (alpha_t**2 * c + sigma_t**2)  # x_hat = m + gain (z - alpha_t m)
    x_factor, x_offset = gain, m - gain * alpha_t * m
    if name == "ancestral":
        ratio = alpha_t / alpha_s
        step_variance = sigma_t**2 - ratio**2 * sigma_s**2
        on_z, on_x = ratio * sigma_s**2 / sigma_t**2, alpha_s * step_variance / sigma_t**2
        sd = np.sqrt(step_variance) * sigma_s / sigma_t
    else:
        on_z, on_x = sigma_s / sigma_t, alpha_s - sigma_s / sigma_t * alpha_t
        sd = 0.0
    return on_z + on_x * x_factor, on_x * x_offset, sd


def exact_moments(name, num_steps):
    """Mean and variance of z_0 of the T-step sampler, from N(0, 1)."""
    mean, variance = np.zeros(4), np.ones(4)
    gammas = np.linspace(GAMMA_1, GAMMA_0, num_steps + 1)
    for gamma_t, gamma_s in itertools.pairwise(gammas):
        factor, offset, sd = transition(name, gamma_t, gamma_s)
        mean, variance = factor * mean + offset, factor**2 * variance + sd**2
    return mean, variance


@pytest.mark.parametrize("name", BY_STEPS)
def test_step_is_the_posterior_of_the_estimate(name):
    rng = np.random.default_rng(0)
    z, noise = rng.normal(size=(2, 3, *SHAPE)).astype(np.float32)
    t, s = jnp.array([0.9, 0.5, 0.11]), jnp.array([0.8, 0.2, 0.1])
    value = sampler(name).step(
        predict(jnp.asarray(z), t), jnp.asarray(z), jnp.asarray(noise), where(coefficients(s))
    )
    for i in range(3):
        gammas = [GAMMA_0 + (GAMMA_1 - GAMMA_0) * float(a[i]) for a in (t, s)]
        factor, offset, sd = transition(name, *gammas)
        expected = factor * z[i].ravel() + offset + sd * noise[i].ravel()
        # alpha_s / alpha_t is at most 30: as many ulp of z.
        np.testing.assert_allclose(value[i].ravel(), expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", BY_STEPS)
def test_moments_of_samples(name):
    z_0 = np.asarray(draw(jax.random.split(jax.random.key(0), NUM_SAMPLES), name), np.float64).reshape(-1, 4)
    mean, variance = exact_moments(name, NUM_STEPS)
    # 4 standard errors of the mean and of the variance of normal numbers, for 2 x 4 numbers: the
    # chance of a false alarm is 5e-4, and the resolution is 4 % of the variance.
    np.testing.assert_array_less(np.abs(z_0.mean(0) - mean), 4 * np.sqrt(variance / NUM_SAMPLES))
    np.testing.assert_array_less(np.abs(z_0.var(0) / variance - 1), 4 * np.sqrt(2 / NUM_SAMPLES))
    correlation = np.corrcoef(z_0.T) - np.eye(4)
    assert np.abs(correlation).max() < 4.5 / np.sqrt(NUM_SAMPLES)
    # And these moments are the data's, up to the error of 64 steps of 0.25 in gamma: first order, a
    # few per cent of the variance.
    alpha, sigma = oracles.variance_preserving(GAMMA_0)
    truth = alpha**2 * GAUSSIAN.variance + sigma**2
    np.testing.assert_allclose(variance, truth, rtol=0.12)
    np.testing.assert_allclose(mean, alpha * GAUSSIAN.mean, atol=0.02)


@pytest.mark.parametrize("name", BY_STEPS)
def test_moments_converge_to_the_data_at_first_order(name):
    """The recursion above, which `test_step` ties to the code, tends to the truth as 1/T."""
    alpha, sigma = oracles.variance_preserving(GAMMA_0)
    truth = alpha**2 * GAUSSIAN.variance + sigma**2
    errors = np.array([np.abs(exact_moments(name, t)[1] / truth - 1).max() for t in (250, 500, 1000)])
    np.testing.assert_allclose(errors[:-1] / errors[1:], 2.0, rtol=0.1)
    assert errors[-1] < 0.01


def test_ddim_is_deterministic():
    rng = np.random.default_rng(0)
    z, noise, other = (jnp.asarray(a, jnp.float32) for a in rng.normal(size=(3, 2, *SHAPE)))
    t, s = jnp.array([0.6, 0.3]), jnp.array([0.5, 0.1])
    args, to = (predict(z, t), z), where(coefficients(s))
    np.testing.assert_array_equal(
        sampler("ddim").step(*args, noise, to), sampler("ddim").step(*args, other, to)
    )
    ancestral = [sampler("ancestral").step(*args, n, to) for n in (noise, other)]
    assert np.abs(ancestral[0] - ancestral[1]).min() > 1e-4


@pytest.mark.parametrize("name", BY_STEPS)
def test_samples_differ_by_key_and_repeat_by_key(name):
    keys = jax.random.split(jax.random.key(1), 5)
    first = draw(keys, name, 8)
    np.testing.assert_array_equal(first, draw(keys, name, 8))
    assert np.abs(first[1:] - first[:-1]).min() > 1e-5
    assert np.all(np.isfinite(first))


@pytest.mark.parametrize("name", BY_STEPS)
def test_a_sample_does_not_depend_on_its_batch(name):
    keys = jax.random.split(jax.random.key(2), 7)
    whole, part = draw(keys, name, 8), draw(keys[2:5], name, 8)
    # The numbers drawn are equal bit by bit; arithmetic may be vectorised or contracted differently.
    np.testing.assert_allclose(part, whole[2:5], rtol=1e-5, atol=1e-6)
    permuted = draw(keys[::-1], name, 8)
    np.testing.assert_allclose(permuted[::-1], whole, rtol=1e-5, atol=1e-6)


def test_clip_eps():
    rng = np.random.default_rng(0)
    z, eps = (jnp.asarray(a, jnp.float32) for a in 2 * rng.normal(size=(2, 50, *SHAPE)))
    c = coefficients(jnp.linspace(0.1, 0.9, 50))
    x = (z - c.sigma * eps) / c.alpha
    prediction = samplers.clipped(predicted(eps, z, c), z, PROCESS, RANGE)
    clipped = prediction.eps
    np.testing.assert_allclose(prediction.g2_score, -c.dgamma_dt * c.sigma * clipped, rtol=1e-6)
    x_clipped = (z - c.sigma * clipped) / c.alpha
    # alpha is at least 0.04: an ulp of z over alpha.
    np.testing.assert_allclose(x_clipped, np.clip(x, -1, 1), atol=3e-5)
    inside = np.abs(x) < 1
    assert 20 < inside.sum() < x.size - 20
    # Unclipped eps returns with the rounding of its reconstruction, over sigma >= 0.04.
    np.testing.assert_allclose(np.asarray(clipped)[inside], np.asarray(eps)[inside], atol=3e-5)


@pytest.mark.parametrize("name", BY_STEPS)
def test_clip_bounds_a_wild_denoiser(name):
    z, wild = jnp.zeros((1, *SHAPE)), jnp.full((1, *SHAPE), -100.0)
    t, s = jnp.array([0.5]), jnp.array([0.0])
    noise = jnp.zeros_like(z)
    wild = predicted(wild, z, coefficients(t))
    clipped = sampler(name, clip=True).step(wild, z, noise, where(coefficients(s)))
    free = sampler(name).step(wild, z, noise, where(coefficients(s)))
    # x_hat = 1, so z_0 is at most alpha_0 + the part of the old noise.
    assert np.all(np.abs(clipped) < 1.05)
    assert np.all(np.abs(clipped) > 0.9)
    assert np.all(np.abs(free) > 50)


def test_clip_reaches_the_samples_and_is_the_default():
    keys = jax.random.split(jax.random.key(3), 64)
    assert SAMPLERS.spec("ancestral").clip
    assert SAMPLERS.spec("ddim").clip
    for name in BY_STEPS:
        # sigma_0 is 0.018: a clipped sample is within 5 of them of [-1, 1], others here are not.
        assert np.abs(draw(keys, name, 16, clip=True)).max() < 1.1
        assert np.abs(draw(keys, name, 16)).max() > 1.2


def flow(keys, log_likelihood=True, **options):
    """Samples of the ODE whose drift is the Gaussian oracle's."""

    def drift(shared, z, t, context):
        eps, c, *_ = predict(z, t)
        return c.dgamma_dt * (-0.5 * jax.nn.sigmoid(c.gamma) * z + 0.5 * c.sigma * eps)

    return samplers.flow(
        drift,
        (),
        (),
        SAMPLERS.build(SAMPLERS.spec("ode", **options)),
        keys,
        shape=SHAPE,
        prior=Normal(jnp.zeros(()), jnp.log(oracles.variance_preserving(GAMMA_1, jnp)[1])),
        num_steps=50,
        log_likelihood=log_likelihood,
    )


@pytest.fixture(scope="module")
def flown():
    return jax.jit(flow)(jax.random.split(jax.random.key(6), 5000))


def test_samples_of_the_ode_have_the_datas_moments(flown):
    z_0 = np.asarray(flown.z_0, np.float64).reshape(-1, 4)
    alpha, sigma = oracles.variance_preserving(GAMMA_0)
    variance = alpha**2 * GAUSSIAN.variance + sigma**2
    assert flown.ok.all()
    # 4 standard errors, as above; the start, N(0, sigma_1^2), is off by alpha_1^2 = 3e-4 of the variance.
    limit = 4 * np.sqrt(variance / len(z_0)) + 1e-3
    np.testing.assert_array_less(np.abs(z_0.mean(0) - alpha * GAUSSIAN.mean), limit)
    np.testing.assert_array_less(np.abs(z_0.var(0) / variance - 1), 4 * np.sqrt(2 / len(z_0)) + 1e-3)


def test_log_likelihood_of_a_sample_is_its_log_density(flown):
    alpha, sigma = oracles.variance_preserving(GAMMA_0)
    exact = GAUSSIAN.log_density(np.asarray(flown.z_0, np.float64).reshape(-1, 4), alpha, sigma)
    # The prior N(0, sigma_1^2) against the exact marginal: its mean is off by alpha_1 |m| = 0.015 deviations,
    # a few times that for the farthest of 5000 samples.
    np.testing.assert_allclose(flown.log_likelihood, exact, atol=0.08)
    assert abs(np.mean(np.asarray(flown.log_likelihood, np.float64) - exact)) < 2e-3


def test_equal_steps_of_the_ode_sampler(flown):
    keys = jax.random.split(jax.random.key(6), 5000)[:20]
    fixed = jax.jit(functools.partial(flow, log_likelihood=False, method="rk4", tolerance=0.0))(keys)
    assert fixed.log_likelihood is None
    # 50 steps of order 4 of 0.3 in gamma: 1e-4.
    np.testing.assert_allclose(fixed.z_0, flown.z_0[:20], atol=1e-3)


@pytest.mark.parametrize("parameterization", ["noise", "drift"])
def test_the_ode_reaches_the_time_without_noise(parameterization):
    """Where gamma' is infinite. Of Gaussian data each dimension keeps its quantile."""
    oracle, path = known.ORACLES["continuous_gaussian"], "sub_variance_preserving"
    model = known.build("continuous_gaussian", path, parameterization, schedule="linear_beta")
    prior = model.prior(known.EMPTY)
    keys = jax.random.split(jax.random.key(0), 5)
    result = jax.jit(
        lambda keys: samplers.flow(
            model.ode_drift,
            known.EMPTY,
            Context(),
            SAMPLERS.build(SAMPLERS.spec("ode")),
            keys,
            shape=SHAPE,
            prior=prior,
            num_steps=50,
            log_likelihood=True,
        )
    )(keys)
    assert result.ok.all()
    z_1 = jnp.stack([random.normal(key, "z_1", SHAPE) for key in keys])
    z_1 = np.asarray(prior.sample(z_1), np.float64).reshape(5, -1)
    alpha, sigma = oracles.sub_variance_preserving(oracles.linear_beta_gamma(path, np.ones(1))[0])
    quantile = (z_1 - alpha * oracle.mean) / np.sqrt(alpha**2 * oracle.variance + sigma**2)
    z_0 = oracle.mean + np.sqrt(oracle.variance) * quantile
    # The tolerance of 1e-5 in some thirty steps.
    np.testing.assert_allclose(result.z_0.reshape(5, -1), z_0, atol=1e-3)
    # The prior's mean is 0 instead of alpha_1 m, 0.007 * 0.7, times z_1 of up to 3.
    log_p = oracle.log_density(z_0, np.ones(1), np.zeros(1))
    np.testing.assert_allclose(result.log_likelihood, log_p, atol=0.02)


def test_options_of_the_ode_sampler():
    with pytest.raises(UserError, match="did you mean 'dopri8'"):
        SAMPLERS.build(SAMPLERS.spec("ode", method="dopri"))
    with pytest.raises(UserError, match="probes is 0"):
        SAMPLERS.build(SAMPLERS.spec("ode", probes=0))


def grid_of_z(num_levels):
    """z_0 / alpha_0 over and beyond the range of levels, away from ties."""
    f = np.random.default_rng(num_levels).uniform(-1.3, 1.3, (2, 10, 10, 3))
    position = (f + 1) * num_levels / 2
    f = np.where(np.abs(position - np.round(position)) < 1e-3, f + 4e-3 / num_levels, f)
    return jnp.asarray(f, jnp.float32)


@pytest.mark.parametrize("gamma_0", [-13.3, -3.0])
@pytest.mark.parametrize("num_levels", [2, 17, 256])
def test_most_likely_levels_are_the_argmax(num_levels, gamma_0):
    alpha_0, _ = oracles.variance_preserving(np.full((2, 1, 1, 1), gamma_0, np.float32))
    alpha_0 = jnp.asarray(alpha_0)
    z_0 = alpha_0 * grid_of_z(num_levels)
    levels = transforms.nearest_level(z_0 / alpha_0, num_levels)
    logits = losses.decoder_logits(z_0, alpha_0, jnp.full((2, 1, 1, 1), gamma_0), num_levels)
    assert levels.dtype == jnp.uint8
    np.testing.assert_array_equal(levels, jnp.argmax(logits, axis=-1))
    assert set(np.unique(levels)) >= {0, num_levels - 1}


@pytest.mark.parametrize("num_levels", [2, 17, 256])
def test_most_likely_level_of_clean_data_is_the_data(num_levels):
    levels = jnp.arange(num_levels, dtype=jnp.uint8).reshape(1, 1, -1, 1)
    f = losses.encode(levels, num_levels)
    np.testing.assert_array_equal(transforms.nearest_level(0.9 * f / jnp.float32(0.9), num_levels), levels)


def test_sampled_levels_have_the_decoders_distribution():
    n, num_levels, gamma_0 = 40_000, 8, -0.5
    alpha, sigma = oracles.variance_preserving(gamma_0)
    z_0 = np.array([0.1, -0.6])
    logits = -0.5 * ((z_0[:, None] - alpha * oracles.encode(np.arange(num_levels), num_levels)) / sigma) ** 2
    p = np.exp(logits)
    p /= p.sum(-1, keepdims=True)
    keys = jax.random.split(jax.random.key(4), n)
    z = jnp.broadcast_to(jnp.asarray(z_0, jnp.float32).reshape(1, 2, 1, 1), (n, 2, 1, 1))
    levels = jax.jit(samplers.sampled_levels, static_argnums=4)(
        keys, z, jnp.float32(alpha), jnp.full((n, 1, 1, 1), gamma_0), num_levels
    )
    assert levels.dtype == jnp.uint8
    for i in range(2):
        counts = np.bincount(np.asarray(levels)[:, i, 0, 0], minlength=num_levels)
        chi2 = np.sum((counts - n * p[i]) ** 2 / (n * p[i]))
        # 7 degrees of freedom: 29.9 is the level 1e-4. A probability of 0.1 off by 0.01 adds 40.
        assert chi2 < 29.9
        assert np.all(n * p[i] > 5), "the chi-square approximation needs every count"
    pixels = np.asarray(levels)[:, :, 0, 0].astype(float)
    assert abs(np.corrcoef(pixels.T)[0, 1]) < 4 / np.sqrt(n), "pixels are drawn independently"


def test_a_sampled_level_does_not_depend_on_its_batch():
    z = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (5, *SHAPE)), jnp.float32)
    keys = jax.random.split(jax.random.key(5), 5)
    gamma = jnp.full((1, 1, 1, 1), -2.0)
    whole = samplers.sampled_levels(keys, z, jnp.float32(0.9), gamma, 16)
    part = samplers.sampled_levels(keys[1:3], z[1:3], jnp.float32(0.9), gamma, 16)
    np.testing.assert_array_equal(part, whole[1:3])
    assert len(np.unique(whole)) > 3
