"""Properties of every schedule, and the closed form of each."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import oracles

from jvdm.core.errors import UserError
from jvdm.diffusion import schedules
from jvdm.diffusion.paths import PATHS
from jvdm.diffusion.schedules import SCHEDULES

EPS32 = np.finfo(np.float32).eps

GAMMA_MIN, GAMMA_MAX = -13.3, 5.0
HIDDEN = 16
# Those of every pixel are tested in test_pixel_schedules.py.
NAMES = [name for name in SCHEDULES.names() if not getattr(SCHEDULES.component(name), "per_pixel", False)]
EXACT_ENDS = [name for name in NAMES if name != "monotone_network_released"]


FIXED = [name for name in NAMES if SCHEDULES.component(name).inverse is not None]


def build(name):
    options = SCHEDULES.options(name)
    wanted = {"hidden": HIDDEN, "gamma_min": GAMMA_MIN, "gamma_max": GAMMA_MAX, "t_min": 1e-3}
    chosen = {option: value for option, value in wanted.items() if option in options}
    return SCHEDULES.build(
        SCHEDULES.spec(name, **chosen), noise_path=PATHS.build(PATHS.spec("variance_preserving"))
    )


def linear_beta(path, **options):
    return SCHEDULES.build(SCHEDULES.spec("linear_beta", **options), noise_path=PATHS.build(PATHS.spec(path)))


@functools.cache
def initial(name):
    """Initial parameters, float32 numpy; drawn once for all tests."""
    params = jax.jit(build(name).init)(jax.random.key(0), jnp.zeros(())).get("params", {})
    return jax.tree.map(np.asarray, params)


def parameters(name, scale, seed=1):
    """Parameters `scale` away from the initial ones, in the precision that is switched on."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: jnp.asarray(a + scale * rng.normal(size=a.shape), float), initial(name))


@functools.cache
def program(name):
    """(parameters, t) -> gamma, compiled once for each shape."""
    return jax.jit(lambda params, t: build(name).apply({"params": params}, t))


def gamma_fn(name, scale, seed=1):
    """t -> gamma, with initial (scale 0) or random parameters, and the parameters."""
    params = parameters(name, scale, seed)
    return functools.partial(program(name), params), jax.tree.map(np.asarray, params)


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


@pytest.fixture(params=[0.0, 1.0], ids=["initial", "random"])
def scale(request):
    return request.param


def test_signature_is_that_of_a_schedule(name):
    parameters = inspect.signature(SCHEDULES.component(name).__call__).parameters
    assert list(parameters) == ["self", "t", "context"]


def test_increasing(name, scale):
    gamma, _ = gamma_fn(name, scale)
    values = gamma(jnp.linspace(0.0, 1.0, 1001))
    # Steps of gamma are about 1e-2, rounding about 1e-6: strict even in float32.
    assert np.all(np.diff(values) > 0)


def test_derivative_is_positive_and_finite(name, scale):
    gamma, _ = gamma_fn(name, scale)
    slope = schedules.at(gamma, jnp.linspace(0.0, 1.0, 101)).dgamma_dt
    assert np.all(np.isfinite(slope))
    assert np.all(slope > 0)


@pytest.mark.parametrize("shape", [(), (6,), (6, 1, 1, 1), (2, 3), (1, 2, 3, 1)])
def test_elementwise_for_any_shape(name, shape):
    gamma, _ = gamma_fn(name, 1.0)
    t = np.random.default_rng(0).uniform(size=shape).astype(np.float32)
    expected = np.array([gamma(a) for a in t.ravel()]).reshape(shape)
    value = gamma(jnp.asarray(t))
    assert value.shape == shape
    assert value.dtype == jnp.float32
    # The matrix product of one row and of many may sum in another order: 1e-6 of |gamma| <= 20.
    np.testing.assert_allclose(value, expected, atol=2e-5)


