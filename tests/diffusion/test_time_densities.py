"""Every density of times, wherever it is defined: the weight is one over the density that the times have."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import oracles

from jvdm.core.errors import UserError
from jvdm.diffusion import losses, schedules
from jvdm.diffusion.paths import PATHS
from jvdm.diffusion.schedules import SCHEDULES
from jvdm.diffusion.times import TIME_DENSITIES, stratify

EPS32 = np.finfo(np.float32).eps
GAMMA_0, GAMMA_1 = -13.3, 5.0
SPAN = GAMMA_1 - GAMMA_0
IMPORTANCE_PATHS = ["variance_preserving", "straight"]
# (density, schedule, path). What is released is no estimate of the same integral.
CASES = [
    ("uniform", "fixed_linear", "variance_preserving"),
    *[("importance", "fixed_linear", path) for path in IMPORTANCE_PATHS],
    ("debiased", "fixed_linear", "straight"),
    *[("debiased", "linear_beta", path) for path in PATHS.names()],
]


def schedule_of(name, path, **options):
    if name == "fixed_linear":
        options = {"gamma_min": GAMMA_0, "gamma_max": GAMMA_1, **options}
    return SCHEDULES.build(SCHEDULES.spec(name, **options), noise_path=path)


def times_of(name, schedule, path, **options):
    """u -> WeightedTimes."""
    path = PATHS.build(PATHS.spec(path))
    schedule = schedule_of(schedule, path)
    density = TIME_DENSITIES.build(TIME_DENSITIES.spec(name, **options))
    return lambda u: density(u, schedule=schedule, path=path)


@pytest.fixture(params=CASES, ids=["-".join(case) for case in CASES])
def times(request):
    return times_of(*request.param)


def test_every_density_is_among_the_cases():
    assert {case[0] for case in CASES} | {"debiased_released"} == set(TIME_DENSITIES.names())
    for name in TIME_DENSITIES.names():
        component = TIME_DENSITIES.component(name)
        assert component.unbiased == (name != "debiased_released")


@pytest.mark.parametrize("shape", [(), (1,), (64,), (4, 3)])
def test_times_and_weights_have_the_shape_of_u(times, shape):
    t, weight = jax.eval_shape(times, jax.ShapeDtypeStruct(shape, jnp.float32))
    assert t.shape == weight.shape == shape
    assert t.dtype == weight.dtype == jnp.float32


def test_times_increase_within_the_unit_interval(times):
    largest = np.nextafter(np.float32(1.0), np.float32(0.0))
    u = jnp.concatenate([jnp.linspace(0.0, 0.999, 1000), jnp.array([largest])])
    t, weight = times(u)
    assert np.all(np.diff(t) > 0)
    assert t.min() >= 0.0 and t.max() <= 1.0
    # Both ends are reached, but for the last 1e-3 of u, which is less of t, and for rounding.
    np.testing.assert_allclose([t[0], t[-1]], [0.0, 1.0], atol=2e-6 * SPAN)
    assert np.all(np.isfinite(weight)) and np.all(weight > 0)


def test_the_weight_is_the_derivative_of_t(times, x64):
    """dt/du = 1 / p(t)."""
    u, h = jnp.linspace(0.01, 0.99, 99), 1e-4
    slope = (times(u + h).t - times(u - h).t) / (2 * h)
    # Central differences: h^2 / 6 times the third derivative, which near u = 1 is (Z / alpha)^2 of the slope
    # for importance. (The second derivative of debiased times jumps, but at no u of these.)
    np.testing.assert_allclose(slope, times(u).weight, rtol=2e-4)


INTEGRANDS = {
    "1": (lambda t: jnp.ones_like(t), 1.0),
    "t^2": (lambda t: t**2, 1 / 3),
    "exp(-3t)": (lambda t: jnp.exp(-3 * t), -np.expm1(-3.0) / 3),
    "cos(7t)": (lambda t: jnp.cos(7 * t), np.sin(7.0) / 7),
}


def test_every_density_estimates_the_same_integral(times, x64):
    # Stratified u, rotated by half a stratum, is the midpoint rule.
    n = 65536
    t, weight = times(stratify(jnp.float64(0.5 / n), n))
    # Its error is the jump of the integrand's slope in u, over 24 n^2. At u = 1 the slope of the weight is
    # Z^2 / (span alpha^4) = 2.2e5, which gives 2e-6.
    for name, (fn, exact) in INTEGRANDS.items():
        np.testing.assert_allclose(jnp.mean(weight * fn(t)), exact, atol=1e-5, err_msg=name)


def test_random_times_estimate_the_integral(times, key):
    """As they are drawn, in float32."""
    fn, exact = INTEGRANDS["exp(-3t)"]
    t, weight = times(jax.random.uniform(key, (65536,)))
    values = np.asarray(weight * fn(t), np.float64)
    assert abs(values.mean() - exact) < 3 * values.std() / 256
    assert values.std() / 256 < 0.02 * exact


def test_the_uniform_density_is_the_identity():
    u = jnp.linspace(0.0, 1.0, 7)
    t, weight = TIME_DENSITIES.build(TIME_DENSITIES.spec("uniform"))(u, schedule=None, path=None)
    np.testing.assert_array_equal(t, u)
    np.testing.assert_array_equal(weight, 1.0)


# 1/2 gamma' n^2 weight: 1/2 Z |F - F_hat|^2 and Z |F - F_hat|^2 of 2305.03935.
VELOCITY_WEIGHTS = {"variance_preserving": 13.293 / 2, "straight": 11.299}


@pytest.mark.parametrize("name", IMPORTANCE_PATHS)
def test_importance_makes_the_weight_of_the_velocity_constant(name):
    path = PATHS.build(PATHS.spec(name))
    t, weight = times_of("importance", "fixed_linear", name)(jnp.linspace(0.0, 1.0, 257))
    # gamma as a schedule makes it again from t, in float32: an ulp of 13.3, of which alpha^2 feels as much.
    gamma = GAMMA_0 + SPAN * t
    velocity = 0.5 * weight * SPAN * path.velocity(gamma).scale ** 2
    np.testing.assert_allclose(velocity, velocity[0], rtol=16 * 13.3 * EPS32)
    # The published constants are given to a unit of the third decimal.
    np.testing.assert_allclose(velocity, VELOCITY_WEIGHTS[name], atol=1e-3)


def test_importance_is_the_closed_form_on_the_variance_preserving_path(x64):
    """gamma(u) = -ln expm1( ln(1 + e^-gamma_0) - Z u ) (2305.03935)."""
    u = np.linspace(0.0, 0.999, 50)
    t, _ = times_of("importance", "fixed_linear", "variance_preserving")(jnp.asarray(u))
    z = np.log((1 + np.exp(13.3)) / (1 + np.exp(-5.0)))
    gamma = -np.log(np.expm1(np.log1p(np.exp(13.3)) - z * u))
    # Sums of 13 cancel to 0.02: 2e-15 / 0.02.
    np.testing.assert_allclose(GAMMA_0 + SPAN * t, gamma, atol=1e-11)


@pytest.mark.parametrize("name", IMPORTANCE_PATHS)
def test_importance_lowers_the_variance_of_a_constant_velocity_loss(name, key):
    """What it is for: where |F - F_hat|^2 hardly depends on t, uniform times pay for the weight alpha^2."""
    times, path = times_of("importance", "fixed_linear", name), PATHS.build(PATHS.spec(name))

    def spread(t, weight):
        gamma = GAMMA_0 + SPAN * t
        return float(jnp.std(0.5 * SPAN * path.velocity(gamma).scale ** 2 * weight * (1.0 + 0.1 * t)))

    u = jax.random.uniform(key, (4096,))
    assert spread(*times(u)) < 0.1 * spread(u, jnp.ones_like(u))


# Debiased times -------------------------------------------------------------------------------------------

T_E = 1e-3
SDE_PATHS = ["variance_preserving", "sub_variance_preserving"]


def test_debiased_is_the_published_closed_form(x64):
    """Of MATH.md section 4, for beta from 0.1 to 20: Z = 20.256, and the inverse of its cumulative."""
    u = np.linspace(0.0, 1.0, 401)
    t, weight = times_of("debiased", "linear_beta", "variance_preserving")(jnp.asarray(u))

    def rate(t):
        beta, b = oracles.linear_beta(t)
        return beta / -np.expm1(-b)

    def phi(t):
        return np.log(np.expm1(oracles.linear_beta(t)[1]))

    r, a, b = rate(T_E), oracles.BETA_MAX - oracles.BETA_MIN, oracles.BETA_MIN
    z = T_E * r + phi(1.0) - phi(T_E)
    assert round(z, 3) == 20.256
    beta_integral = np.log1p(np.exp(z * u + phi(T_E) - r * T_E))
    exact = np.where(u <= T_E * r / z, u * z / r, (-b + np.sqrt(b**2 + 2 * a * beta_integral)) / a)
    # The published form cancels to t of b: 1e-16 * 0.1 / 20 / t.
    np.testing.assert_allclose(t, exact, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(weight, z / rate(np.maximum(t, T_E)), rtol=1e-12)
    assert 20 < np.sum(t < T_E) < 381, "both parts"


@pytest.mark.parametrize("path", SDE_PATHS)
def test_debiased_makes_the_weight_of_the_likelihood_constant(path):
    """gamma' over the density is Z everywhere, in float32."""
    t, weight = times_of("debiased", "linear_beta", path)(jnp.linspace(0.0, 1.0, 257))
    schedule = schedule_of("linear_beta", PATHS.build(PATHS.spec(path)))
    rate = schedules.at(schedule, jnp.maximum(t, T_E)).dgamma_dt
    gamma, r = oracles.linear_beta_gamma(path, np.array([T_E, 1.0]))
    np.testing.assert_allclose(rate * weight, T_E * r[0] + gamma[1] - gamma[0], rtol=1e-5)


