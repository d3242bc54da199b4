"""The forward process: its conditionals by Bayes' rule, and its bounds as limits, for data of any rank."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from helpers.compose import FIXED, compose, gaussian, predicted

from jvdm.core.errors import UserError
from jvdm.core.records import Context
from jvdm.core.shapes import expand
from jvdm.diffusion import losses
from jvdm.diffusion.normal import Normal, kl
from jvdm.diffusion.parameterizations import Drift
from jvdm.diffusion.paths import PATHS
from jvdm.diffusion.process import Encoded
from jvdm.diffusion.samplers import ReverseSDE, Step
from jvdm.diffusion.schedules import FixedLinear, LinearBeta
from jvdm.networks import TimeInput

SHAPES = [(), (5,), (4, 2), (2, 3, 1)]


@pytest.fixture(params=PATHS.names())
def path(request):
    return PATHS.build(PATHS.spec(request.param))


def process(path, shape=(2, 3, 1), prior="path"):
    schedule = FixedLinear(gamma_min=-8.0, gamma_max=4.0)
    return gaussian(schedule, path, rank=len(shape), prior=prior)


def draw(shape, n=4, seed=0):
    rng = np.random.default_rng(seed)
    x, z, eps, eps_hat = (jnp.asarray(rng.normal(size=(n, *shape))) for _ in range(4))
    return Encoded(x, 0.0 * x), z, eps, eps_hat


def test_kl_of_normals(x64):
    """Of a grid, by quadrature over z."""
    z = np.linspace(-30, 30, 20001)
    for q, p in (((0.3, -0.2), (0.1, 0.4)), ((-1.0, 0.5), (0.0, 0.5)), ((2.0, 0.0), (0.5, -0.7))):
        q, p = (Normal(jnp.full(1, mean), jnp.full(1, log_sigma)) for mean, log_sigma in (q, p))
        log_q, log_p = (np.asarray(normal.log_density(jnp.asarray(z))) for normal in (q, p))
        integrand = np.exp(log_q) * (log_q - log_p)
        np.testing.assert_allclose(kl(q, p), np.trapezoid(integrand, z), rtol=1e-10)


def test_a_sample_has_mean_and_deviation(x64):
    normal = Normal(jnp.float64(0.7), jnp.log(jnp.float64(0.2)))
    np.testing.assert_allclose(normal.sample(jnp.array([0.0, 1.0, -2.0])), [0.7, 0.9, 0.3], rtol=1e-15)


@pytest.mark.parametrize("shape", SHAPES)
def test_forward_after_marginal_is_marginal(path, shape, x64):
    p, (encoded, *_) = process(path, shape), draw(shape)
    at_s, at_t = (p.at(FIXED, jnp.full(4, t)) for t in (0.3, 0.55))
    start, end = p.marginal(encoded, at_s), p.marginal(encoded, at_t)
    step = p.forward(start.mean, encoded, encoded, at_s, at_t)
    slope = p.forward(start.mean + 1.0, encoded, encoded, at_s, at_t).mean - step.mean
    np.testing.assert_allclose(step.mean, end.mean, rtol=1e-12)
    variance = jnp.exp(2 * step.log_sigma) + slope**2 * jnp.exp(2 * start.log_sigma)
    np.testing.assert_allclose(variance, np.broadcast_to(jnp.exp(2 * end.log_sigma), slope.shape), rtol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_posterior_is_bayes_rule(path, shape, x64):
    """log q(z_s | x) + log q(z_t | z_s, x) - log q(z_t | x) = log q(z_s | z_t, x), at any z_s."""
    p, (encoded, z_t, z_s, _) = process(path, shape), draw(shape)
    at_s, at_t = (p.at(FIXED, jnp.full(4, t)) for t in (0.3, 0.55))
    joint = p.marginal(encoded, at_s).log_density(z_s)
    joint += p.forward(z_s, encoded, encoded, at_s, at_t).log_density(z_t)
    expected = joint - p.marginal(encoded, at_t).log_density(z_t)
    value = p.posterior(z_t, encoded, encoded, at_s, at_t).log_density(z_s)
    # Squares of up to 1e3 deviations cancel.
    np.testing.assert_allclose(value, expected, rtol=1e-9, atol=1e-9)


def test_the_reverse_step_is_the_posterior_of_the_estimate(path, x64):
    p, (encoded, _, eps, _) = process(path), draw((2, 3, 1))
    at_s, at_t = (p.at(FIXED, jnp.full(4, t)) for t in (0.3, 0.55))
    z_t = p.sample(encoded, eps, at_t)
    reverse = p.reverse(FIXED, z_t, predicted(eps, z_t, at_t), at_s)
    posterior = p.posterior(z_t, encoded, encoded, at_s, at_t)
    np.testing.assert_allclose(reverse.mean, posterior.mean, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(reverse.log_sigma, posterior.log_sigma, rtol=1e-12)
    np.testing.assert_allclose(p.denoised(z_t, predicted(eps, z_t, at_t)), encoded.value, atol=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("timesteps", [1, 7, 1000])
def test_the_discrete_bound_is_the_sum_of_divergences(path, shape, timesteps, x64):
    """T KL(posterior || reverse) and its stable form, the sum of expm1 of steps of gamma."""
    p, (encoded, _, eps, eps_hat) = process(path, shape), draw(shape)
    t = jnp.asarray(np.ceil(np.linspace(0.2, 0.9, 4) * timesteps) / timesteps)
    at_s, at_t = p.at(FIXED, t - 1.0 / timesteps), p.at(FIXED, t)
    z_t = p.sample(encoded, eps, at_t)
    prediction = predicted(eps_hat, z_t, at_t)
    general = losses.diffusion_kl(
        timesteps,
        p.posterior(z_t, encoded, encoded, at_s, at_t),
        p.reverse(FIXED, z_t, prediction, at_s),
    )
    error = prediction.squared_error(encoded.value, eps)
    stable = losses.diffusion_discrete(timesteps, at_s.gamma, at_t.gamma, error)
    # A difference of means near 1, over sigma_s of 0.018 and the square root of a step of 0.012.
    np.testing.assert_allclose(general, stable, rtol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_integrand_is_the_limit_of_small_steps(path, shape, x64):
    p, (encoded, _, eps, eps_hat) = process(path, shape), draw(shape)
    t = jnp.linspace(0.2, 0.9, 4)
    at_t = p.at(FIXED, t)
    z_t = p.sample(encoded, eps, at_t)
    prediction = predicted(eps_hat, z_t, at_t)
    limit = p.integrand(encoded, eps, prediction)
    values = [
        losses.diffusion_kl(
            n,
            p.posterior(z_t, encoded, encoded, at_s, at_t),
            p.reverse(FIXED, z_t, prediction, at_s),
        )
        for n in (10**3, 10**4)
        for at_s in (p.at(FIXED, t - 1.0 / n),)
    ]
    errors = [np.abs(value / limit - 1) for value in values]
    # expm1(h) = h (1 + h / 2), h = 12 / n: of first order.
    np.testing.assert_allclose(errors[0], 12e-3 / 2, rtol=0.01)
    np.testing.assert_allclose(errors[1], 12e-4 / 2, rtol=0.01)


def test_the_drift_moves_the_marginal(path, x64):
    """For one known x the ODE's flow is z = alpha x + sigma eps of a fixed eps: dz/dt by differences."""
    p, (encoded, _, eps, _) = process(path), draw((2, 3, 1))
    t, h = jnp.linspace(0.2, 0.9, 4), 1e-5
    c = p.at(FIXED, t)
    z = p.sample(encoded, eps, c)
    ahead, behind = (p.sample(encoded, eps, p.at(FIXED, t + d)) for d in (h, -h))
    drift = p.drift(FIXED, z, predicted(eps, z, c))
    np.testing.assert_allclose(drift, (ahead - behind) / (2 * h), rtol=1e-7, atol=1e-8)
    by_score = c.dlogalpha_dt * z - 0.5 * predicted(eps, z, c).g2_score
    np.testing.assert_allclose(drift, by_score, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(c.g2, c.sigma**2 * c.dgamma_dt, rtol=1e-14)
    np.testing.assert_allclose(c.dlogalpha_dt, path.dlogalpha_dgamma(c.gamma) * c.dgamma_dt, rtol=1e-14)


def test_priors(path, x64):
    own, standard = (process(path, prior=name).prior(FIXED) for name in ("path", "standard"))
    np.testing.assert_allclose(jnp.exp(own.log_sigma), path.alpha_sigma(jnp.float64(4.0))[1], rtol=1e-14)
    assert own.mean == standard.mean == standard.log_sigma == 0.0
    assert process(path).prior_text == "N(0, sigma_1^2 I)"
    assert process(path, prior="standard").prior_text == "N(0, I)"
    with pytest.raises(UserError, match=r"unknown config\.model\.prior 'paths'; did you mean 'path'"):
        process(path, prior="paths")


def test_times_get_the_axes_of_the_data():
    t = jnp.arange(3.0)
    assert [expand(t, rank).shape for rank in range(4)] == [(3,), (3, 1), (3, 1, 1), (3, 1, 1, 1)]
    assert expand(jnp.zeros((2, 3)), 2).shape == (2, 3, 1, 1)


def test_the_ends_are_those_of_the_schedule(path):
    zero, one = jax.jit(lambda: process(path).at_ends(FIXED))()
    assert zero.gamma.shape == one.gamma.shape == (1, 1, 1, 1)
    np.testing.assert_allclose([zero.gamma.item(), one.gamma.item()], [-8.0, 4.0])
    np.testing.assert_allclose(one.sigma.item(), path.alpha_sigma(jnp.float32(4.0))[1])


BETA_MIN = 0.3  # beta at time 0


class Affine(nn.Module):
    """a(z) = 0.7 z - 0.2, whatever the time."""

    def __call__(self, z, time, context, *, train=False):
        return 0.7 * z - 0.2


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("path_name", PATHS.names())
def test_reverse_drift_at_time_without_noise(path_name, lam):
    """Where the output is a = g score, both drifts have their limits at a time at which the score has none.

    With f = d log alpha / dt = -beta / 2 they are (1 - lam / 2) g a - f z for the SDE, in the direction of
    reverse time, and f z - g a / 2 for the ODE. g^2 is beta where the variance is preserved, and 0 on the
    other paths, whose variance begins as the square of t.
    """
    path = PATHS.build(PATHS.spec(path_name))
    model = compose(
        network=Affine(),
        schedule=LinearBeta(noise_path=path, beta_min=BETA_MIN, beta_max=12.0),
        path=path,
        parameterization=Drift(),
        data_shape=(3,),
        num_levels=0,
        time_input=TimeInput(),
    )
    params = {"network": {}, "schedule": {}}
    z, context = jnp.array([[0.5, -1.5, 0.0], [2.0, 0.1, -0.4]]), Context()
    prediction = model.predict(params, z, jnp.zeros(2), context)
    assert np.all(np.isneginf(prediction.coefficients.gamma))

    f, a = -0.5 * BETA_MIN, 0.7 * np.asarray(z, np.float64) - 0.2
    g2 = BETA_MIN if path_name == "variance_preserving" else 0.0
    np.testing.assert_allclose(prediction.coefficients.g2, np.full((2, 1), g2), rtol=1e-6)
    where = Step(model.process, params, prediction.coefficients, 0.0, (-1.0, 1.0), context)
    ours = ReverseSDE(lam=lam).drift(prediction, z, where)
    expected = (1.0 - 0.5 * lam) * math.sqrt(g2) * a - f * z
    np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-7)
    ode = model.process.drift(params, z, prediction, context)
    np.testing.assert_allclose(ode, f * z - 0.5 * math.sqrt(g2) * a, rtol=1e-6, atol=1e-7)