def test_derivative_is_the_finite_difference(name, scale, x64):
    gamma, _ = gamma_fn(name, scale)
    t = jnp.linspace(0.01, 0.99, 23)[:, None, None, None]
    at = schedules.at(gamma, t)
    assert at.gamma.dtype == at.dgamma_dt.dtype == jnp.float64
    step = 1e-5
    difference = (gamma(t + step) - gamma(t - step)) / (2 * step)
    # Central difference in float64: step^2 * third derivative (< 1e3) + |gamma| 1e-16 / step.
    np.testing.assert_allclose(at.dgamma_dt, difference, rtol=1e-6)
    # The JVP may sum the hidden units in another order.
    np.testing.assert_allclose(at.gamma, gamma(t), rtol=1e-14, atol=1e-14)


def test_derivative_in_float32_agrees_with_float64(name, scale):
    gamma, params = gamma_fn(name, scale)
    t = np.linspace(0.0, 1.0, 33, dtype=np.float32)
    slope = schedules.at(gamma, jnp.asarray(t)).dgamma_dt
    with jax.enable_x64(True):
        params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), params)
        exact = schedules.at(lambda t: program(name)(params, t), jnp.asarray(t, jnp.float64)).dgamma_dt
    # A few roundings of sums over the hidden units.
    np.testing.assert_allclose(slope, exact, rtol=1e-5)


@pytest.mark.parametrize("exact", EXACT_ENDS)
def test_initial_ends_are_gamma_min_and_gamma_max(exact):
    gamma, _ = gamma_fn(exact, 0.0)
    schedule = build(exact)
    # A few ulp of the span, 18.3: g(0) and g(1) may be summed in another order beside other times.
    ends = [schedule.gamma_min, schedule.gamma_max]
    np.testing.assert_allclose(gamma(jnp.array([0.0, 1.0])), ends, atol=2e-5)
    if "gamma_min" in SCHEDULES.options(exact):
        assert ends == [GAMMA_MIN, GAMMA_MAX]


def test_released_ends_move_by_the_network():
    gamma, params = gamma_fn("monotone_network_released", 0.0)
    offset = np.asarray(gamma(jnp.array([0.0, 1.0]))) - [GAMMA_MIN, GAMMA_MAX]
    # |2 s(.) - 1| < 1, so the offset is less than the mean |weight| of l3; and not zero.
    bound = np.abs(params["l3"]["kernel"]).mean()
    assert -bound < offset[0] < -1e-4
    assert 1e-4 < offset[1] < bound


@pytest.mark.parametrize("seed", range(5))
def test_renormalised_ends_are_the_parameters(seed):
    gamma, params = gamma_fn("monotone_network", 3.0, seed)
    ends = np.asarray(gamma(jnp.array([0.0, 1.0])))
    # g(0) and g(1) may be summed in another order beside other times: 1e-6 of the span.
    np.testing.assert_allclose(ends, [params["gamma_0"], params["gamma_1"]], atol=5e-5)
    assert abs(params["gamma_0"] - GAMMA_MIN) > 1e-3, "the parameters must have been moved"


def test_interior_is_independent_of_the_ends(x64):
    schedule = build("monotone_network")
    params = parameters("monotone_network", 1.0)
    t = jnp.linspace(0.0, 1.0, 17)
    unit = schedule.apply({"params": {**params, "gamma_0": jnp.zeros(()), "gamma_1": jnp.ones(())}}, t)
    moved = schedule.apply({"params": {**params, "gamma_0": jnp.array(-7.0), "gamma_1": jnp.array(2.0)}}, t)
    np.testing.assert_allclose(moved, -7.0 + 9.0 * unit, rtol=1e-12)
    assert np.abs(unit - t).max() > 1e-3, "the network must bend the line"


def test_gradients_are_finite_and_reach_every_layer(name):
    schedule = build(name)
    loss = jax.jit(jax.grad(lambda p: schedule.apply({"params": p}, jnp.array([0.3, 0.6])).sum()))
    gradients = loss(parameters(name, 0.0))
    leaves = [np.asarray(a) for a in jax.tree.leaves(gradients)]
    assert all(np.all(np.isfinite(a)) for a in leaves)
    assert all(np.any(a != 0) for a in leaves)
    assert bool(leaves) == bool(schedule.endpoints or schedule.has_interior)


