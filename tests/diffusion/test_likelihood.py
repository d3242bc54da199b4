"""Exact log-density and its bounds against closed forms, and on discrete data of known probability."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import known
from helpers.known import NUM_DIMS, ORACLES, PATH_NAMES, SHAPE

from jvdm.diffusion import likelihood
from jvdm.diffusion.dequantization import DEQUANTIZATIONS
from jvdm.diffusion.divergence import ExactTrace, Hutchinson
from jvdm.diffusion.normal import Normal
from jvdm.diffusion.solvers import Adaptive

EPS32 = np.finfo(np.float32).eps
BITS = NUM_DIMS * math.log(2)  # nats in one bit/dim


def test_normal_log_density():
    z = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    for log_sigma in (np.float32(0.3), np.full(SHAPE, -0.2, np.float32), np.full((1, 1, 1), 2.0, np.float32)):
        value = Normal(jnp.zeros(()), jnp.asarray(log_sigma)).log_density(jnp.asarray(z)).sum()
        s = np.exp(np.broadcast_to(log_sigma, SHAPE).astype(float))
        exact = np.sum(-0.5 * (z / s) ** 2 - np.log(s) - 0.5 * math.log(2 * math.pi))
        # Sums of a dozen numbers below 10.
        np.testing.assert_allclose(value, exact, rtol=1e-6)


@pytest.mark.parametrize("trace", [ExactTrace(), Hutchinson(probes=3)], ids=["exact", "hutchinson"])
def test_a_linear_drift(trace, key):
    """dz/dt = r z from t = 0.25: log p = log N(z e^(0.75 r); 0, sigma_1^2) + 0.75 sum r, with any sigma_1."""
    rates = np.array([0.5, -1.0, 2.0, 0.1], np.float32).reshape(SHAPE)
    z = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    probes = trace.draw(key, SHAPE)
    result = jax.jit(
        lambda z: likelihood.integrate(
            likelihood.batched_field(lambda shared, z, t, context: rates[None] * z, trace)((), (), probes),
            z,
            num_probes=len(probes),
            start=jnp.float32(0.25),
            prior=Normal(jnp.zeros(()), jnp.log(jnp.float32(0.7))),
            solver=Adaptive(tolerance=1e-6),
        )
    )(jnp.asarray(z))
    assert bool(result.ok)
    z_1 = z.astype(float) * np.exp(0.75 * rates)
    exact = np.sum(-0.5 * (z_1 / 0.7) ** 2 - math.log(0.7) - 0.5 * math.log(2 * math.pi))
    # The solver's tolerance times the steps, in units of 1 + |z_1|, and the slope |z_1| / 0.7^2 < 10.
    np.testing.assert_allclose(result.prior, exact, atol=1e-4)
    # The Jacobian is diagonal, so that every probe gives its trace; in nats, not per dimension.
    np.testing.assert_allclose(result.trace, 0.75 * rates.sum(), atol=1e-5)
    assert result.trace.shape == ((3,) if isinstance(trace, Hutchinson) else (1,))


def test_the_field_of_a_batch_is_that_of_its_examples(key):
    """Evaluated at once under vmap, or alone: the same derivative, with time and context of its own."""
    trace, b = Hutchinson(probes=3), 4

    def drift(shared, z, t, context):
        assert z.ndim == 1 + len(SHAPE) and t.ndim == 1, "a network gets a batch, whatever vmaps it"
        return shared * jnp.sin(z) * t[:, None, None, None] + context[:, None, None, None] * jnp.sum(
            z**2, axis=(1, 2, 3), keepdims=True
        )

    z = jax.random.normal(key, (b, *SHAPE))
    t, context = jnp.linspace(0.1, 0.7, b), jnp.arange(1.0, 1.0 + b)
    probes = jax.vmap(lambda key: trace.draw(key, SHAPE))(jax.random.split(key, b))
    field = likelihood.batched_field(drift, trace)
    shared, start = jnp.float32(2.0), jnp.zeros(3)

    def one(z, t, context, probes):
        return field(shared, context, probes)(t, (z, start))

    together = jax.vmap(one)(z, t, context, probes)
    same_time = jax.vmap(one, in_axes=(0, None, 0, 0))(z, t[1], context, probes)
    without = jax.vmap(lambda z, t, c: likelihood.batched_field(drift, None)(shared, c, start)(t, z))(
        z, t, context
    )
    for i in range(b):

        def alone(z, t, i=i):
            return drift(shared, z[None], t[None], context[i : i + 1])[0]

        value, traces = trace(lambda z, alone=alone, i=i: alone(z, t[i]), z[i], probes[i])
        expected = value, traces / z[i].size
        for a, c, e in zip(together, one(z[i], t[i], context[i], probes[i]), expected, strict=True):
            # Sums of four terms below 30 in another order.
            np.testing.assert_allclose(a[i], e, rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(c, e, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(without[i], expected[0], rtol=1e-5, atol=1e-5)
    for a, e in zip(same_time, together, strict=True):
        np.testing.assert_allclose(a[1], e[1], rtol=1e-5, atol=1e-5)
        assert np.abs(a[0] - e[0]).max() > 1e-2


# Bounds from K samples ------------------------------------------------------------------------------------


def log_mean_exp(w):
    largest = w.max(-1, keepdims=True)
    return (largest + np.log(np.mean(np.exp(w - largest), -1, keepdims=True)))[..., 0]


@pytest.fixture
def log_w():
    """[5, 20] nats, as large as those of images."""
    return -7000.0 + 3.0 * np.random.default_rng(0).normal(size=(5, 20))


def test_one_exact_estimate_gives_the_importance_weighted_bound(log_w):
    bound, weights, gain = likelihood.importance_bound(log_w[..., None])
    # Float64: 1e-16 of 7000, some times.
    np.testing.assert_allclose(bound, log_mean_exp(log_w), atol=1e-11)
    relative = np.exp(log_w - log_w.max(-1, keepdims=True))
    np.testing.assert_allclose(weights, relative / relative.sum(-1, keepdims=True), rtol=1e-12)
    np.testing.assert_allclose(np.sum(weights * log_w, -1) + gain, bound, atol=1e-11)
    assert np.all(bound > log_w.mean(-1) + 1.0), "weights must differ for this to say something"
    # All weight on one, or equal weights: - log K, or nothing.
    assert np.all((gain < 0) & (gain > -math.log(20)))


def test_weights_of_any_kind_give_no_more(log_w):
    rng = np.random.default_rng(1)
    for scale in (0.0, 0.5, 5.0):
        scores = log_w + scale * rng.normal(size=log_w.shape)
        bound = likelihood.weigh(scores, log_w).bound
        assert np.all(bound <= log_mean_exp(log_w) + 1e-11)
        np.testing.assert_allclose(likelihood.weigh(scores + 3.0, log_w).bound, bound, atol=1e-11)
    flat = likelihood.weigh(np.zeros(log_w.shape), log_w)
    np.testing.assert_allclose(flat.bound, log_w.mean(-1), atol=1e-11)


@pytest.mark.parametrize("m", [1, 2, 5])
def test_one_sample_is_the_plain_mean(m):
    log_w = np.random.default_rng(0).normal(size=(7, 1, m))
    bound, weights, gain = likelihood.importance_bound(log_w)
    np.testing.assert_allclose(bound, log_w.mean(-1)[:, 0], atol=1e-15)
    np.testing.assert_array_equal(weights, 1.0)
    np.testing.assert_array_equal(gain, 0.0)


@pytest.mark.parametrize("m", [2, 3, 8])
@pytest.mark.parametrize("noise", [1.0, 2.0, 3.0])
def test_noisy_estimates_still_give_a_bound(noise, m):
    """And the log of a mean of noisy weights does not: the reason why estimates are split in halves."""
    rng, n, k = np.random.default_rng(0), 20_000, 20
    true = 0.5 * rng.normal(size=k)
    log_w = true[:, None] + noise * rng.normal(size=(n, k, m))
    truth = log_mean_exp(true)
    bound, weights, gain = likelihood.importance_bound(log_w)
    np.testing.assert_allclose(weights.sum(-1), 1.0, rtol=1e-12)
    assert np.all(gain <= 0)
    standard_error = bound.std() / math.sqrt(n)
    assert bound.mean() <= truth + 3 * standard_error
    # It loses no more than weights that pick a single sample.
    assert bound.mean() > true.mean() - math.log(k)
    plain = log_mean_exp(log_w.mean(-1))
    assert plain.mean() > truth + 20 * plain.std() / math.sqrt(n)


def test_noise_that_samples_share_costs_nothing():
    """As of probes that all samples of an image share, where the trace depends little on the sample."""
    rng, n, k = np.random.default_rng(0), 20_000, 20
    true = 0.5 * rng.normal(size=k)
    log_w = true[:, None] + 3.0 * rng.normal(size=(n, 1, 2))
    bound = likelihood.importance_bound(log_w).bound
    assert abs(bound.mean() - log_mean_exp(true)) < 3 * bound.std() / math.sqrt(n)


# Discrete data of known probability -----------------------------------------------------------------------

# Samples of images in all, and estimates of each one's trace: fewer where it is exact.
NUM = {"fine_mixture": 420, "gaussian": 160}
PROBES = {"fine_mixture": 28, "gaussian": 4}
# Errors must be small enough to see a gap of 0.012. The decoder's costs have heavy tails: of 420 images their
# mean has the error 0.09 / sqrt(420) = 0.0044, but its estimate is above 0.005 for 27 % of all seeds, above
# 0.008 for 3 %.
RESOLUTION = 0.008
# The third path with the data that compile faster.
CASES = [
    pytest.param("fine_mixture", path, marks=pytest.mark.long) for path in ("variance_preserving", "straight")
]
CASES += [("gaussian", path) for path in PATH_NAMES]


def scored(oracle, path, name, num_samples):
    """Samples of images, and the images' log P(x)."""
    levels = ORACLES[oracle].sample(np.random.default_rng(0), NUM[oracle] // num_samples)
    dequantization = DEQUANTIZATIONS.build(DEQUANTIZATIONS.spec(name))
    trace = known.BothTraces(probes=PROBES[oracle])
    samples = known.score(
        levels, dequantization, oracle=oracle, path=path, trace=trace, num_samples=num_samples
    )
    assert samples.ok
    assert 30 < samples.evaluations.mean() < 300
    return samples, ORACLES[oracle].log_probability(levels)


def mean_and_error(values):
    return values.mean(), values.std(ddof=1) / math.sqrt(len(values))


# Each program serves all checks of an oracle on a path: compiling it is most of the time they take.
@pytest.mark.parametrize(("oracle", "path"), CASES)
def test_bounds_on_data_of_known_probability(oracle, path):
    """Every estimate meets the known likelihood, and none is below it, beyond the errors that are stated."""
    for name in known.DEQUANTIZED[oracle]:
        gap = known.gap(oracle, name)
        assert 0 < gap < 0.012

        samples, truth = scored(oracle, path, name, 1)
        # The solver's error is known, since the density of z is.
        solver = abs(samples.density_error.mean()) / BITS
        assert solver < 0.002, "of the default, 1e-5"
        for log_w in (samples.exact[..., None], samples.estimates):
            mean, error = mean_and_error(known.excess(likelihood.importance_bound(log_w).bound, truth))
            assert error <= RESOLUTION, name
            assert abs(mean - gap) <= 3 * error + solver, name
            assert mean >= -3 * error - solver, name
        if oracle == "gaussian":
            # The tolerance, 1e-5 (1 + |y|), in each of 12 steps and 4 dimensions, is magnified by the flow,
            # which expands a deviation of 0.06 to 1, and by the slope of the prior, up to 3.
            assert np.abs(samples.density_error).max() < 12 * 4 * 1e-5 / 0.06 * 3
            # Rademacher probes are exact where the Jacobian is diagonal, up to rounding of every evaluation.
            np.testing.assert_allclose(
                samples.estimates, samples.exact[..., None].repeat(PROBES[oracle], -1), atol=0.02
            )
        else:
            assert samples.estimates.std(axis=-1).mean() > 0.5, "noise, to show whether it is unbiased"

        samples, truth = scored(oracle, path, name, 20)
        solver = abs(samples.density_error.mean()) / BITS
        exact = known.excess(likelihood.importance_bound(samples.exact[..., None]).bound, truth)
        mean, error = mean_and_error(exact)
        assert error <= RESOLUTION, name
        assert -3 * error - solver <= mean <= gap + 3 * error + solver, name
        # The same samples, one by one: Jensen's inequality for each image.
        assert np.all(exact <= known.excess(samples.exact.mean(-1), truth) + 1e-9)
        noisy = known.excess(likelihood.importance_bound(samples.estimates).bound, truth)
        mean, error = mean_and_error(noisy)
        # Of few images, and a bound that noise makes loose: variance v in each half of the probes costs v / 2
        # nats in the entropy of the weights.
        v = samples.estimates.var(axis=-1, ddof=1).mean() / (PROBES[oracle] / 2)
        assert error <= 0.01, name
        assert -3 * error - solver <= mean <= gap + 0.5 * v / BITS + 3 * error + solver, name
