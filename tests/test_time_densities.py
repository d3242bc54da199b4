"""Every density of times on every path: the weight is one over the density that the times have."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.paths import PATHS
from jvdm.time_densities import TIME_DENSITIES
from jvdm.time_samplers import stratify

EPS32 = np.finfo(np.float32).eps
ENDS = {"gamma_0": -13.3, "gamma_1": 5.0}
SPAN = ENDS["gamma_1"] - ENDS["gamma_0"]
CASES = list(itertools.product(TIME_DENSITIES.names(), PATHS.names()))


@pytest.fixture(params=CASES, ids=["-".join(case) for case in CASES])
def case(request):
    """u -> WeightedTimes, and the path."""
    name, path = request.param
    path = PATHS.build(PATHS.spec(path))
    density = TIME_DENSITIES.build(TIME_DENSITIES.spec(name))
    return (lambda u: density(u, path=path, **ENDS)), path


@pytest.fixture(params=PATHS.names())
def importance(request):
    path = PATHS.build(PATHS.spec(request.param))
    density = TIME_DENSITIES.build(TIME_DENSITIES.spec("importance"))
    return (lambda u: density(u, path=path, **ENDS)), path


@pytest.mark.parametrize("shape", [(), (1,), (64,), (4, 3)])
def test_times_and_weights_have_the_shape_of_u(case, shape):
    times, _ = case
    t, weight = times(jnp.full(shape, 0.3))
    assert t.shape == weight.shape == shape
    assert t.dtype == weight.dtype == jnp.float32


def test_times_increase_within_the_unit_interval(case):
    times, _ = case
    largest = np.nextafter(np.float32(1.0), np.float32(0.0))
    u = jnp.concatenate([jnp.linspace(0.0, 0.999, 1000), jnp.array([largest])])
    t, weight = times(u)
    assert np.all(np.diff(t) > 0)
    assert t.min() >= 0.0 and t.max() <= 1.0
    # Both ends are reached, but for the last 1e-3 of u, which is less of t, and for rounding.
    np.testing.assert_allclose([t[0], t[-1]], [0.0, 1.0], atol=2e-6 * SPAN)
    assert np.all(np.isfinite(weight)) and np.all(weight > 0)


def test_the_weight_is_the_derivative_of_t(case, x64):
    """dt/du = 1 / p(t)."""
    times, _ = case
    u, h = jnp.linspace(0.01, 0.99, 99), 1e-4
    slope = (times(u + h).t - times(u - h).t) / (2 * h)
    # Central differences: h^2 / 6 times the third derivative, which near u = 1 is (Z / alpha)^2 of the slope.
    np.testing.assert_allclose(slope, times(u).weight, rtol=2e-4)


INTEGRANDS = {
    "1": (lambda t: jnp.ones_like(t), 1.0),
    "t^2": (lambda t: t**2, 1 / 3),
    "exp(-3t)": (lambda t: jnp.exp(-3 * t), -np.expm1(-3.0) / 3),
    "cos(7t)": (lambda t: jnp.cos(7 * t), np.sin(7.0) / 7),
}


@pytest.mark.parametrize("name", INTEGRANDS)
def test_every_density_estimates_the_same_integral(case, name, x64):
    times, _ = case
    fn, exact = INTEGRANDS[name]
    # Stratified u, rotated by half a stratum, is the midpoint rule.
    n = 65536
    t, weight = times(stratify(jnp.float64(0.5 / n), n))
    # Its error is the jump of the integrand's slope in u, over 24 n^2. At u = 1 the slope of the weight is
    # Z^2 / (span alpha^4) = 2.2e5, which gives 2e-6.
    np.testing.assert_allclose(jnp.mean(weight * fn(t)), exact, atol=1e-5)


def test_random_times_estimate_the_integral(case, key):
    """As they are drawn, in float32."""
    times, _ = case
    fn, exact = INTEGRANDS["exp(-3t)"]
    t, weight = times(jax.random.uniform(key, (65536,)))
    values = np.asarray(weight * fn(t), np.float64)
    assert abs(values.mean() - exact) < 3 * values.std() / 256
    assert values.std() / 256 < 0.02 * exact


def test_the_uniform_density_is_the_identity():
    u = jnp.linspace(0.0, 1.0, 7)
    t, weight = TIME_DENSITIES.build(TIME_DENSITIES.spec("uniform"))(u, path=None, **ENDS)
    np.testing.assert_array_equal(t, u)
    np.testing.assert_array_equal(weight, 1.0)


# 1/2 gamma' n^2 weight: 1/2 Z |F - F_hat|^2 and Z |F - F_hat|^2 of 2305.03935.
VELOCITY_WEIGHTS = {"variance_preserving": 13.293 / 2, "straight": 11.299}


@pytest.mark.parametrize("name", PATHS.names())
def test_importance_makes_the_weight_of_the_velocity_constant(name):
    path = PATHS.build(PATHS.spec(name))
    density = TIME_DENSITIES.build(TIME_DENSITIES.spec("importance"))
    t, weight = density(jnp.linspace(0.0, 1.0, 257), path=path, **ENDS)
    # gamma as a schedule makes it again from t, in float32: an ulp of 13.3, of which alpha^2 feels as much.
    gamma = ENDS["gamma_0"] + SPAN * t
    velocity = 0.5 * weight * SPAN * path.velocity(gamma).scale ** 2
    np.testing.assert_allclose(velocity, velocity[0], rtol=16 * 13.3 * EPS32)
    # The published constants are given to a unit of the third decimal.
    np.testing.assert_allclose(velocity, VELOCITY_WEIGHTS[name], atol=1e-3)


def test_importance_is_the_closed_form_on_the_variance_preserving_path(x64):
    """gamma(u) = -ln expm1( ln(1 + e^-gamma_0) - Z u ) (2305.03935)."""
    density = TIME_DENSITIES.build(TIME_DENSITIES.spec("importance"))
    u = np.linspace(0.0, 0.999, 50)
    t, _ = density(jnp.asarray(u), path=PATHS.build(PATHS.spec("variance_preserving")), **ENDS)
    z = np.log((1 + np.exp(13.3)) / (1 + np.exp(-5.0)))
    gamma = -np.log(np.expm1(np.log1p(np.exp(13.3)) - z * u))
    # Sums of 13 cancel to 0.02: 2e-15 / 0.02.
    np.testing.assert_allclose(ENDS["gamma_0"] + SPAN * t, gamma, atol=1e-11)


def test_importance_lowers_the_variance_of_a_constant_velocity_loss(importance, key):
    """What it is for: where |F - F_hat|^2 hardly depends on t, uniform times pay for the weight alpha^2."""
    times, path = importance

    def spread(t, weight):
        gamma = ENDS["gamma_0"] + SPAN * t
        return float(jnp.std(0.5 * SPAN * path.velocity(gamma).scale ** 2 * weight * (1.0 + 0.1 * t)))

    u = jax.random.uniform(key, (4096,))
    assert spread(*times(u)) < 0.1 * spread(u, jnp.ones_like(u))