def test_declared_endpoints_are_parameters_that_fix_the_ends(name, x64):
    """`endpoints` names the parameters that move gamma(0) or gamma(1); the rest is interior."""
    schedule = build(name)
    params = parameters(name, 0.1)
    assert set(schedule.endpoints) <= set(params)
    assert schedule.has_interior == bool(set(params) - set(schedule.endpoints))
    if not schedule.endpoints:
        return
    ends = jax.jit(jax.jacrev(lambda p: schedule.apply({"params": p}, jnp.array([0.0, 1.0]))))
    jacobian = ends(params)
    for parameter, value in jacobian.items():
        moved = max(float(jnp.abs(a).max()) for a in jax.tree.leaves(value))
        # The renormalised ends do not depend on the interior, to float64 rounding of sums near 20.
        assert moved > 0.5 if parameter in schedule.endpoints else moved < 1e-10, parameter


def test_closed_form_fixed_linear(x64):
    gamma, params = gamma_fn("fixed_linear", 1.0)
    t = np.linspace(0, 1, 7)
    np.testing.assert_allclose(gamma(jnp.asarray(t)), GAMMA_MIN + (GAMMA_MAX - GAMMA_MIN) * t, rtol=1e-14)
    assert not params


@pytest.mark.parametrize("w", [4.0, -4.0])
def test_closed_form_learned_scalar(w, x64):
    t = np.linspace(0, 1, 7)
    params = {"b": jnp.array(-3.0), "w": jnp.array(w)}
    gamma = build("learned_scalar").apply({"params": params}, jnp.asarray(t))
    np.testing.assert_allclose(gamma, -3.0 + 4.0 * t, rtol=1e-14)


def sigmoid(a):
    return 1.0 / (1.0 + np.exp(-a))


def dense(params, h):
    return h @ np.abs(params["kernel"]) + params.get("bias", 0.0)


def test_closed_form_monotone_network(x64):
    gamma, p = gamma_fn("monotone_network", 1.0)

    def g(t):
        h = dense(p["l1"], np.atleast_1d(t)[:, None])
        return (h + dense(p["l3"], sigmoid(dense(p["l2"], h))))[:, 0]

    t = np.linspace(0, 1, 7)
    shape = (g(t) - g(0.0)) / (g(1.0) - g(0.0))
    expected = p["gamma_0"] + (p["gamma_1"] - p["gamma_0"]) * shape
    np.testing.assert_allclose(gamma(jnp.asarray(t)), expected, rtol=1e-12, atol=1e-12)
    assert p["l2"]["kernel"].shape == (1, HIDDEN)