def test_debiased_times_of_a_straight_schedule_are_uniform():
    u = jnp.linspace(0.0, 1.0, 65)
    t, weight = times_of("debiased", "fixed_linear", "straight")(u)
    # gamma, of size 13, is rounded to 1e-6, over the span.
    np.testing.assert_allclose(t, u, atol=1e-6)
    np.testing.assert_allclose(weight, 1.0, rtol=1e-6)


@pytest.mark.parametrize("name", ["uniform", "debiased"])
@pytest.mark.parametrize("path", SDE_PATHS)
def test_score_matching_estimates_the_likelihoods_integral(path, name, x64):
    """1/2 int gamma'(max(t, t_e)) E|eps - eps_hat|^2 dt, over u, is what it is over t, and a known number.

    For Gaussian data: above t_e in closed form, below by quadrature, where the weight is constant.
    """
    gaussian = oracles.discretised_gaussian()
    schedule = schedule_of("linear_beta", PATHS.build(PATHS.spec(path)))
    n = 100_000
    u = jnp.asarray((np.arange(n) + 0.5) / n)
    t, weight = times_of(name, "linear_beta", path)(u)
    weight = weight * schedules.at(schedule, jnp.maximum(t, T_E)).dgamma_dt
    error = gaussian.squared_error(np.asarray(schedule(t)))
    value = losses.score_matching(weight, jnp.asarray(error)[:, None, None, None])

    low, gamma_1 = oracles.linear_beta_gamma(path, np.array([T_E, 1.0]))[0]
    below = (np.arange(1000) + 0.5) * T_E / 1000
    errors = gaussian.squared_error(oracles.linear_beta_gamma(path, below)[0])
    rate = oracles.linear_beta_gamma(path, T_E)[1]
    expected = gaussian.diffusion(low, gamma_1) + 0.5 * rate * T_E * errors.mean()
    # Midpoint rule of steps h = 1e-5: h^2 / 24 times a slope of 1e6, where the weight begins to fall.
    np.testing.assert_allclose(value.mean(), expected, rtol=2e-5)
    # Both parts count.
    assert 0.5 * rate * T_E * errors.mean() > 0.1 * expected
    # What the density is for: the loss varies less than with uniform times, whose weight grows to 1000.
    spread = float(value.std() / value.mean())
    assert spread > 3.0 if name == "uniform" else spread < 1.5


