"""Every path: alpha and sigma belong to gamma, and the derivative to alpha."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvdm.paths import PATHS

GAMMA = np.linspace(-20.0, 20.0, 401, dtype=np.float32)
EPS32 = np.finfo(np.float32).eps


@pytest.fixture(params=PATHS.names())
def path(request):
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
    gamma = jnp.full(shape, 0.7)
    values = [*path.alpha_sigma(gamma), path.log_sigma(gamma), path.dlogalpha_dgamma(gamma)]
    assert all(a.shape == shape and a.dtype == jnp.float32 for a in values)


def test_log_sigma(path):
    log_sigma = np.asarray(path.log_sigma(jnp.asarray(GAMMA)))
    with jax.enable_x64(True):
        exact = np.asarray(path.log_sigma(jnp.asarray(GAMMA, jnp.float64)))
        sigma = np.asarray(path.alpha_sigma(jnp.asarray(GAMMA, jnp.float64))[1])
    np.testing.assert_allclose(exact, np.log(sigma), atol=1e-13)
    # Relative, also where sigma is almost 1: the prior term needs the digits of log sigma.
    np.testing.assert_allclose(log_sigma, exact, rtol=8 * EPS32)


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