def test_closed_form_monotone_network_released(x64):
    gamma, p = gamma_fn("monotone_network_released", 1.0)
    t = np.linspace(0, 1, 7)
    h = 2.0 * sigmoid(dense(p["l2"], 2.0 * (t[:, None] - 0.5))) - 1.0
    expected = (dense(p["l1"], t[:, None]) + dense(p["l3"], h) / HIDDEN)[:, 0]
    np.testing.assert_allclose(gamma(jnp.asarray(t)), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("fixed", FIXED)
def test_the_inverse_of_a_fixed_schedule(fixed, x64):
    schedule = build(fixed)
    t = jnp.linspace(0.0, 1.0, 33)
    # 1e-16 of gamma = 13, over slopes of 10 and more, relative to times of t_min at least.
    np.testing.assert_allclose(schedule.inverse(schedule(t)), t, atol=1e-14)
    assert not schedule.endpoints and not schedule.has_interior


@pytest.mark.parametrize("path", PATHS.names())
def test_closed_form_linear_beta(path, x64):
    """alpha = e^(-B / 2) on every path; ln expm1(B) and 2 ln(2 sinh(B / 2)) on those of an SDE."""
    schedule = linear_beta(path)
    t = np.geomspace(1e-8, 1.0, 50)
    gamma, slope = oracles.linear_beta_gamma(path, t)
    at = schedules.at(schedule, jnp.asarray(t))
    np.testing.assert_allclose(at.gamma, gamma, rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(at.dgamma_dt, slope, rtol=1e-13)
    alpha, _ = oracles.ALPHA_SIGMA[path](np.asarray(at.gamma))
    # 1e-16 of gamma = 37.
    np.testing.assert_allclose(alpha, np.exp(-0.5 * oracles.linear_beta(t)[1]), rtol=1e-13)
    assert schedule.gamma_min == -np.inf == schedule(jnp.zeros(()))
    np.testing.assert_allclose(schedule.gamma_max, gamma[-1], rtol=1e-14)


@pytest.mark.parametrize("path", ["variance_preserving", "sub_variance_preserving"])
def test_linear_beta_is_the_sde(path, x64):
    """d log alpha / dt = -beta / 2, and g^2 = sigma^2 gamma' as the papers have it."""
    schedule, component = linear_beta(path), PATHS.build(PATHS.spec(path))
    t = np.linspace(0.01, 1.0, 40)
    beta, b = oracles.linear_beta(t)
    at = schedules.at(schedule, jnp.asarray(t))
    np.testing.assert_allclose(at.dgamma_dt * component.dlogalpha_dgamma(at.gamma), -0.5 * beta, rtol=1e-12)
    g2 = component.alpha_sigma(at.gamma)[1] ** 2 * at.dgamma_dt
    # beta, and beta (1 - e^(-2 B)) of 2011.13456, section 3.4.
    np.testing.assert_allclose(
        g2, beta * (1.0 if path == "variance_preserving" else -np.expm1(-2 * b)), rtol=1e-12
    )


@pytest.mark.parametrize("path", PATHS.names())
def test_linear_beta_keeps_its_digits_at_small_times(path):
    """In float32, from where B is 1e-11 of 1."""
    schedule = linear_beta(path)
    t = np.geomspace(1e-10, 1.0, 101).astype(np.float32)
    at = schedules.at(schedule, jnp.asarray(t))
    gamma, slope = oracles.linear_beta_gamma(path, t.astype(float))
    # Some ulps of gamma, up to 50, and 4 relative ones of B before its logarithm.
    np.testing.assert_allclose(at.gamma, gamma, rtol=4 * EPS32, atol=16 * EPS32)
    np.testing.assert_allclose(at.dgamma_dt, slope, rtol=16 * EPS32)
    # An ulp of gamma is as much of B.
    np.testing.assert_allclose(schedule.inverse(at.gamma), t, rtol=2 * 50 * EPS32)
    assert np.all(np.diff(at.gamma) > 0)


@pytest.mark.parametrize(
    "options", [{"beta_min": 0.1}, {"beta_min": 1.0, "beta_max": 1.0}, {"beta_min": 0.0}]
)
def test_linear_beta_from_t_min(options, x64):
    """The part [t_min, 1] of the schedule, stretched to [0, 1]; also for beta constant, or from 0."""
    whole = linear_beta("variance_preserving", **options)
    part = linear_beta("variance_preserving", t_min=0.01, **options)
    t = jnp.linspace(0.0, 1.0, 17)
    at, expected = schedules.at(part, t), schedules.at(whole, 0.01 + 0.99 * t)
    np.testing.assert_allclose(at.gamma, expected.gamma, rtol=1e-13)
    np.testing.assert_allclose(at.dgamma_dt, 0.99 * expected.dgamma_dt, rtol=1e-13)
    np.testing.assert_allclose(part.inverse(at.gamma), t, atol=1e-14)
    np.testing.assert_allclose(part.gamma_min, whole(jnp.array(0.01)), rtol=1e-14)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta_min": -0.1}, "beta_min is -0.1: give 0 or more"),
        ({"beta_min": 30.0}, "beta_min 30.0 is above beta_max 20.0"),
        ({"beta_min": 0.0, "beta_max": 0.0}, "beta_max is 0.0: give a positive number"),
        ({"t_min": 1.0}, "t_min is 1.0"),
        ({"t_min": -0.1}, "t_min is -0.1"),
        ({"beta_min": float("nan")}, "beta_min is nan"),
    ],
)
def test_options_of_linear_beta(options, message):
    with pytest.raises(UserError, match=f"schedule 'linear_beta': {message}") as error:
        linear_beta("variance_preserving", **options)
    assert "\n" not in str(error.value)
