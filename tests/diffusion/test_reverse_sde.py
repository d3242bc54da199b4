"""The family of reverse SDEs on Gaussian data, where each Euler-Maruyama step is affine.

With the perfect eps_hat = sigma (z - alpha m) / v, v = alpha^2 c + sigma^2, a step of length h is

    z_s = A z + B + sqrt(h (1 - lam)) g eps,   A = 1 - h gamma' [ (1 - lam / 2) sigma^2 / v + k_a ]
    B = h gamma' (1 - lam / 2) sigma^2 alpha m / v

so that mean and variance after any number of steps follow by recursion, in float64.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import oracles
from helpers.compose import FIXED, gaussian, predicted, step

from jvdm.core.records import Context
from jvdm.diffusion import samplers
from jvdm.diffusion.gaussian import coefficients
from jvdm.diffusion.paths import PATHS
from jvdm.diffusion.samplers import ReverseSDE
from jvdm.diffusion.schedules import LinearBeta, at

DATA = oracles.Gaussian(np.array([0.3, -0.5]), np.array([0.25, 0.04]))
SHAPE = (1, 1, 2)
NUM_SAMPLES = 20_000
PATH_NAMES = ("variance_preserving", "sub_variance_preserving")
LAMS = (0.0, 0.5, 1.0)


@functools.cache
def parts(path_name):
    path = PATHS.build(PATHS.spec(path_name))
    # Less steep than the published 0.1 to 20, so that few steps are near the limit.
    return path, LinearBeta(noise_path=path, beta_min=0.5, beta_max=8.0)


def coefficients_at(path_name, t):
    path, schedule = parts(path_name)
    gamma, slope = at(schedule, t)
    return coefficients(path, gamma, slope)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def draw(path_name, lam, num_steps, every, keys):
    path, schedule = parts(path_name)
    process = gaussian(schedule, path, prior="standard")

    def predict(z, t):
        c = process.at(FIXED, t)
        alpha, sigma = (a.reshape(-1, 1) for a in (c.alpha, c.sigma))
        return predicted(DATA.eps_hat(z.reshape(len(z), -1), alpha, sigma, jnp).reshape(z.shape), z, c)

    return samplers.sample(
        predict,
        process,
        FIXED,
        Context(),
        ReverseSDE(lam=lam),
        keys,
        shape=SHAPE,
        num_steps=num_steps,
        data_range=(-1.0, 1.0),
        every=every,
    )


def recursion(path_name, lam, num_steps):
    """Mean and variance [2] after `num_steps` from a standard normal."""
    path, _ = parts(path_name)
    mean, variance, h = np.zeros(2), np.ones(2), 1.0 / num_steps
    c = coefficients_at(path_name, jnp.arange(num_steps, 0, -1) / num_steps)
    at_steps = [np.asarray(a, np.float64) for a in (c.alpha, c.sigma, c.dgamma_dt)]
    for alpha, sigma, slope, k_a in zip(*at_steps, np.asarray(path.dlogalpha_dgamma(c.gamma)), strict=True):
        v = alpha**2 * DATA.variance + sigma**2
        pull = (1.0 - 0.5 * lam) * sigma**2 / v
        mean = (1.0 - h * slope * (pull + k_a)) * mean + h * slope * pull * alpha * DATA.mean
        variance = (1.0 - h * slope * (pull + k_a)) ** 2 * variance + h * (1.0 - lam) * slope * sigma**2
    return mean, variance


@pytest.mark.parametrize("lam", LAMS)
@pytest.mark.parametrize("path_name", PATH_NAMES)
def test_mean_and_covariance(path_name, lam):
    """Of 20,000 samples, within 4 standard errors of the recursion.

    A wrong mean is found if it is off by 6 / sqrt(20,000) = 4 % of a deviation, a wrong variance if by 6 %,
    with a probability of 98 % each; a factor of 1 - lam for 1 - lam / 2, or a missing f, changes either by
    more than 20 %.
    """
    num_steps = 64
    z = np.asarray(draw(path_name, lam, num_steps, 0, jax.random.split(jax.random.key(0), NUM_SAMPLES)))
    z = z.reshape(-1, 2).astype(np.float64)
    mean, variance = recursion(path_name, lam, num_steps)
    n = len(z)
    assert np.all(np.abs(z.mean(0) - mean) < 4 * np.sqrt(variance / n))
    covariance = np.cov(z.T)
    assert np.all(np.abs(np.diag(covariance) - variance) < 4 * variance * np.sqrt(2 / n))
    assert abs(covariance[0, 1]) < 4 * np.sqrt(variance.prod() / n)


@pytest.mark.parametrize("lam", LAMS)
@pytest.mark.parametrize("path_name", PATH_NAMES)
def test_steps_converge_to_the_data(path_name, lam, x64):
    """Of order 1: halving the step halves the change; the limit is the data, but for the prior's error."""
    results = [np.concatenate(recursion(path_name, lam, n)) for n in (200, 400, 800)]
    first, second = np.abs(np.diff(results, axis=0))
    assert np.all(second < 0.6 * first + 1e-6)
    # The prior's mean and variance are off by 0.12 of the data's mean, and 0.014 of its second moment less 1.
    # The flow keeps that (times the deviation), the diffusion forgets most of it.
    error = np.abs(results[-1] - np.concatenate([DATA.mean, DATA.variance]))
    assert np.all(error < 0.002 + 0.03 * lam)


