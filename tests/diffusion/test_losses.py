"""Each term of the bound against its closed form in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import oracles
from helpers.compose import gaussian, predicted

from jvdm.core.records import LossTerms
from jvdm.core.shapes import sum_example
from jvdm.diffusion import losses
from jvdm.diffusion.gaussian import coefficients, diffuse
from jvdm.diffusion.normal import Normal
from jvdm.diffusion.paths import VariancePreserving
from jvdm.diffusion.process import Encoded
from jvdm.diffusion.schedules import FixedLinear
from jvdm.diffusion.times import stratify

EPS32 = np.finfo(np.float32).eps
GAMMA_0, GAMMA_1 = -13.3, 5.0
STANDARD = Normal(jnp.zeros(()), jnp.zeros(()))
SPAN = 10.0  # of the Monte-Carlo test: gamma from -5 to 5, where a Gaussian's terms are decided
GAUSSIAN = oracles.Gaussian(np.array([0.2, -0.3, 0.0, 0.5]), np.array([0.6, 0.2, 0.05, 0.01]))
SHAPE = (2, 2, 1)


@pytest.mark.parametrize("num_levels", [2, 3, 17, 256])
def test_encode(num_levels):
    levels = np.arange(num_levels, dtype=np.uint8)
    f = losses.encode(jnp.asarray(levels), num_levels)
    assert f.dtype == jnp.float32
    # Two roundings of numbers up to 2.
    np.testing.assert_allclose(f, oracles.encode(levels, num_levels), atol=2 * EPS32)
    np.testing.assert_allclose(f, -f[::-1], atol=2 * EPS32)
    assert np.abs(f).max() < 1.0


@pytest.mark.parametrize("shape", [(3,), (3, 2), (3, 2, 2, 1)])
def test_sum_example_keeps_the_first_axis(shape):
    a = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    np.testing.assert_array_equal(sum_example(jnp.asarray(a)), a.reshape(3, -1).sum(-1))


def reconstruction_case(num_levels):
    rng = np.random.default_rng(num_levels)
    levels = rng.integers(0, num_levels, (3, 4, 4, 3))
    levels[0, 0, :2] = [[0], [num_levels - 1]]
    eps_0 = rng.normal(size=levels.shape)
    eps_0[1, 0, 0] = [4.5, -4.5, 0.0]  # crosses several levels at gamma_0 = -5, one at -13.3
    return levels.astype(np.uint8), eps_0.astype(np.float32)


# An element's term is a log-sum-exp of exponents rounded to an ulp of eps_0^2 / 2 <= 10.
PER_ELEMENT = 10 * EPS32


@pytest.mark.parametrize("gamma_0", [-13.3, -5.0, 2.0])
@pytest.mark.parametrize("num_levels", [2, 17, 256])
def test_reconstruction_is_the_softmax_over_levels(num_levels, gamma_0):
    levels, eps_0 = reconstruction_case(num_levels)
    gamma_0 = np.float32(gamma_0)
    exact = oracles.decoder_nats(levels, eps_0, gamma_0, num_levels).reshape(3, -1).sum(-1)
    value = losses.reconstruction(jnp.asarray(levels), jnp.asarray(eps_0), jnp.asarray(gamma_0), num_levels)
    assert value.shape == (3,)
    # Distances are rounded relative to themselves, twice: 4 EPS32 of the exponent, at most 40 where
    # a level still counts.
    np.testing.assert_allclose(value, exact, rtol=2e-5, atol=PER_ELEMENT * 48)
    assert np.all(value > -PER_ELEMENT * 48)


def test_reconstruction_values_are_the_known_ones():
    """The number of MATH.md section 1, about 0.011 bits/dim; and blindness costs ln K."""
    rng = np.random.default_rng(0)
    levels, eps_0 = np.full((4, 64, 64, 3), 100, np.uint8), rng.normal(size=(4, 64, 64, 3)).astype(np.float32)
    nats = losses.reconstruction(jnp.asarray(levels), jnp.asarray(eps_0), jnp.float32(-13.3), 256)
    # 49152 elements of sd about 0.1 nats: standard error 0.0007 bits.
    assert abs(float(nats.mean()) / (64 * 64 * 3 * np.log(2)) - 0.011) < 0.002
    blind = losses.reconstruction(jnp.asarray(levels), jnp.asarray(eps_0), jnp.float32(30.0), 256)
    np.testing.assert_allclose(blind / (64 * 64 * 3), np.log(256), rtol=1e-5)


@pytest.mark.parametrize("shape", [(3, 1, 1, 1), (1, 4, 4, 3), (3, 4, 4, 3)])
def test_reconstruction_broadcasts_gamma(shape):
    levels, eps_0 = reconstruction_case(17)
    gamma_0 = np.random.default_rng(1).uniform(-6, -3, shape).astype(np.float32)
    value = losses.reconstruction(jnp.asarray(levels), jnp.asarray(eps_0), jnp.asarray(gamma_0), 17)
    exact = np.zeros(levels.shape)
    for i in np.ndindex(levels.shape):
        exact[i] = oracles.decoder_nats(levels[i], eps_0[i], np.broadcast_to(gamma_0, levels.shape)[i], 17)
    np.testing.assert_allclose(value, exact.reshape(3, -1).sum(-1), rtol=2e-5, atol=PER_ELEMENT * 48)


def test_decoder_logits_give_the_reconstruction():
    levels, eps_0 = reconstruction_case(17)
    gamma_0 = np.float32(-5.0)
    alpha, sigma = (np.float32(a) for a in oracles.variance_preserving(gamma_0))
    z_0 = alpha * losses.encode(jnp.asarray(levels), 17) + sigma * eps_0
    logits = losses.decoder_logits(z_0, jnp.asarray(alpha), jnp.asarray(gamma_0), 17)
    assert logits.shape == (*levels.shape, 17)
    log_p = jax.nn.log_softmax(logits)
    nats = -np.take_along_axis(np.asarray(log_p), levels[..., None].astype(int), axis=-1)[..., 0]
    # z_0 is rounded to an ulp of 1, which sigma_0 = 0.08 and distances of up to 12 magnify.
    np.testing.assert_allclose(nats, oracles.decoder_nats(levels, eps_0, gamma_0, 17), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("gamma_1", [-1.0, 2.0, 5.0, 10.0])
def test_prior(gamma_1):
    f = np.random.default_rng(0).uniform(-1, 1, (3, 4, 4, 1)).astype(np.float32)
    f[0] = 0.0  # nothing but the variance's part, of second order in 1 - sigma^2
    gamma = np.float64(np.float32(gamma_1))
    alpha2 = 1 / (1 + np.exp(gamma))
    log_variance = -np.log1p(np.exp(-gamma))
    # alpha^2 = 1 - sigma^2: with l = ln sigma^2, expm1(l) - l without cancellation by its series.
    small = sum(log_variance**n / np.prod(np.arange(1.0, n + 1)) for n in range(2, 25))
    exact = 0.5 * (alpha2 * f.astype(np.float64) ** 2 + small).reshape(3, -1).sum(-1)
    marginal = Normal(jnp.float32(np.sqrt(alpha2)) * f, jnp.float32(0.5 * log_variance))
    value = losses.prior(marginal, STANDARD)
    # expm1(l) - l leaves an absolute error of an ulp of l per element; naively it would be an ulp of 1,
    # 2000 times more at gamma_1 = 10.
    np.testing.assert_allclose(value, exact, rtol=4 * EPS32, atol=16 * EPS32 * abs(log_variance))
    assert np.all(value > 0)
    # Of the path's own noise the squares are left, over its variance.
    of_path = losses.prior(marginal, Normal(jnp.zeros(()), marginal.log_sigma))
    exact = 0.5 * (alpha2 / np.exp(log_variance) * f.astype(np.float64) ** 2).reshape(3, -1).sum(-1)
    np.testing.assert_allclose(of_path, exact, rtol=4 * EPS32)


def test_prior_of_a_standard_normal_is_zero():
    marginal = Normal(jnp.zeros((2, 3, 3, 1)), jnp.zeros(()))
    np.testing.assert_array_equal(losses.prior(marginal, STANDARD), np.zeros(2))


@pytest.mark.parametrize("shape", [(), (3, 1, 1, 1), (3, 4, 4, 1)])
def test_diffusion_terms_are_their_formulas(shape):
    rng = np.random.default_rng(0)
    error = rng.uniform(size=(3, 4, 4, 1)).astype(np.float32)
    gamma_s, step = (rng.uniform(0.01, 1, shape).astype(np.float32) for _ in range(2))
    gamma_t = gamma_s + step
    discrete = losses.diffusion_discrete(50, jnp.asarray(gamma_s), jnp.asarray(gamma_t), jnp.asarray(error))
    exact = 25 * (np.expm1(gamma_t.astype(float) - gamma_s) * error).reshape(3, -1).sum(-1)
    np.testing.assert_allclose(discrete, exact, rtol=1e-6)


def test_small_steps_keep_their_digits():
    # 1 - exp of 1e-4 in float32 would be off by 6e-4, relative.
    value = losses.diffusion_discrete(2, jnp.float32(0.0), jnp.float32(1e-4), jnp.ones((1, 1, 1, 1)))
    np.testing.assert_allclose(value, np.expm1(1e-4), rtol=1e-6)


def test_total_is_the_sum():
    terms = LossTerms(*(jnp.array([a, 2.0 * a]) for a in (1.0, 10.0, 100.0)))
    np.testing.assert_array_equal(terms.total, [111.0, 222.0])


def gaussian_errors(key, u, timesteps):
    """Monte-Carlo diffusion nats [n] of Gaussian data with the exact denoiser, at u [n]."""
    k_x, k_eps = jax.random.split(key)
    noise = jax.random.normal(k_x, (*u.shape, 4))
    mean, deviation = (oracles.aligned(a, noise, jnp) for a in (GAUSSIAN.mean, np.sqrt(GAUSSIAN.variance)))
    x = mean + deviation * noise
    eps = jax.random.normal(k_eps, x.shape)
    t = (jnp.floor(u * timesteps) + 1) / timesteps if timesteps else u
    gamma = (-SPAN / 2 + SPAN * t)[:, None]
    alpha, sigma = oracles.variance_preserving(gamma, jnp)
    eps_hat = GAUSSIAN.eps_hat(alpha * x + sigma * eps, alpha, sigma)
    error = ((eps - eps_hat) ** 2).reshape(-1, *SHAPE)
    gamma = gamma[..., None, None]
    if timesteps:
        return losses.diffusion_discrete(timesteps, gamma - SPAN / timesteps, gamma, error)
    c = coefficients(VariancePreserving(), gamma, jnp.full_like(gamma, SPAN))
    x, eps, eps_hat = (a.reshape(error.shape) for a in (x, eps, eps_hat))
    prediction = predicted(eps_hat, diffuse(x, eps, c), c)
    process = gaussian(FixedLinear(), VariancePreserving())
    return process.integrand(Encoded(x, 0.0 * x), eps, prediction)


@pytest.mark.parametrize("timesteps", [0, 10, 100])
def test_gaussian_monte_carlo_agrees_with_the_closed_form(timesteps, key):
    num_batches, n = 64, 16384

    def batch_mean(key):
        k_time, key = jax.random.split(key)
        return gaussian_errors(key, stratify(jax.random.uniform(k_time), n), timesteps).mean()

    means = np.asarray(
        jax.jit(lambda keys: jax.lax.map(batch_mean, keys))(jax.random.split(key, num_batches))
    )
    standard_error = means.std(ddof=1) / np.sqrt(num_batches)
    grid = np.linspace(-SPAN / 2, SPAN / 2, (timesteps or 1) + 1)
    exact = GAUSSIAN.diffusion_discrete(grid) if timesteps else GAUSSIAN.diffusion(-SPAN / 2, SPAN / 2)
    assert abs(means.mean() - exact) < 3 * standard_error
    # So that agreement means something: the loss of a factor alpha or of half a step would be 1 % or more.
    assert standard_error < 0.003 * exact


def test_discrete_sum_tends_to_the_integral(x64):
    """With E|eps - eps_hat|^2 in place of a draw: the excess falls as 1/T, and from above."""

    def mean_over_steps(timesteps):
        gammas = np.linspace(GAMMA_0, GAMMA_1, timesteps + 1)
        error = GAUSSIAN.squared_error(gammas[1:])[:, None, None, None]
        s, t = (jnp.asarray(g)[:, None, None, None] for g in (gammas[:-1], gammas[1:]))
        value = float(losses.diffusion_discrete(timesteps, s, t, jnp.asarray(error)).mean())
        np.testing.assert_allclose(value, GAUSSIAN.diffusion_discrete(gammas), rtol=1e-12)
        return value

    exact = GAUSSIAN.diffusion(GAMMA_0, GAMMA_1)
    excess = np.array([mean_over_steps(t) - exact for t in (250, 500, 1000, 2000)])
    assert np.all(excess > 0)
    # First order: each doubling halves the excess, up to the next order, 18.3 / T = 0.07 relative.
    np.testing.assert_allclose(excess[:-1] / excess[1:], 2.0, rtol=0.04)
    assert excess[-1] < 0.01 * exact
