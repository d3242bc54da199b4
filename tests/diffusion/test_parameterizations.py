"""Every parameterization on every path: the perfect output gives eps, and the errors agree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import oracles
from helpers.compose import FIXED, gaussian

from jvdm.diffusion.gaussian import coefficients
from jvdm.diffusion.parameterizations import PARAMETERIZATIONS
from jvdm.diffusion.paths import PATHS
from jvdm.diffusion.schedules import SCHEDULES

EPS32 = np.finfo(np.float32).eps
GAMMA = np.array([-13.3, -6.0, -1.0, 0.0, 2.0, 5.0])


@pytest.fixture(params=PATHS.names())
def path(request):
    return PATHS.build(PATHS.spec(request.param))


@pytest.fixture(params=PARAMETERIZATIONS.names())
def parameterization(request, path):
    return PARAMETERIZATIONS.build(PARAMETERIZATIONS.spec(request.param), path=path)


def draw(path, dtype, per_pixel):
    """x, eps, a disturbance of the output, coefficients and z; one example per gamma."""
    rng = np.random.default_rng(0)
    b, shape = len(GAMMA), (2, 3, 1)
    x, eps, disturbance = (jnp.asarray(rng.normal(size=(b, *shape)), dtype) for _ in range(3))
    gamma = GAMMA[:, None, None, None] + (rng.uniform(size=(b, *shape)) if per_pixel else 0.0)
    gamma = jnp.asarray(gamma, dtype)
    slope = jnp.asarray(rng.uniform(10, 20, size=gamma.shape), dtype)
    c = coefficients(path, gamma, slope)
    return x, eps, disturbance, c, c.alpha * x + c.sigma * eps


@pytest.mark.parametrize("path_name", PATHS.names())
@pytest.mark.parametrize("name", PARAMETERIZATIONS.names())
def test_closed_form(name, path_name, x64):
    """Of MATH.md section 0, and a = g score of sdeflow."""
    path = PATHS.build(PATHS.spec(path_name))
    relation = PARAMETERIZATIONS.build(PARAMETERIZATIONS.spec(name), path=path)
    x, eps, _, c, z = draw(path, jnp.float64, False)
    alpha, sigma = oracles.ALPHA_SIGMA[path_name](np.asarray(c.gamma))
    score, g = -eps / sigma, sigma * np.sqrt(c.dgamma_dt)
    expected = {
        "noise": eps,
        "data": x,
        "velocity": oracles.velocity(path_name, x, eps, alpha, sigma),
        "drift": g * score,
        "velocity_from_noise": eps,
    }[name]
    # sigma of -13.3 is 1.3e-3 or its square, of numbers near 1: 1e-16 * 1e6.
    np.testing.assert_allclose(relation(c).target(x, eps), expected, rtol=1e-9)
    np.testing.assert_allclose(c.alpha * x + c.sigma * eps, z, rtol=1e-14)


def test_velocity_from_noise_is_the_formula_of_mulan(x64):
    """v = -e^(gamma/2) z + sqrt(1 + e^gamma) out, and its loss, alpha^2 |v - v^|^2, per pixel."""
    path = PATHS.build(PATHS.spec("variance_preserving"))
    relation = PARAMETERIZATIONS.build(PARAMETERIZATIONS.spec("velocity_from_noise"), path=path)
    x, eps, disturbance, c, z = draw(path, jnp.float64, True)
    out = eps + disturbance
    v_hat = -jnp.exp(0.5 * c.gamma) * z + jnp.sqrt(1.0 + jnp.exp(c.gamma)) * out
    v = c.alpha * eps - c.sigma * x
    # e^(gamma / 2) reaches 12 and 1 / sigma^2 6e5, of float64's 1e-16.
    np.testing.assert_allclose(relation(c).to_eps(out, z), c.alpha * v_hat + c.sigma * z, rtol=1e-9)
    np.testing.assert_allclose(
        relation(c).squared_error(out, x, eps), c.alpha**2 * (v - v_hat) ** 2, rtol=1e-9
    )


@pytest.mark.parametrize("path_name", ["variance_preserving", "sub_variance_preserving"])
def test_drift_at_the_time_without_noise(path_name):
    """An infinite rate of the schedule: no noise is predicted, and nothing is not a number."""
    path = PATHS.build(PATHS.spec(path_name))
    schedule = SCHEDULES.build(SCHEDULES.spec("linear_beta"), noise_path=path)
    drift = PARAMETERIZATIONS.build(PARAMETERIZATIONS.spec("drift"), path=path)
    t = jnp.array([0.0, 1e-12, 1e-6, 1e-3])
    process = gaussian(schedule, path, rank=0)
    at = c = process.at(FIXED, t)
    out, z = jnp.full(4, -3.0), jnp.ones(4)
    eps_hat = drift(c).to_eps(out, z)
    assert at.dgamma_dt[0] == jnp.inf and eps_hat[0] == 0.0
    # -a sigma / g = 3 sqrt(t), at small times and up to the factor of the path.
    assert np.all(np.isfinite(eps_hat)) and np.all(np.diff(eps_hat) > 0)
    factor = 1.0 if path_name == "variance_preserving" else 0.5
    np.testing.assert_allclose(eps_hat[1:3], 3.0 * np.sqrt(factor * t[1:3]), rtol=1e-3)
    # The loss of score matching, 1/2 |a sigma / g + eps|^2.
    error = drift(c).squared_error(out, jnp.zeros(4), jnp.full(4, 0.7))[1:]
    np.testing.assert_allclose(error, (-3.0 * (c.dgamma_dt**-0.5) + 0.7)[1:] ** 2, rtol=1e-5)


@pytest.mark.parametrize("per_pixel", [False, True])
def test_perfect_output_gives_eps(parameterization, path, per_pixel, x64):
    x, eps, _, c, z = draw(path, jnp.float64, per_pixel)
    # Rounding is amplified by at most 1 / sigma = 800: 1e-16 * 800, with room.
    recovered = parameterization(c).to_eps(parameterization(c).target(x, eps), z)
    np.testing.assert_allclose(recovered, eps, atol=1e-11)


@pytest.mark.parametrize("per_pixel", [False, True])
def test_squared_error_is_that_of_eps(parameterization, path, per_pixel, x64):
    x, eps, disturbance, c, z = draw(path, jnp.float64, per_pixel)
    out = parameterization(c).target(x, eps) + 0.1 * disturbance
    expected = (eps - parameterization(c).to_eps(out, z)) ** 2
    np.testing.assert_allclose(parameterization(c).squared_error(out, x, eps), expected, rtol=1e-9)
    assert expected.min() > 1e-12, "an error of zero would make the comparison empty"


def test_squared_error_of_the_perfect_output_is_zero(parameterization, path):
    x, eps, _, c, _ = draw(path, jnp.float32, False)
    error = parameterization(c).squared_error(parameterization(c).target(x, eps), x, eps)
    # The target is formed by two or three roundings of numbers below 5.
    assert np.abs(error).max() < (20 * EPS32) ** 2


def test_float32_round_trip_is_as_good_as_z(parameterization, path):
    x, eps, _, c, z = draw(path, jnp.float32, False)
    recovered = parameterization(c).to_eps(parameterization(c).target(x, eps), z)
    # z and alpha x are rounded to an ulp of 4; eps cannot be known better than that over sigma.
    tolerance = 8 * EPS32 * 4.0 * np.maximum(1.0, 1.0 / np.asarray(c.sigma))
    assert np.all(np.abs(recovered - eps) < tolerance)


def test_float32_squared_error_keeps_its_digits(parameterization, path):
    """Also at gamma = -13.3, where eps - to_eps(out) has lost four of its seven digits."""
    x, eps, disturbance, c, _ = draw(path, jnp.float32, False)
    out = parameterization(c).target(x, eps) + 0.1 * disturbance
    error = parameterization(c).squared_error(out, x, eps)
    with jax.enable_x64(True):
        x, eps, out = (jnp.asarray(np.asarray(a), jnp.float64) for a in (x, eps, out))
        gamma = jnp.asarray(np.asarray(c.gamma), jnp.float64)
        exact_c = coefficients(path, gamma, jnp.asarray(np.asarray(c.dgamma_dt), jnp.float64))
        exact = parameterization(exact_c).squared_error(out, x, eps)
    # Differences of 0.01 and more, of numbers rounded to half an ulp of 4: 5e-5, doubled by the square.
    large = np.abs(disturbance) > 0.1
    np.testing.assert_allclose(np.asarray(error)[large], np.asarray(exact)[large], rtol=4e-4)
    assert large.sum() > 20