def test_the_flow_has_no_noise():
    """With lam = 1 a step does not look at its noise; with less it does, by sqrt(h (1 - lam)) g."""
    rng = np.random.default_rng(0)
    z, noise, other = (jnp.asarray(a, jnp.float32) for a in rng.normal(size=(3, 4, *SHAPE)))
    c = coefficients_at("variance_preserving", jnp.full((4, 1, 1, 1), 0.4))
    path, _ = parts("variance_preserving")
    where = step(path, c, length=0.01)
    for lam in LAMS:
        one, two = (ReverseSDE(lam=lam).step(predicted(z, z, c), z, e, where) for e in (noise, other))
        g = c.sigma * jnp.sqrt(c.dgamma_dt)
        np.testing.assert_allclose(one - two, jnp.sqrt(0.01 * (1 - lam)) * g * (noise - other), atol=1e-6)


@pytest.mark.parametrize("path_name", PATH_NAMES)
def test_a_constant_error_costs_more_the_further_from_the_middle(path_name, x64):
    """The divergence of two chains, eps_hat off by d in one: 1 + lam^2 / (4 (1 - lam)) times that of lam = 0.

    Of a step, |difference of means|^2 / (2 variance); that of lam = 0 is h / 2 gamma' d^2 (2106.02808).
    """
    d, h = 0.3, 0.01
    c = coefficients_at(path_name, jnp.linspace(0.05, 1.0, 20)[:, None, None, None])
    where = step(parts(path_name)[0], c, length=h)
    z, eps, zero = (jnp.full((20, 1, 1, 1), a) for a in (0.4, -0.8, 0.0))
    for lam in (0.0, 0.3, 0.5, 0.9):
        sampler = ReverseSDE(lam=lam)
        mean, other = (sampler.step(predicted(e, z, c), z, zero, where) for e in (eps, eps + d))
        variance = (sampler.step(predicted(eps, z, c), z, zero + 1.0, where) - mean) ** 2
        factor = 1.0 + lam**2 / (4.0 * (1.0 - lam))
        np.testing.assert_allclose(
            (mean - other) ** 2 / (2.0 * variance), factor * 0.5 * h * c.dgamma_dt * d**2, rtol=1e-10
        )


def test_trajectories_end_in_the_samples():
    keys = jax.random.split(jax.random.key(1), 3)
    last = draw("variance_preserving", 0.5, 20, 0, keys)
    paths = draw("variance_preserving", 0.5, 20, 5, keys)
    assert paths.shape == (5, 3, *SHAPE)
    np.testing.assert_allclose(paths[-1], last, rtol=1e-6, atol=1e-6)  # fused otherwise
    # It begins with the noise, whatever the family's member.
    np.testing.assert_array_equal(paths[0], draw("variance_preserving", 1.0, 20, 5, keys)[0])


@pytest.mark.parametrize("lam", [-0.1, 1.1])
def test_what_is_no_member(lam):
    with pytest.raises(ValueError, match="from 0 to 1"):
        ReverseSDE(lam=lam)