@pytest.mark.parametrize("path", PATHS.names())
@pytest.mark.parametrize("schedule", ["fixed_linear", "linear_beta"])
def test_the_released_density_is_that_of_one_schedule_and_has_no_weight(schedule, path):
    u = jnp.linspace(0.0, 1.0, 33)
    t, weight = times_of("debiased_released", schedule, path)(u)
    np.testing.assert_array_equal(weight, 1.0)
    np.testing.assert_array_equal(t, times_of("debiased", "linear_beta", "variance_preserving")(u).t)


def test_another_truncation(x64):
    """Below it the times are spread evenly, with the density that they have there."""
    t, weight = times_of("debiased", "linear_beta", "variance_preserving", epsilon=0.1)(
        jnp.linspace(0.0, 0.1, 9)
    )
    assert 0.01 < t.max() < 0.1
    np.testing.assert_allclose(np.diff(t), t[1], rtol=1e-12)
    np.testing.assert_allclose(weight, t[1] / 0.0125, rtol=1e-12)


@pytest.mark.parametrize("epsilon", [0.0, 1.0, -1e-3])
def test_a_truncation_that_is_none(epsilon):
    with pytest.raises(UserError, match="time density 'debiased': epsilon is") as error:
        times_of("debiased", "linear_beta", "variance_preserving", epsilon=epsilon)
    assert "\n" not in str(error.value)
