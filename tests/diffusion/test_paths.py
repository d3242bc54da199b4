"""Every path: alpha and sigma belong to gamma, and the derivative to alpha."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.diffusion.paths import PATHS

GAMMA = np.linspace(-20.0, 20.0, 401, dtype=np.float32)
EPS32 = np.finfo(np.float32).eps


WITH_CUMULATIVE = [name for name in PATHS.names() if PATHS.component(name).alpha2_cumulative is not None]


@pytest.fixture(params=PATHS.names())
def path(request):
    return PATHS.build(PATHS.spec(request.param))


@pytest.fixture(params=WITH_CUMULATIVE)
def with_cumulative(request):
    return PATHS.build(PATHS.spec(request.param))


def test_gamma_is_log_noise_to_signal(path):
    alpha, sigma = (np.asarray(a, np.float64) for a in path.alpha_sigma(jnp.asarray(GAMMA)))
    # The log-sigmoid has a relative error of an ulp or two of a number up to 20, exp one more ulp.
    np.testing.assert_allclose(2 * np.log(sigma / alpha), GAMMA, rtol=4 * EPS32, atol=8 * EPS32)


def test_alpha_falls_and_sigma_rises_and_neither_vanishes(path):
    alpha, sigma = (np.asarray(a) for a in path.alpha_sigma(jnp.asarray(GAMMA)))
    # Near 1 neighbours may round to the same number, so not strictly.
    assert np.all(np.diff(alpha) <= 0)
    assert np.all(np.diff(sigma) >= 0)
    assert np.all(alpha > 0)
    assert np.all(sigma > 0)
    assert alpha[0] > 0.9999 > 1e-4 > alpha[-1]


@pytest.mark.parametrize("shape", [(), (3,), (3, 1, 1, 1), (2, 3, 1, 2)])
def test_shape_and_dtype_of_gamma(path, shape):
    functions = (path.log_alpha, path.log_sigma, path.dlogalpha_dgamma, path.gamma_of_log_alpha)

    def every(gamma):
        return (
            *path.alpha_sigma(gamma),
            *path.velocity(gamma)[:4],
            *(function(gamma) for function in functions),
        )

    values = jax.eval_shape(every, jax.ShapeDtypeStruct(shape, jnp.float32))
    assert all(a.shape == shape and a.dtype == jnp.float32 for a in values)


def test_log_sigma(path):
    log_sigma = np.asarray(path.log_sigma(jnp.asarray(GAMMA)))
    with jax.enable_x64(True):
        exact = np.asarray(path.log_sigma(jnp.asarray(GAMMA, jnp.float64)))
        sigma = np.asarray(path.alpha_sigma(jnp.asarray(GAMMA, jnp.float64))[1])
    np.testing.assert_allclose(exact, np.log(sigma), atol=1e-13)
    # Relative, also where sigma is almost 1: the prior term needs the digits of log sigma.
    np.testing.assert_allclose(log_sigma, exact, rtol=8 * EPS32)


def test_log_alpha(path):
    log_alpha = np.asarray(path.log_alpha(jnp.asarray(GAMMA)))
    with jax.enable_x64(True):
        exact = np.asarray(path.log_alpha(jnp.asarray(GAMMA, jnp.float64)))
        alpha = np.asarray(path.alpha_sigma(jnp.asarray(GAMMA, jnp.float64))[0])
    np.testing.assert_allclose(exact, np.log(alpha), atol=1e-13)
    # Relative, also where alpha is almost 1: a schedule that is given by log alpha needs its digits.
    np.testing.assert_allclose(log_alpha, exact, rtol=8 * EPS32)


def test_gamma_of_log_alpha_is_the_inverse(path):
    """From 1e-9, where alpha is 1 in float32, to 10: as B / 2 of an SDE has them."""
    log_alpha = -np.geomspace(1e-9, 10.0, 101)
    recovered = path.log_alpha(path.gamma_of_log_alpha(jnp.asarray(log_alpha, jnp.float32)))
    # gamma, up to 40, is rounded to 2e-6, and log alpha is at most proportional to e^gamma.
    np.testing.assert_allclose(recovered, log_alpha, rtol=1e-5)
    with jax.enable_x64(True):
        gamma = path.gamma_of_log_alpha(jnp.asarray(log_alpha))
        # 1e-14 of gamma likewise.
        np.testing.assert_allclose(path.log_alpha(gamma), log_alpha, rtol=1e-13)
    assert np.all(np.diff(gamma) > 0)


def test_the_end_without_noise(path):
    """gamma = -inf, where linear beta begins."""
    gamma = path.gamma_of_log_alpha(jnp.zeros(()))
    assert gamma == -jnp.inf == path.log_sigma(gamma)
    alpha, sigma = path.alpha_sigma(gamma)
    assert alpha == 1.0 and sigma == 0.0 and path.log_alpha(gamma) == 0.0
    assert path.dlogalpha_dgamma(gamma) == 0.0


def test_dlogalpha_dgamma_is_the_derivative(path, x64):
    gamma = jnp.asarray(GAMMA, jnp.float64)
    expected = jax.vmap(jax.grad(lambda g: jnp.log(path.alpha_sigma(g)[0])))(gamma)
    # Autodiff divides by alpha >= 4e-5 in float64: 1e-11 is far above its rounding.
    np.testing.assert_allclose(path.dlogalpha_dgamma(gamma), expected, rtol=1e-11, atol=1e-18)


def test_gradients_are_finite_at_both_ends(path):
    slopes = jax.vmap(jax.grad(lambda g: sum(path.alpha_sigma(g)) + path.log_sigma(g)))(jnp.asarray(GAMMA))
    assert np.all(np.isfinite(slopes))
    assert np.any(slopes != 0)


def test_variance_preserving_closed_form(x64):
    alpha, sigma = PATHS.build(PATHS.spec("variance_preserving")).alpha_sigma(jnp.asarray(GAMMA, jnp.float64))
    np.testing.assert_allclose(alpha**2 + sigma**2, 1.0, rtol=1e-14)
    np.testing.assert_allclose(alpha, (1.0 + np.exp(GAMMA.astype(np.float64))) ** -0.5, rtol=1e-14)


def test_straight_closed_form(x64):
    gamma = jnp.asarray(GAMMA, jnp.float64)
    alpha, sigma = PATHS.build(PATHS.spec("straight")).alpha_sigma(gamma)
    np.testing.assert_allclose(alpha + sigma, 1.0, rtol=1e-14)
    np.testing.assert_allclose(alpha, 1.0 / (1.0 + np.exp(GAMMA.astype(np.float64) / 2)), rtol=1e-14)


def test_sub_variance_preserving_closed_form(x64):
    gamma = GAMMA.astype(np.float64)
    alpha, sigma = PATHS.build(PATHS.spec("sub_variance_preserving")).alpha_sigma(jnp.asarray(gamma))
    np.testing.assert_allclose(alpha**2 + sigma, 1.0, rtol=1e-14)
    exact = (np.sqrt(np.exp(gamma) + 4.0) - np.exp(gamma / 2)) / 2
    # Two numbers of e^(gamma / 2) cancel to alpha, which is as much below 1.
    assert np.all(np.abs(alpha / exact - 1.0) < 1e-15 * (2.0 + np.exp(gamma)))


def test_the_sub_variance_preserving_path_has_less_noise(x64):
    """At the same alpha, that is at every time of the SDE of the same drift (2011.13456, section 3.4)."""
    log_alpha = -jnp.geomspace(1e-6, 5.0, 50)
    sigma = {
        name: path.alpha_sigma(path.gamma_of_log_alpha(log_alpha))[1]
        for name, path in ((name, PATHS.build(PATHS.spec(name))) for name in PATHS.names())
    }
    # 1 - alpha^2 of either path.
    np.testing.assert_allclose(
        sigma["sub_variance_preserving"], sigma["variance_preserving"] ** 2, rtol=1e-13
    )


def test_velocity_is_the_general_formula(path, x64):
    """Equation (5): drift over 1/2 sigma is eps - k z, and its standard deviation n is divided out."""
    gamma = jnp.linspace(-13.3, 10.0, 101, dtype=jnp.float64)
    alpha, sigma = path.alpha_sigma(gamma)
    k = -2 * path.dlogalpha_dgamma(gamma) / sigma
    n = jnp.sqrt((1 - k * sigma) ** 2 + (k * alpha) ** 2)
    v = path.velocity(gamma)
    # 1 - k sigma is alpha^2 >= 4.5e-5 or twice as much, from numbers near 1: 2e-16 / 4.5e-5, a few times.
    expected = (n, k, (1 - k * sigma) / n, -k * alpha / n)
    for name, value in zip(v._fields[:4], expected, strict=True):
        np.testing.assert_allclose(getattr(v, name), value, rtol=2e-11, err_msg=name)
    np.testing.assert_allclose(v.eps_coeff**2 + v.x_coeff**2, 1.0, rtol=1e-14)
    x, eps = np.random.default_rng(0).normal(size=(2, len(gamma)))
    # The affine relation itself, with the cancellation of scale F against skip z.
    recovered = v.scale * (v.eps_coeff * eps + v.x_coeff * x) + v.skip * (alpha * x + sigma * eps)
    np.testing.assert_allclose(recovered, eps, atol=1e-14)


def test_velocity_keeps_its_digits(path):
    """In float32 as in float64, up to the largest gamma that is used."""
    gamma = np.linspace(-20.0, 10.0, 301, dtype=np.float32)
    value = path.velocity(jnp.asarray(gamma))
    with jax.enable_x64(True):
        exact = path.velocity(jnp.asarray(gamma, jnp.float64))
    for name in value._fields[:4]:
        # exp of a log alpha of up to 10, rounded to an ulp of that.
        np.testing.assert_allclose(getattr(value, name), getattr(exact, name), rtol=16 * EPS32, err_msg=name)


def test_alpha2_cumulative_is_the_integral_of_alpha2(with_cumulative, x64):
    path, gamma = with_cumulative, jnp.asarray(GAMMA, jnp.float64)
    slope = jax.vmap(jax.grad(path.alpha2_cumulative))(gamma)
    # The straight path's slope is a difference of two terms of size alpha: 1e-16 / alpha, alpha >= 4e-5.
    np.testing.assert_allclose(slope, path.alpha_sigma(gamma)[0] ** 2, rtol=1e-10)


@pytest.mark.parametrize(("name", "z"), [("variance_preserving", 13.293), ("straight", 11.299)])
def test_the_weight_of_published_ranges(name, z, x64):
    """Z of 2305.03935 for gamma in [-13.3, 5], as the range's integral of alpha^2."""
    path = PATHS.build(PATHS.spec(name))
    low, high = path.alpha2_cumulative(jnp.array([-13.3, 5.0]))
    assert round(float(high - low), 3) == z
    gamma = jnp.linspace(-13.3, 5.0, 20_001)
    # Trapezium rule, step 1e-3: its error is step^2 / 12 times slopes below 1.
    integral = np.trapezoid(path.alpha_sigma(gamma)[0] ** 2, gamma)
    np.testing.assert_allclose(high - low, integral, atol=1e-7)


