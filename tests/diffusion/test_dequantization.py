"""Every dequantization on every path: log_q is the density of z, and its terms are their closed forms."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import oracles

from jvdm.core.errors import UserError
from jvdm.diffusion import losses
from jvdm.diffusion.dequantization import (
    DEQUANTIZATIONS,
    TruncatedNormal,
    UniformDequantization,
    Variational,
)
from jvdm.diffusion.gaussian import coefficients
from jvdm.diffusion.paths import PATHS
from jvdm.diffusion.transforms import SCALING

EPS32 = np.finfo(np.float32).eps
GAMMA_0, LEVELS = -13.3, 256
TAU = 3.0187  # of MATH.md section 2
SHAPE = (2, 3, 1)
DISCRETE = [name for name in DEQUANTIZATIONS.names() if DEQUANTIZATIONS.component(name).discrete]
CASES = list(itertools.product(DISCRETE, PATHS.names()))
WITH_ENTROPY = [TruncatedNormal, Variational]


def start(path, gamma=GAMMA_0, dtype=jnp.float32):
    """[1, 1, 1, 1] coefficients on a path by name."""
    gamma = jnp.full((1, 1, 1, 1), gamma, dtype)
    return coefficients(PATHS.build(PATHS.spec(path)), gamma, jnp.ones_like(gamma))


def build(name, **options):
    return DEQUANTIZATIONS.build(DEQUANTIZATIONS.spec(name, **options))


def start_of(component, path, dtype=jnp.float32):
    return start(path, max(GAMMA_0, component.start_gamma), dtype)


def draw(component, at, key, n, shape=SHAPE, num_levels=LEVELS):
    """[n, ...] of independent keys."""
    one, levels = jax.tree.map(lambda a: a[0], at), jnp.zeros(shape, jnp.uint8 if num_levels else jnp.float32)
    return jax.jit(jax.vmap(lambda key: component.draw(key, levels, one, num_levels)))(
        jax.random.split(key, n)
    )


def support(component, at, num_levels):
    """The ends of the noise of one dimension."""
    if isinstance(component, TruncatedNormal):
        low, high = component.bounds(jnp.zeros((1, 1, 1, 1), jnp.uint8), at, num_levels, SCALING)
        return float(low.ravel()[0]), float(high.ravel()[0])
    return (-9.0, 9.0) if isinstance(component, Variational) else (0.0, 1.0)


@pytest.mark.parametrize("level", [0, 3, 16])
@pytest.mark.parametrize(("name", "path"), CASES)
def test_log_q_is_the_density_of_z(name, path, level, x64):
    """Integrated over z, it is 1; for a range of gamma where a cell is a few deviations wide."""
    component, num_levels = build(name), 17
    at = start(path, -5.0, jnp.float64)
    e = np.linspace(*support(component, at, num_levels), 4001)[:, None, None, None]
    levels = jnp.full(e.shape, level, jnp.uint8)
    z, log_q, _ = component(levels, jnp.asarray(e), at, num_levels)
    assert np.all(np.diff(z.ravel()) > 0)
    # Trapezium rule of a normal density: 1 / 12 step^2 times the jump of its slope, 1e-6 where it is cut off.
    # The centre of a level is formed in float32, but only shifts z; log q does not see it.
    np.testing.assert_allclose(np.trapezoid(np.exp(log_q), z.ravel()), 1.0, atol=2e-6)


@pytest.mark.parametrize(("name", "path"), CASES)
def test_z_lies_around_its_level(name, path, key):
    component = build(name)
    at = start_of(component, path)
    levels = jnp.asarray(np.random.default_rng(0).integers(0, LEVELS, (64, *SHAPE)), jnp.uint8)
    e = draw(component, at, key, 64)
    z, log_q, log_decoder = component(levels, e, at, LEVELS)
    assert z.shape == levels.shape and log_q.shape == log_decoder.shape == (64,)
    assert z.dtype == log_q.dtype == log_decoder.dtype == jnp.float32
    alpha = 1.0 if name == "uniform_released" else np.asarray(at.alpha, np.float64)
    distance = np.asarray(z, np.float64) / alpha - oracles.encode(levels, LEVELS)
    # z is rounded to an ulp of 1.
    assert np.abs(distance).max() < (2.0 if name == "variational" else 1.0) / LEVELS + 4 * EPS32
    assert np.abs(distance).max() > 0.5 / LEVELS


@pytest.mark.parametrize(("name", "path"), CASES)
def test_densities_of_dimensions_add_up(name, path, key):
    component = build(name)
    at = start_of(component, path)
    levels = jnp.asarray(np.random.default_rng(0).integers(0, LEVELS, (5, *SHAPE)), jnp.uint8)
    e = draw(component, at, key, 5)
    whole = component(levels, e, at, LEVELS)
    single = component(levels.reshape(-1, 1, 1, 1), e.reshape(-1, 1, 1, 1), at, LEVELS)
    np.testing.assert_array_equal(whole.z.ravel(), single.z.ravel())
    # Six numbers of at most 10.
    for a, b in ((whole.log_q, single.log_q), (whole.log_decoder, single.log_decoder)):
        np.testing.assert_allclose(a, b.reshape(5, -1).sum(-1), rtol=8 * EPS32, atol=60 * EPS32)
    assert np.ptp(whole.log_q) > 0 or name.startswith("uniform")


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (5, *SHAPE)])
@pytest.mark.parametrize("name", DISCRETE)
def test_scales_broadcast(name, shape, key):
    """A scale for each pixel, equal or not, is as good as one for all."""
    component = build(name)
    levels = jnp.full((5, *SHAPE), 7, jnp.uint8)
    one = start_of(component, "variance_preserving")
    e = draw(component, one, key, 5)
    at = jax.tree.map(lambda a: jnp.broadcast_to(a, shape), one)
    expected, value = component(levels, e, one, LEVELS), component(levels, e, at, LEVELS)
    for a, b in zip(expected, value, strict=True):
        np.testing.assert_allclose(a, b, rtol=4 * EPS32)


@pytest.mark.parametrize("path", PATHS.names())
def test_tau(path, x64):
    """alpha_0 / (K sigma_0), the published number."""
    at = start(path, dtype=jnp.float64)
    low, high = TruncatedNormal().bounds(jnp.zeros((2, *SHAPE), jnp.uint8), at, LEVELS, SCALING)
    assert low.shape == high.shape == (2, *SHAPE)
    np.testing.assert_array_equal(low, -high)
    np.testing.assert_allclose(high, jnp.broadcast_to(at.alpha / (LEVELS * at.sigma), high.shape), rtol=1e-12)
    assert round(float(high.ravel()[0]), 4) == TAU


@pytest.mark.parametrize("path", PATHS.names())
def test_truncated_normal_stays_within_its_cell(path, key):
    """Also where most of the normal is cut off: what is cut off is not clipped onto the edge."""
    for gamma, tau in ((GAMMA_0, TAU), (-10.0, 0.5797), (-8.0, 0.2133)):
        at = start(path, gamma)
        e = np.asarray(draw(TruncatedNormal(), at, key, 4096, (4, 4, 1)), np.float64)
        assert np.abs(e).max() < math.exp(-gamma / 2) / LEVELS * (1 + 2 * EPS32)
        assert round(math.exp(-gamma / 2) / LEVELS, 4) == tau
        # The standard error of a share of n is at most 0.5 / sqrt(n).
        inside = math.erf(0.5 * tau / math.sqrt(2)) / math.erf(tau / math.sqrt(2))
        assert abs(np.mean(np.abs(e) < 0.5 * tau) - inside) < 4 * 0.5 / math.sqrt(e.size)
        z = TruncatedNormal()(jnp.full(e.shape, 200, jnp.uint8), jnp.asarray(e, jnp.float32), at, LEVELS).z
        logits = losses.decoder_logits(z[:256], at.alpha, at.gamma, LEVELS)
        # Rounding may put the last 1e-7 of 4e-3 of a cell over its edge.
        assert np.mean(np.argmax(logits, -1) == 200) > 0.999


def entropy(component, sigma):
    """Nats per dimension: the closed forms of MATH.md section 2."""
    normal = 0.5 * (1 + math.log(2 * math.pi * sigma**2))
    if component is Variational:
        return normal
    tau = math.exp(-GAMMA_0 / 2) / LEVELS
    mass = math.erf(tau / math.sqrt(2))
    return normal + math.log(mass) - tau * math.exp(-(tau**2) / 2) / (math.sqrt(2 * math.pi) * mass)


@pytest.mark.parametrize("path", PATHS.names())
@pytest.mark.parametrize("component", WITH_ENTROPY)
def test_sampled_and_analytic_entropy(component, path, key):
    at = start(path)
    n, shape = 4096, (4, 4, 1)
    levels = jnp.full((n, *shape), 100, jnp.uint8)
    e = draw(component(), at, key, n, shape)
    sampled = -np.asarray(component()(levels, e, at, LEVELS).log_q, np.float64) / 16
    analytic = -np.asarray(component(analytic_entropy=True)(levels, e, at, LEVELS).log_q, np.float64) / 16
    expected = entropy(component, float(at.sigma.ravel()[0]))
    # Sums of 16 numbers near 6; erf is good to a few ulps.
    np.testing.assert_allclose(analytic, expected, rtol=16 * EPS32)
    standard_error = sampled.std() / math.sqrt(n)
    assert abs(sampled.mean() - expected) < 3 * standard_error
    # sd of e^2 / 2 is 1 / sqrt 2 at most: the comparison would see a tenth of the truncation's 0.03.
    assert standard_error < 0.003
    assert entropy(Variational, 1.0) - entropy(TruncatedNormal, 1.0) > 0.01


@pytest.mark.parametrize("decoder", list(losses.DECODERS))
@pytest.mark.parametrize("path", PATHS.names())
def test_the_variational_decoder_is_that_of_the_bound(path, decoder, key):
    component, at = Variational(decoder=decoder), start(path)
    levels = jnp.asarray(np.random.default_rng(0).integers(0, LEVELS, (256, *SHAPE)), jnp.uint8)
    e = draw(component, at, key, 256)
    log_decoder = component(levels, e, at, LEVELS).log_decoder
    nats = losses.reconstruction(levels, e, at.gamma, LEVELS, losses.DECODERS[decoder](at.alpha))
    np.testing.assert_array_equal(log_decoder, -nats)
    # A softmax over levels at z_0 / alpha_0, which the released decoder divides by alpha_0 again.
    z = oracles.encode(levels, LEVELS) + np.exp(GAMMA_0 / 2) * np.asarray(e, np.float64)
    z /= float(at.alpha.ravel()[0]) if decoder == "idode_released" else 1.0
    logits = -0.5 * np.exp(-GAMMA_0) * (z[..., None] - oracles.encode(np.arange(LEVELS), LEVELS)) ** 2
    largest = logits.max(-1, keepdims=True)
    log_p = logits - largest - np.log(np.exp(logits - largest).sum(-1, keepdims=True))
    exact = np.take_along_axis(log_p, np.asarray(levels, int)[..., None], -1)[..., 0].reshape(256, -1).sum(-1)
    # Distances of 2 (x - v) / (K e^(gamma_0 / 2)) = 6 and more in the exponent, rounded twice.
    np.testing.assert_allclose(log_decoder, exact, rtol=2e-4, atol=2e-5)
    # 0.011 bits/dim, and more where alpha_0 is not 1: 1536 dimensions of sd 0.1.
    assert 0.003 < -float(log_decoder.mean()) / (6 * math.log(2)) < 0.04


@pytest.mark.parametrize("name", [name for name in DISCRETE if name != "variational"])
def test_other_dequantizations_tell_the_level(name, key):
    component, levels = build(name), jnp.zeros((3, *SHAPE), jnp.uint8)
    at = start_of(component, "straight")
    assert not np.any(component(levels, draw(component, at, key, 3), at, LEVELS).log_decoder)


@pytest.mark.parametrize("path", PATHS.names())
def test_uniform_density(path, key):
    """-D ln(2 alpha / K): with alpha of where the ODE starts, and as released without."""
    at = start(path, -2.0)  # where alpha is far from 1
    levels = jnp.asarray(np.random.default_rng(0).integers(0, LEVELS, (8, *SHAPE)), jnp.uint8)
    u = draw(UniformDequantization(), at, key, 8)
    alpha = float(oracles.ALPHA_SIGMA[path](np.array(-2.0))[0])
    z, log_q, _ = build("uniform")(levels, u, at, LEVELS)
    released = build("uniform_released")(levels, u, at, LEVELS)
    np.testing.assert_allclose(log_q, -6 * math.log(2 * alpha / LEVELS), rtol=8 * EPS32)
    np.testing.assert_allclose(released.log_q, 6 * 7 * math.log(2), rtol=8 * EPS32)
    exact = 2 * (np.asarray(levels, np.float64) + np.asarray(u)) / LEVELS - 1
    # Rounded to half an ulp of 256, 1.5e-5, of 128.
    np.testing.assert_allclose(released.z, exact, atol=4e-7)
    np.testing.assert_allclose(z, alpha * exact, atol=4e-7)


def test_start_of_the_ode():
    assert build("uniform").start_gamma == build("uniform_released").start_gamma == -11.8
    assert build("uniform", start_gamma=-9.0).start_gamma == -9.0
    assert build("truncated_normal").start_gamma == build("variational").start_gamma == -math.inf


@pytest.mark.parametrize("name", DISCRETE)
def test_noise_is_that_of_the_example(name, key):
    """It depends on the example's key alone."""
    component = build(name)
    at = start_of(component, "straight")
    many, few = draw(component, at, key, 5), draw(component, at, key, 2)
    keys = jax.random.split(key, 5)
    levels = jnp.zeros(SHAPE, jnp.uint8)
    one = component.draw(keys[3], levels, jax.tree.map(lambda a: a[0], at), LEVELS)
    assert many.shape == (5, *SHAPE) and few.shape == (2, *SHAPE) and many.dtype == jnp.float32
    # An inverse error function may be fused differently for another batch: some ulps of 3.
    np.testing.assert_allclose(many[3], one, rtol=1e-5, atol=1e-6)
    assert np.ptp(np.asarray(many).reshape(5, -1), axis=0).min() > 1e-3


@pytest.mark.parametrize("path", PATHS.names())
def test_continuous_data_are_scaled_to_the_start(path, key):
    """z = alpha x of density p(x) / alpha^D, and nothing random."""
    component, at = build("none"), start(path, -2.0)
    x = jax.random.normal(key, (5, *SHAPE))
    e = draw(component, at, key, 5, num_levels=0)
    z, log_q, log_decoder = component(x, e, at, 0)
    assert e.shape == x.shape and not np.any(e) and not np.any(log_decoder)
    alpha = oracles.ALPHA_SIGMA[path](np.array(-2.0))[0]
    np.testing.assert_allclose(z, alpha * x, rtol=4 * EPS32)
    np.testing.assert_allclose(log_q, np.full(5, -6 * np.log(alpha)), rtol=16 * EPS32)


def test_an_unknown_decoder_is_an_error():
    with pytest.raises(UserError, match="choices: exact, idode_released") as error:
        build("variational", decoder="idode")
    assert "\n" not in str(error.value)