def check_quantile(path, dtype):
    low, high = (jnp.asarray(g, dtype) for g in (-13.3, 5.0))
    gamma = jnp.linspace(low, high, 301, dtype=dtype)
    value = path.alpha2_cumulative(gamma)
    recovered = path.alpha2_quantile(value, low, high)
    assert recovered.dtype == gamma.dtype and recovered.shape == gamma.shape
    # The value is rounded relative to its parts, which are at most |gamma| in all and of order alpha where
    # alpha is small, and its slope is alpha^2. Bisection ends at 18.3 / 2^50.
    alpha, eps = np.asarray(path.alpha_sigma(gamma)[0], np.float64), np.finfo(dtype).eps
    tolerance = 4 * eps * (1.0 + np.abs(gamma) + 1.0 / alpha) + 18.3 / 2**50
    error = np.abs(np.asarray(recovered, np.float64) - np.asarray(gamma, np.float64))
    assert np.all(error <= tolerance), error.max()
    assert low <= recovered.min() and recovered.max() <= high
    # Beyond the ends, as by a rounded sum, the ends.
    outside = path.alpha2_quantile(value[jnp.array([0, -1])] + jnp.asarray([-1e-3, 1e-3], dtype), low, high)
    np.testing.assert_allclose(outside, [-13.3, 5.0], rtol=8 * eps)


def test_alpha2_quantile_inverts_the_cumulative(with_cumulative):
    check_quantile(with_cumulative, np.float32)


def test_alpha2_quantile_in_float64(with_cumulative, x64):
    check_quantile(with_cumulative, np.float64)
